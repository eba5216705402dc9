"""The real daemon with a clock that is wrong: the day it wakes up, and while it runs."""

from __future__ import annotations

import getpass
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from broker_process import wait_listening
from world_bundles import MODEL, tiny_bundle
from world_device import DAY_MS, FLEET, Device, keyring_file, make_home
from world_registry import Registry
from world_waiting import eventually

from edgepack_cli.demo.ports import free_port
from edgepack_contract.certificates import Authority
from edgepack_contract.clock import BUILT_MS
from edgepack_contract.keys import PrivateKey, read_private_key, write_private_key
from edgepack_contract.messages import Health
from edgepack_contract.states import Phase
from edgepack_contract.topics import Kind

pytestmark = [
    pytest.mark.e2e, pytest.mark.foreign("faketime"), pytest.mark.foreign("mosquitto"),
    pytest.mark.xdist_group("clock"),
]  # fmt: skip

BROKER = """\
per_listener_settings true
user {user}
listener {plain} 127.0.0.1
allow_anonymous true
listener {tls} 127.0.0.1
cafile {folder}/ca.pem
certfile {folder}/server.pem
keyfile {folder}/server.key
require_certificate true
use_identity_as_username true
"""
YEAR_MS = 365 * DAY_MS
WAKES_IN_1970 = "@1970-01-01 00:10:00"
IN_2099 = "@2099-06-01 00:00:00"


def now_ms():
    return time.time_ns() // 1_000_000


class Place:
    """A broker that speaks TLS with the device, and plainly with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(PrivateKey.generate(), name="fleet", now_ms=now_ms())
        self.plain, self.tls = free_port(), free_port()
        key = PrivateKey.generate()
        server = self.authority.issue_server(key.public, hosts=["127.0.0.1"], now_ms=now_ms())
        (folder / "server.pem").write_bytes(server.pem)
        (folder / "ca.pem").write_bytes(self.authority.pem)
        write_private_key(folder / "server.key", key)
        text = BROKER.format(user=getpass.getuser(), folder=folder, plain=self.plain, tls=self.tls)
        (folder / "mosquitto.conf").write_text(text)
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin")
        assert program is not None
        self.broker = subprocess.Popen(
            [program, "-c", str(folder / "mosquitto.conf")], stderr=subprocess.DEVNULL
        )
        wait_listening(self.tls)

    def device(self) -> Device:
        """An enrolled device that speaks TLS."""
        home = self.folder / "pi-1"
        make_home(home, "pi-1", self.plain)
        ring = keyring_file(1, authorities=[self.authority.pem.decode()])
        (home / "keyring.json").write_bytes(ring)
        key = read_private_key(home / "device.key").public
        certificate = self.authority.issue_client(key, name="pi-1", now_ms=now_ms())
        (home / "device.pem").write_bytes(certificate.pem)
        config = home / "device.toml"
        text = config.read_text().replace(f"port = {self.plain}", f"port = {self.tls}\ntls = true")
        text = text.replace(
            'keyring = "keyring.json"', 'keyring = "keyring.json"\ncertificate = "device.pem"'
        )
        config.write_text(text)
        return Device(home, "pi-1", self.plain, FLEET)

    def close(self) -> None:
        self.broker.kill()
        self.broker.wait()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    with Registry() as registry:
        found = []
        for version in ("1.0.0", "1.1.0"):
            path = folder / f"{version}.edgepack"
            digest = tiny_bundle(path, version)
            found.append((digest, registry.add(version.replace(".", "-"), path)))
        yield found


@pytest.fixture
def device(tmp_path):
    place = Place(tmp_path)
    device = place.device()
    yield device
    device.close()
    place.close()


def start(device, clock=None):
    """Start the daemon with a clock of its own, as libfaketime writes it; None for the right one.

    The clock goes on from there, and is set by writing another into ``clock`` in its folder.
    """
    path = device.home / "clock"
    path.write_text(f"{clock or '+0'}\n")
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    device.environ = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "TZ": "UTC",
        "PYTHONPATH": str(Path(__file__).parents[1] / "support" / "faketime"),
    }
    device.start()


def stop(device):
    assert device.process.end(signal.SIGTERM) == 0
    device.forget()


def install(device, bundle):
    device.wish(*bundle)
    device.hear_reported(lambda said: runs(said, bundle[0]) and said.refused is None)


def runs(said, digest):
    slot = said.slots.get(MODEL)
    return slot is not None and (slot.phase, slot.running) == (Phase.SUCCEEDED, digest)


def floor(device):
    return json.loads((device.home / "state" / "trust.json").read_text())["floor_ms"]


def send(device, **changes):
    device.generation += 1
    desired = device.signed(device.current(**changes))
    device.send(device.topic(Kind.DESIRED), desired, retain=True)


def test_a_board_that_wakes_up_in_1970_joins_installs_and_remembers(device, bundles):
    start(device, WAKES_IN_1970)
    said = device.hear_reported(lambda said: True)
    assert said.at < YEAR_MS
    install(device, bundles[0])
    eventually(lambda: floor(device) > now_ms() - DAY_MS, "a floor that has risen")
    first = floor(device)
    stop(device)
    start(device, WAKES_IN_1970)
    device.hear_reported(lambda said: runs(said, bundles[0][0]))
    assert floor(device) == first
    send(device, issued=first - 2 * DAY_MS, expires=first - DAY_MS)
    said = device.hear_reported(lambda said: said.refused is not None)
    assert said.refused.startswith("expired: ")
    install(device, bundles[1])


def test_a_clock_in_2099_refuses_serves_and_is_well_again_when_it_is_set(device, bundles):
    start(device)
    install(device, bundles[0])
    before = floor(device)
    (device.home / "clock").write_text(f"{IN_2099}\n")
    device.hear(device.topic(Kind.HEALTH), Health, lambda said: said.at > 4_000_000_000_000)
    device.wish(*bundles[1])
    said = device.hear_reported(lambda said: said.refused is not None)
    assert said.refused.startswith("expired: ")
    assert "clock" in said.refused
    assert device.version() == "1.0.0"
    assert floor(device) == before
    (device.home / "clock").write_text("+0\n")
    said = device.hear_reported(lambda said: runs(said, bundles[1][0]))
    assert said.refused is None
    assert floor(device) < now_ms() + DAY_MS


def test_a_start_in_2099_serves_says_why_it_is_alone_and_remembers_nothing(device, bundles):
    start(device)
    install(device, bundles[0])
    before = floor(device)
    stop(device)
    start(device, IN_2099)
    device.process.wait_said("its certificate has expired; renew it there, or set this machine's")
    eventually(device.serves, "a prediction")
    assert floor(device) == before
    (device.home / "clock").write_text("+0\n")
    device.hear_reported(lambda said: runs(said, bundles[0][0]))
    install(device, bundles[1])


def test_off_for_a_year_it_catches_up(device, bundles):
    start(device)
    install(device, bundles[0])
    stop(device)
    send(device, issued=now_ms() - YEAR_MS, expires=now_ms() - YEAR_MS + DAY_MS)
    start(device)
    said = device.hear_reported(lambda said: said.refused is not None)
    assert said.refused.startswith("expired: ")
    eventually(device.serves, "a prediction")
    install(device, bundles[1])
    assert device.version() == "1.1.0"


def test_a_clock_that_goes_back_between_starts(device, bundles):
    start(device)
    install(device, bundles[0])
    assert floor(device) >= BUILT_MS
    stop(device)
    start(device, "-400d")
    device.hear_reported(lambda said: runs(said, bundles[0][0]))
    install(device, bundles[1])
    assert floor(device) > now_ms() - DAY_MS


def test_a_document_from_the_future_is_refused_by_a_clock_that_may_be_right(device, bundles):
    start(device)
    install(device, bundles[0])
    before = floor(device)
    send(device, issued=now_ms() + DAY_MS, expires=now_ms() + YEAR_MS)
    said = device.hear_reported(lambda said: said.refused is not None)
    assert said.refused.startswith("future-dated: ")
    assert "check the clocks" in said.refused
    assert floor(device) == before

"""The service as a process: a real broker, real messages, and kill -9."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter

import msgspec
import pytest
from broker_process import SECONDS, Broker, Peer, wait_for
from bundle_samples import PUBLISHER, fixed_key, one_variant
from fleet_devices import FakeDevice

from edgepack_contract.keyring import Publisher, make_keyring
from edgepack_contract.keys import write_private_key
from edgepack_contract.layout import write_bundle
from edgepack_contract.messages import Acked
from edgepack_contract.sealing import unseal
from edgepack_contract.states import Presence
from edgepack_contract.topics import fleet_state_topic
from edgepack_fleet.__main__ import EXIT_CONFIG, EXIT_FAILED, main, make_token
from edgepack_fleet.config import load_config
from edgepack_fleet.service import wall_ms
from edgepack_fleet.tokens import Role

OWNER, FLEET = fixed_key(10), fixed_key(11)
CONFIG = """
data_dir = "data"
[http]
port = 0
[mqtt]
port = {port}
[keys]
fleet = "fleet.key"
keyring = "keyring.json"
owner = "{owner}"
[timings]
tick = 0.1
"""


def write_config(folder, port=1, extra="", fleet=FLEET):
    publisher = Publisher(key=PUBLISHER.public.pem.decode(), names=["*"])
    keyring = make_keyring(OWNER, version=1, epoch=1, publishers=[publisher], fleets=[FLEET.public])
    (folder / "keyring.json").write_bytes(keyring)
    write_private_key(folder / "fleet.key", fleet)
    path = folder / "fleet.toml"
    path.write_text(CONFIG.format(port=port, owner=OWNER.public.fingerprint) + extra)
    return path


class Fleet:
    """The service in a process of its own, and a token for its API."""

    def __init__(self, folder, port):
        path = write_config(folder, port)
        self.config = str(path)
        self.token = make_token(load_config(path, {}), "test", Role.ADMIN, days=1)
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgepack_fleet", "--config", self.config],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        ready = self.process.stdout.readline().split()
        assert ready[:2] == ["fleet", "ready"], self.process.stderr.read()
        self.url = ready[2]

    def end(self, number):
        self.process.send_signal(number)
        self.process.communicate(timeout=SECONDS)
        return self.process.returncode

    def ask(self, method, path, body=None):
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{self.url}/api/v1{path}", data=data, method=method, headers=headers
        )
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return json.loads(response.read())


@pytest.fixture
def broker():
    broker = Broker()
    yield broker
    broker.kill()


@pytest.fixture
def fleet(tmp_path, broker):
    fleet = Fleet(tmp_path, broker.port)
    yield fleet
    if fleet.process.poll() is None:
        fleet.end(signal.SIGKILL)


@pytest.fixture
def device(fleet):
    device = FakeDevice("pi-1")
    device.at = wall_ms()
    fleet.ask(
        "POST",
        "/devices",
        {
            "id": device.name,
            "public_key": device.key.public.pem.decode(),
            "mac_key": device.mac_key.hex(),
        },
    )
    return device


@pytest.fixture
def peer(broker):
    peer = Peer(broker.port, fleet_state_topic("default"), "edgepack/v1/default/pi-1/#")
    yield peer
    peer.close()


def hear_ack(peer, device, through):
    """Wait for the acknowledgement of everything up to ``through``."""
    topic = f"edgepack/v1/default/{device.name}/acked/{device.slot}"
    for _ in range(1000):
        heard, payload = peer.heard.get(timeout=SECONDS)
        if heard == topic:
            body = unseal(payload, topic=topic, key=device.mac_key, max_bytes=999)
            if msgspec.json.decode(body, type=Acked) == Acked(session=7, through=through):
                return
    raise AssertionError(f"{through} was not acknowledged")


def test_it_stops_in_order_when_asked(fleet, peer):
    assert peer.states(Presence.ONLINE)
    assert fleet.end(signal.SIGTERM) == 0
    assert peer.states(Presence.OFFLINE)


def test_killed_it_goes_on_where_it_was(tmp_path, fleet, device, peer):
    path = tmp_path / "one.edgepack"
    write_bundle(path, one_variant(), signer=PUBLISHER)
    fleet.ask("PUT", "/bundles", path.read_bytes())
    fleet.ask("POST", "/groups", {"name": "all", "labels": {}})
    for message in (device.state(), device.birth(), device.window(1)):
        peer.send(message)
    hear_ack(peer, device, 1)
    body = {"bundle": "digits", "version": "1.0.0", "group": "all"}
    rollout = fleet.ask("POST", "/rollouts", body)
    desired = "edgepack/v1/default/pi-1/desired"
    envelope = b""
    while not envelope:
        topic, payload = peer.heard.get(timeout=SECONDS)
        envelope = payload if topic == desired else b""
    assert fleet.end(signal.SIGKILL) == -signal.SIGKILL
    # nobody is there, and this broker keeps nothing for who is away
    assert peer.states(Presence.LOST)
    peer.send(device.window(2))
    fleet.start()
    assert peer.states(Presence.ONLINE)
    # a new session of the fleet makes a device hand over again what is not acknowledged
    peer.send(device.window(2))
    hear_ack(peer, device, 2)
    later = fleet.ask("GET", f"/rollouts/{rollout['id']}")
    assert later["state"] == "running"
    assert later["updates"]["pi-1"]["state"] == "offered"
    events = fleet.ask("GET", f"/rollouts/{rollout['id']}/events")["items"]
    causes = Counter(event["cause"] for event in events)
    assert (causes["planned"], causes["started"], causes["device-offered"]) == (1, 1, 1)


def test_a_broker_that_lost_everything_is_told_again(tmp_path, broker, fleet, device, peer):
    path = tmp_path / "one.edgepack"
    write_bundle(path, one_variant(), signer=PUBLISHER)
    fleet.ask("PUT", "/bundles", path.read_bytes())
    fleet.ask("POST", "/groups", {"name": "all", "labels": {}})
    for message in (device.state(), device.birth()):
        peer.send(message)
    fleet.ask("POST", "/rollouts", {"bundle": "digits", "version": "1.0.0", "group": "all"})
    desired, envelope = "edgepack/v1/default/pi-1/desired", b""
    while not envelope:
        topic, payload = peer.heard.get(timeout=SECONDS)
        envelope = payload if topic == desired else b""
    broker.kill()
    broker.start()
    late = Peer(broker.port, desired)
    wait_for(late.heard, (desired, envelope))
    late.close()


def test_a_token_is_printed_once_and_only_its_hash_is_kept(tmp_path, capsys):
    config = str(write_config(tmp_path))
    assert main(["token", "--config", config, "--name", "ci", "--role", "publisher"]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("epa_")
    assert secret.encode() not in (tmp_path / "data" / "fleet.db").read_bytes()
    assert main(["token", "--config", config, "--name", "ci"]) == EXIT_FAILED
    assert "'ci'" in capsys.readouterr().err


def test_a_second_service_and_a_token_beside_a_running_one_are_refused(fleet, capsys):
    assert main(["--config", fleet.config]) == EXIT_FAILED
    assert main(["token", "--config", fleet.config, "--name", "x"]) == EXIT_FAILED
    assert "another fleet service" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("desired_ttl = 1\n", "timings.desired_refresh"),
        ("[http.tls]\n", "http"),
        ("unknown = 1\n", "unknown"),
    ],
)
def test_a_wrong_configuration_ends_with_78(tmp_path, capsys, extra, words):
    assert main(["--config", str(write_config(tmp_path, extra=extra))]) == EXIT_CONFIG
    assert words in capsys.readouterr().err


def test_an_insecure_listener_ends_with_78_and_says_what_fixes_it(tmp_path, capsys, monkeypatch):
    config = str(write_config(tmp_path))
    monkeypatch.setenv("EDGEPACK_FLEET_HTTP_HOST", "0.0.0.0")
    assert main(["--config", config]) == EXIT_CONFIG
    assert "http.tls_certificate" in capsys.readouterr().err


def test_a_fleet_key_that_the_owner_did_not_name_ends_with_78(tmp_path, capsys):
    config = str(write_config(tmp_path, fleet=fixed_key(12)))
    assert main(["--config", config]) == EXIT_CONFIG
    assert "is not in keyring" in capsys.readouterr().err


def test_a_keyring_of_another_owner_ends_with_78(tmp_path, capsys):
    config = write_config(tmp_path)
    text = config.read_text().replace(OWNER.public.fingerprint, "ab" * 32)
    config.write_text(text)
    assert main(["--config", str(config)]) == EXIT_CONFIG
    assert "keyring" in capsys.readouterr().err


def test_a_taken_port_ends_with_78(tmp_path, capsys, monkeypatch):
    config = str(write_config(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("EDGEPACK_FLEET_HTTP_PORT", str(taken.getsockname()[1]))
        assert main(["--config", config]) == EXIT_CONFIG
    assert "cannot listen" in capsys.readouterr().err


def test_a_request_without_a_token_is_refused(fleet):
    fleet.token = "epa_none"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        fleet.ask("GET", "/devices")
    assert refusal.value.code == 401
    refusal.value.close()

"""The daemon as a process, and what makes it believe otherwise: keyrings, epochs, revocations."""

from __future__ import annotations

import re
import shutil
import signal

import pytest
from broker_process import Broker
from bundle_samples import fixed_key
from world_bundles import MODEL
from world_device import FLEET, Device, keyring_file, make_home
from world_process import ask
from world_registry import two_versions
from world_waiting import eventually

from edgepack_contract.messages import Event
from edgepack_contract.states import Phase
from edgepack_contract.topics import Kind, keyring_topic

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("device-daemon-trust")]

NEXT_FLEET = fixed_key(41)
TOPIC = keyring_topic("default")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Versions by name, oldest first: digest and address."""
    with two_versions(tmp_path_factory.mktemp("bundles")) as found:
        yield found


@pytest.fixture
def device(tmp_path):
    broker = Broker()
    make_home(tmp_path / "pi-1", "pi-1", broker.port)
    device = Device(tmp_path / "pi-1", "pi-1", broker.port, FLEET)
    device.start()
    yield device
    device.close()
    broker.kill()


@pytest.fixture
def running(device, bundles):
    """A device that runs 1.0.0."""
    install(device, bundles["1.0.0"])
    return device


def install(device, bundle):
    device.wish(*bundle)
    device.hear_reported(lambda said: succeeded(said, bundle[0]))


def succeeded(said, digest):
    slot = said.slots.get(MODEL)
    return slot and (slot.phase, slot.running) == (Phase.SUCCEEDED, digest)


def publish(device, raw):
    device.send(TOPIC, raw, retain=True)


def metrics(device):
    return ask(device.home / "serve.sock", "GET", "/metrics").body.decode()


def test_a_newer_keyring_is_taken_up_kept_and_reported(running):
    raw = keyring_file(2)
    publish(running, raw)
    running.hear_reported(lambda said: said.keyring == 2)
    assert (running.home / "keyring.json").read_bytes() == raw
    running.process.end(signal.SIGTERM)
    running.start()
    running.hear_reported(lambda said: said.keyring == 2)
    eventually(running.serves, "a prediction")


def test_what_is_no_keyring_is_refused_and_changes_nothing(running):
    first = (running.home / "keyring.json").read_bytes()
    publish(running, keyring_file(2))
    running.hear_reported(lambda said: said.keyring == 2)
    for raw, code in ((b"junk", "malformed-document"), (first, "old-keyring"),
                      (keyring_file(2, issued=5), "keyring-equivocation"),
                      (keyring_file(3, demo=True), "demo-keyring"),
                      (b"x" * 300_000, "too-large")):  # fmt: skip
        publish(running, raw)
        said = running.hear_reported(lambda said, code=code: (said.refused or "").startswith(code))
        assert said.keyring == 2
        assert f'edgepack_refused_documents_total{{code="{code}"}} 1' in metrics(running)
    assert re.search(r"^edgepack_spool_items \d+$", metrics(running), re.MULTILINE)
    publish(running, b"")
    publish(running, keyring_file(2))
    running.hear_reported(lambda said: said.refused is None)
    assert running.version() == "1.0.0"


def test_a_document_that_comes_before_the_keyring_it_needs(device, bundles):
    device.epoch = 2
    device._fleet_key = NEXT_FLEET
    device.wish(*bundles["1.0.0"])
    device.hear_reported(lambda said: (said.refused or "").startswith("unknown-key: "))
    publish(device, keyring_file(2, epoch=2, fleets=[NEXT_FLEET.public.pem.decode()]))
    said = device.hear_reported(lambda said: succeeded(said, bundles["1.0.0"][0]))
    assert (said.epoch, said.generation, said.keyring, said.refused) == (2, 1, 2, None)


def test_a_stolen_fleet_key_and_the_way_out(running, bundles):
    """The thief asks for generation 10^9; the owner revokes the key in a new epoch."""
    running.generation = 10**9
    install(running, bundles["1.1.0"])
    fleets = [NEXT_FLEET.public.pem.decode()]
    revoked = [FLEET.public.fingerprint]
    publish(running, keyring_file(2, epoch=2, fleets=fleets, revoked_fleets=revoked))
    running.hear_reported(lambda said: said.keyring == 2)
    running.generation = 10**9 + 7
    running.wish(*bundles["1.0.0"])
    said = running.hear_reported(lambda said: said.refused)
    assert said.refused.startswith("revoked-key: ")
    running._fleet_key, running.epoch, running.generation = NEXT_FLEET, 2, 0
    install(running, bundles["1.0.0"])
    assert running.version() == "1.0.0"
    running.process.end(signal.SIGKILL)
    running.start()
    said = running.hear_reported(lambda said: succeeded(said, bundles["1.0.0"][0]))
    assert (said.epoch, said.generation) == (2, 1)


def test_a_bundle_that_is_revoked_serves_on_and_is_never_gone_back_to(running, bundles):
    digest, _ = bundles["1.0.0"]
    publish(running, keyring_file(2, revoked_digests=[digest]))
    said = running.hear_reported(lambda said: said.keyring == 2)
    assert (said.slots[MODEL].code, said.slots[MODEL].running) == ("revoked-digest", digest)
    event = running.hear(running.topic(Kind.EVENT, "verify-failed"), Event, lambda said: True)
    assert (event.code, event.digest) == ("revoked-digest", digest)
    assert running.version() == "1.0.0"
    running.process.end(signal.SIGTERM)
    running.start()
    said = running.hear_reported(lambda said: succeeded(said, digest))
    assert said.slots[MODEL].code == "revoked-digest"
    install(running, bundles["1.1.0"])
    running.wish(digest, bundles["1.0.0"][1])
    said = running.hear_reported(lambda said: said.slots[MODEL].phase is Phase.REJECTED)
    assert said.slots[MODEL].code == "revoked-digest"
    assert running.version() == "1.1.0"


def test_an_older_keyring_put_in_place_ends_the_start(running, tmp_path):
    kept = tmp_path / "kept.json"
    shutil.copy(running.home / "keyring.json", kept)
    publish(running, keyring_file(2))
    running.hear_reported(lambda said: said.keyring == 2)
    running.process.end(signal.SIGTERM)
    shutil.copy(kept, running.home / "keyring.json")
    running.process.start()
    assert running.process.wait() == 6
    assert "Put the newest one in its place" in running.process.said
    assert "Traceback" not in running.process.said


def test_a_lost_record_is_begun_anew_and_said(running):
    running.process.end(signal.SIGTERM)
    (running.home / "state" / "trust.json").write_bytes(b"\0" * 50)
    running.start()
    running.process.wait_said("trust.json cannot be used")
    eventually(running.serves, "a prediction")
    assert running.version() == "1.0.0"

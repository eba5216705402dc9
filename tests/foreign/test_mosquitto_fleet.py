"""Service, device daemon and a real Mosquitto over mutual TLS: install, revoke, a bad broker."""

from __future__ import annotations

import contextlib
import queue

import msgspec
import pytest
from broker_process import SECONDS
from broker_tls import Client, wall_ms
from world_tls import DEVICE, TlsLoop
from world_waiting import eventually

from edgepack_contract.instructions import sign_desired
from edgepack_contract.keyring import make_keyring
from edgepack_contract.keys import PrivateKey, read_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Desired, Reported
from edgepack_contract.sealing import unseal
from edgepack_contract.topics import Kind, device_topic, fleet_state_topic, keyring_topic

pytestmark = pytest.mark.foreign("mosquitto")

DAY_MS = 86_400_000
MINUTE = 60.0
DESIRED = device_topic("default", DEVICE, Kind.DESIRED)
REPORTED = device_topic("default", DEVICE, Kind.REPORTED)


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    loop = TlsLoop(tmp_path_factory.mktemp("loop"))
    try:
        loop.join()
        loop.run_device()
        yield loop
    finally:
        loop.close()


def revoke(loop, name):
    answer = loop.api(f"/api/v1/devices/{name}/revoke", "POST")
    assert answer.status == 200, answer.body


def quiet_client(loop, name):
    """Somebody with a device's certificate who only listens, so that nothing gives them away."""
    loop.join(name)
    identity = (loop.folder / name / "device.pem", loop.folder / name / "device.key")
    client = Client(loop.mosquitto, identity)
    assert client.comes_in()
    client.subscribe(device_topic("default", name, Kind.DESIRED))
    return client, identity


def wait_out(client):
    """Wait until a client was thrown out: within a minute of being revoked."""
    assert client.ended.wait(MINUTE)
    client.close()


def comes_in(loop, identity):
    client = Client(loop.mosquitto, identity)
    try:
        return client.comes_in()
    finally:
        client.close()


def test_a_bundle_is_installed_over_mutual_tls(loop):
    loop.cli("group", "create", "all", DEVICE)
    loop.push("1.0.0")
    loop.roll_out("1.0.0")
    assert loop.predicts()
    assert loop.told()["presence"] == "online"


def test_who_only_listens_is_out_within_a_minute_and_stays_out(loop):
    client, identity = quiet_client(loop, "quiet")
    revoke(loop, "quiet")
    wait_out(client)
    assert not comes_in(loop, identity)


def test_a_service_that_is_killed_at_once_evicts_when_it_is_back(loop):
    client, identity = quiet_client(loop, "killed")
    revoke(loop, "killed")
    loop.fleet.kill()
    loop.restart_fleet()
    wait_out(client)
    assert not comes_in(loop, identity)


def bad_documents(loop):
    """What somebody who has the broker could leave there, and how the device names it."""
    now = wall_ms()
    enrolment = read_private_key(loop.home / "device.key").public.fingerprint
    fleet = loop.key("fleet")
    good = Desired(
        tenant="default", device=DEVICE, enrolment=enrolment, epoch=1, generation=1000,
        issued=now, expires=now + DAY_MS, slots={},
    )  # fmt: skip
    change = msgspec.structs.replace
    signed = sign_desired(good, fleet)
    return [
        ("malformed-document", b"no document"),
        ("too-large", b" " * (LIMITS.desired_bytes + 1)),
        ("unknown-key", sign_desired(good, PrivateKey.generate())),
        ("bad-signature", signed.replace(b'"sig":"ME', b'"sig":"MF')),
        ("wrong-device", sign_desired(change(good, device="pi-2"), fleet)),
        ("wrong-device", sign_desired(change(good, tenant="other"), fleet)),
        ("wrong-enrolment", sign_desired(change(good, enrolment="0" * 64), fleet)),
        ("wrong-epoch", sign_desired(change(good, epoch=2), fleet)),
        ("expired", sign_desired(change(good, issued=now - DAY_MS, expires=now - 1), fleet)),
        ("old-generation", sign_desired(change(good, generation=0), fleet)),
    ]


def test_what_a_hostile_broker_retains_is_refused_by_name_and_changes_nothing(loop):
    """Whoever has the service's certificate may write everywhere, as the broker itself may."""
    running = loop.told()["slots"]
    loop.fleet.end()
    out = loop.mosquitto.out
    thief = Client(loop.mosquitto, (out / "fleet-client.pem", out / "fleet-client.key"))
    assert thief.comes_in()
    thief.subscribe(REPORTED)
    mac_key = bytes.fromhex((loop.home / "mac.key").read_text())

    def refused(code):
        """Wait until the device says that it refuses something for this reason."""
        last = "nothing"
        with contextlib.suppress(queue.Empty):
            while True:
                topic, payload = thief.heard.get(timeout=SECONDS)
                body = unseal(payload, topic=topic, key=mac_key, max_bytes=LIMITS.message_bytes)
                told = msgspec.json.decode(body, type=Reported)
                assert told.slots["tiny"].running == running["tiny"]["running"]
                if (told.refused or "").startswith(f"{code}: "):
                    return
                last = told.refused
        raise AssertionError(f"heard {last}, not {code}\n{loop.daemon.said[-2000:]}")

    for code, payload in bad_documents(loop):
        thief.publish(DESIRED, payload, retain=True)
        refused(code)
    strangers = make_keyring(
        PrivateKey.generate(),
        version=99,
        epoch=99,
        publishers=[],
        fleets=[loop.key("fleet").public],
    )
    for code, payload in [("unknown-key", strangers), ("malformed-document", b"no keyring")]:
        thief.publish(keyring_topic("default"), payload, retain=True)
        loop.daemon.wait_said(f"keyring refused: {code}: ")
    thief.publish(fleet_state_topic("default"), b"\xff not a state", retain=True)
    assert loop.predicts()
    for topic in (DESIRED, keyring_topic("default"), fleet_state_topic("default")):
        thief.publish(topic, b"", retain=True)
    thief.close()
    assert loop.daemon.process.poll() is None
    loop.restart_fleet()


def test_a_device_that_is_revoked_is_out_within_a_minute_stays_out_and_serves_on(loop):
    revoke(loop, DEVICE)
    loop.daemon.wait_said("our certificate is revoked")
    came_in = loop.daemon.said.count("connected to the broker")
    loop.daemon.wait_said("our certificate is revoked", times=3)
    assert loop.daemon.said.count("connected to the broker") == came_in
    assert loop.predicts()
    eventually(lambda: loop.told()["status"] == "revoked", loop.told)


def test_a_decommissioned_device_leaves_nothing_at_the_broker(loop):
    client, _ = quiet_client(loop, "pi-9")
    kinds = (Kind.STATE, Kind.BIRTH, Kind.REPORTED)
    topics = {kind: device_topic("default", "pi-9", kind) for kind in kinds}
    for topic in topics.values():
        assert client.publish(topic, b"what I was", retain=True)
    answer = loop.api("/api/v1/devices/pi-9/decommission", "POST")
    assert answer.status == 200, answer.body
    wait_out(client)
    loop.fleet.end()
    out = loop.mosquitto.out
    service = Client(loop.mosquitto, (out / "fleet-client.pem", out / "fleet-client.key"))
    assert service.comes_in()
    service.subscribe(*topics.values())
    mark = device_topic("default", "pi-8", Kind.STATE)
    service.subscribe(mark)
    service.publish(mark, b"no more is to come")
    retained = service.until(mark, b"no more is to come")
    service.close()
    assert retained == []
    loop.restart_fleet()

"""The daemon as a process: a real broker, a registry that nobody trusts, signals and kill -9."""

from __future__ import annotations

import errno
import itertools
import json
import signal
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest
from broker_process import Broker
from bundle_samples import STRANGER, fixed_key
from world_bundles import MODEL, tiny_bundle
from world_device import CONFIG, FLEET, OWNER, Device, keyring_file, make_home
from world_process import run_to_end
from world_registry import Registry
from world_waiting import eventually

from edgepack_contract.canonical import canonical_json
from edgepack_contract.dsse import PayloadType, seal_envelope
from edgepack_contract.messages import (
    Acked,
    Birth,
    Event,
    FleetState,
    Health,
    Probation,
    SlotDesired,
)
from edgepack_contract.sealing import seal
from edgepack_contract.states import Phase, Presence
from edgepack_contract.topics import Kind, fleet_state_topic, keyring_topic
from edgepack_contract.window import Window
from edgepack_runtime.daemon import SAY_AGAIN_SECONDS, Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("device-daemon")]


@pytest.fixture(scope="module")
def broker():
    broker = Broker()
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Versions by name: address and digest."""
    folder = tmp_path_factory.mktemp("bundles")
    with Registry() as registry:
        found = {}
        for version, signer in (("1.0.0", None), ("1.1.0", None), ("6.6.6", STRANGER)):
            path = folder / f"{version}.edgepack"
            options = {} if signer is None else {"signer": signer}
            found[version] = (tiny_bundle(path, version, **options), path)
        yield {
            version: (digest, registry.add(f"tiny-{version.replace('.', '-')}", path))
            for version, (digest, path) in found.items()
        }


def open_device(folder, name, broker):
    make_home(folder / name, name, broker.port)
    return Device(folder / name, name, broker.port, FLEET)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, broker, bundles):
    """A device that runs 1.0.0."""
    device = open_device(tmp_path_factory.mktemp("shared"), "pi-1", broker)
    device.start()
    device.wish(*bundles["1.0.0"])
    device.hear_reported(succeeded(bundles["1.0.0"][0]))
    yield device
    device.close()


@pytest.fixture
def pi(shared):
    """The shared device; whatever happens to it, 1.0.0 answers, and it obeys its fleet at last."""
    assert shared.version() == "1.0.0"
    yield shared
    assert shared.version() == "1.0.0"
    shared.wait_tidy()
    desired = shared.signed(shared.current())
    shared.send(shared.topic(Kind.DESIRED), desired, retain=True)
    said = shared.hear_reported(lambda said: said.refused is None)
    # windows that nobody acknowledges leave no room for the events that others wait for
    shared.acknowledge(said.session)


NUMBERS = itertools.count(2)


@pytest.fixture
def fresh(tmp_path, broker):
    """A device of its own that has nothing yet; the broker keeps what others of its name said."""
    device = open_device(tmp_path, f"pi-{next(NUMBERS)}", broker)
    device.start()
    yield device
    device.send(device.topic(Kind.DESIRED), b"", retain=True)
    device.close()


def succeeded(digest):
    def there(said):
        slot = said.slots.get(MODEL)
        return slot and (slot.phase, slot.running) == (Phase.SUCCEEDED, digest)

    return there


def refused(device, payload):
    """Send something as a desired document; the words of its refusal."""
    device.send(device.topic(Kind.DESIRED), payload)
    return device.hear_reported(lambda said: said.refused is not None).refused


def test_it_introduces_itself(pi):
    pi.process.end(signal.SIGTERM)
    pi.start()
    birth = pi.hear(pi.topic(Kind.BIRTH), Birth, lambda said: MODEL in said.slots)
    assert (birth.slots[MODEL].version, birth.capabilities) == (
        "1.0.0",
        ["reverse-shadow", "shadow", "split"],
    )
    assert birth.hardware.onnxruntime == birth.onnxruntime
    health = pi.hear(pi.topic(Kind.HEALTH), Health, lambda said: said.session == birth.session)
    assert health.disk_free_bytes > 0


def test_windows_go_until_they_are_acknowledged(pi):
    pi.predict()
    window = pi.hear(pi.topic(Kind.TELEMETRY, MODEL), Window, lambda said: said.n >= 1)
    acked = canonical_json(Acked(session=window.session, through=window.last))
    topic = pi.topic(Kind.ACKED, MODEL)
    pi.send(topic, seal(acked, topic=topic, key=bytes(32)))  # not the fleet's word
    assert waiting(pi, window)
    pi.send(topic, seal(acked, topic=topic, key=pi.mac_key))
    eventually(lambda: not waiting(pi, window), "an empty spool")


def waiting(device, window):
    spool = sqlite3.connect(device.home / "state" / "spool.db")
    try:
        rows = spool.execute(
            "SELECT 1 FROM item WHERE session = ? AND slot = ? AND last = ?",
            (window.session, MODEL, window.last),
        ).fetchall()
    finally:
        spool.close()
    return bool(rows)


def test_a_fleet_that_is_new_is_told_everything_again(pi):
    for session in (1, 2):
        state = FleetState(session=session, at=0, state=Presence.ONLINE)
        pi.send(fleet_state_topic("default"), canonical_json(state))
    birth = pi.hear(pi.topic(Kind.BIRTH), Birth, lambda said: True)
    pi.hear_reported(lambda said: said.sequence > birth.sequence)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"garbage", "malformed-document"),
        (b"{}", "malformed-document"),
        (b"\xff\x00", "malformed-document"),
        (b"[" * 100_000, "too-large"),
        (b"[" * 1000, "too-deep"),
        (b"x" * 300_000, "too-large"),
        (b" ", "malformed-document"),
        (b"\xef\xbb\xbf{}", "malformed-document"),
        ("{}".encode("utf-16"), "malformed-document"),
        (b"{%b}" % b",".join(b'"%d":0' % number for number in range(6000)), "malformed-document"),
        (b'{"payload":%b}' % (b"9" * 5000), "malformed-document"),
        (b'{"payload":"\\ud800"}', "malformed-document"),
    ],
    ids=[
        "text",
        "empty",
        "bytes",
        "deep and large",
        "deep",
        "large",
        "space",
        "mark of order",
        "utf-16",
        "many keys",
        "many digits",
        "half a character",
    ],
)
def test_what_is_no_document_is_refused(pi, payload, code):
    assert refused(pi, payload).startswith(f"{code}: desired document ")


def test_a_document_of_a_stranger_is_refused(pi, bundles):
    words = refused(pi, pi.signed(pi.current(generation=99), key=STRANGER))
    assert words.startswith("unknown-key: desired document is signed by ")
    assert FLEET.public.fingerprint[:16] in words


def test_a_document_in_the_fleets_name_is_refused(pi):
    """The key's name is the fleet's, the signature somebody else's."""
    forged = pi.signed(pi.current(generation=99), key=STRANGER)
    forged = forged.replace(STRANGER.public.fingerprint.encode(), FLEET.public.fingerprint.encode())
    assert refused(pi, forged).startswith("bad-signature: ")


def test_a_signature_for_something_else_is_refused(pi):
    body = canonical_json(pi.current(generation=99))
    envelope = seal_envelope(PayloadType.KEYRING, body, FLEET)
    assert refused(pi, envelope).startswith("wrong-type: desired document is of type ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "pi-9"}, "wrong-device: the desired document is for default/pi-9, this is "),
        ({"tenant": "other"}, "wrong-device: "),
        ({"enrolment": "0" * 64}, "wrong-enrolment: "),
        ({"epoch": 2}, "wrong-epoch: the desired document has epoch 2, the keyring 1"),
        ({"generation": 0}, "old-generation: the desired document has generation 0, but "),
        ({"issued": 1}, "replay: an older copy"),
        ({"slots": {}}, "equivocation: two desired documents of generation "),
        ({"expires": 1_000_000_000_000, "generation": 99}, "expired: "),
        ({"issued": 4_000_000_000_000, "generation": 99}, "future-dated: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_fleet_signed_for_another_place_or_time_is_refused(pi, changes, words):
    assert refused(pi, pi.signed(pi.current(**changes))).startswith(words)


def test_a_slot_with_no_name_is_refused(pi, bundles):
    pi.generation += 1
    slots = {**pi.current().slots, "../../etc": pi.current().slots[MODEL]}
    words = refused(pi, pi.signed(pi.current(slots=slots)))
    assert words.startswith("bad-slot: '../../etc' is no name for a slot")
    pi.generation += 1


def test_one_forgery_sent_often_is_reported_once(pi):
    forged = pi.signed(pi.current(generation=99), key=fixed_key(44))
    for _ in range(5):
        pi.send(pi.topic(Kind.DESIRED), forged)
    first = pi.hear_reported(lambda said: said.refused is not None)
    pi.send(pi.topic(Kind.DESIRED), b"another")
    second = pi.hear_reported(lambda said: said.refused != first.refused)
    assert second.sequence - first.sequence <= 1 + 4  # health shares the sequence


def test_other_topics_of_a_device_take_nothing(pi):
    for topic in (pi.topic(Kind.ACKED, MODEL), fleet_state_topic("default")):
        for payload in (b"", b"garbage", b"{}", b"\xff" * 100, b"x" * 300_000):
            pi.send(topic, payload)
    pi.send(f"edgepack/v1/default/{pi.name}/cmd/reboot", b"{}")
    assert refused(pi, b"still here").startswith("malformed-document: ")


def test_a_document_of_a_later_version_is_refused_as_such(pi):
    body = canonical_json(pi.current(generation=99))
    envelope = json.loads(seal_envelope(PayloadType.DESIRED, body, FLEET))
    envelope["payloadType"] = envelope["payloadType"].replace("v1", "v2")
    assert "v2" in envelope["payloadType"]
    assert refused(pi, canonical_json(envelope)).startswith("wrong-type: ")


def test_a_bundle_of_a_stranger_is_rejected_though_the_fleet_asks_for_it(pi, bundles):
    told = pi.current().slots[MODEL]
    digest, source = bundles["6.6.6"]
    pi.wish(digest, source, retain=False)
    said = pi.hear_reported(lambda said: said.slots[MODEL].phase is Phase.REJECTED)
    slot = said.slots[MODEL]
    assert (slot.code, slot.wanted, slot.running) == (
        "unknown-publisher", digest, told.active.digest
    )  # fmt: skip
    assert "sign it with a trusted key" in slot.words
    event = pi.hear(pi.topic(Kind.EVENT, "verify-failed"), Event, lambda said: True)
    assert (event.code, event.digest) == ("unknown-publisher", digest)
    assert not list((pi.home / "state" / "slots" / MODEL / "store").glob(f"{digest[7:]}*"))
    pi.wish(told.active.digest, told.active.sources[0])
    pi.hear_reported(succeeded(told.active.digest))


@pytest.mark.parametrize(
    ("source", "phase"),
    [
        ("http://192.0.2.1/tiny", Phase.FAILED),
        ("ftp://127.0.0.1/tiny", Phase.FAILED),
        ("/etc/passwd", Phase.FAILED),
    ],
)
def test_a_source_that_is_not_safe_is_not_asked(pi, bundles, source, phase):
    told = pi.current().slots[MODEL]
    pi.wish(bundles["1.1.0"][0], source, retain=False)
    slot = pi.hear_reported(lambda said: said.slots[MODEL].phase is phase).slots[MODEL]
    assert slot.words
    assert slot.running == told.active.digest
    pi.wish(told.active.digest, told.active.sources[0])
    pi.hear_reported(succeeded(told.active.digest))


def test_a_document_that_comes_a_hundred_times_is_obeyed_once(pi):
    same = pi.signed(pi.current())
    for _ in range(100):
        pi.send(pi.topic(Kind.DESIRED), same)
    first = pi.hear_reported(lambda said: said.generation == pi.generation)
    assert refused(pi, b"the last").startswith("malformed-document: ")
    assert (first.refused, pi.version()) == (None, "1.0.0")


def test_a_flood_of_messages_keeps_nobody_from_being_answered(pi):
    flood = [(pi.topic(Kind.DESIRED), b"x" * 200), (pi.topic(Kind.ACKED, MODEL), b"y" * 200),
             (keyring_topic("default"), b"z" * 200)]  # fmt: skip
    for number in range(1000):
        pi._peer.client.publish(*flood[number % 3], 0)
        if number % 50 == 0:
            assert pi.serves()
    pi.send(keyring_topic("default"), keyring_file(1))
    pi.send(pi.topic(Kind.DESIRED), b"[" * 1000)
    pi.hear_reported(lambda said: (said.refused or "").startswith("too-deep: "))


def test_a_storm_of_fleets_is_told_everything_once_in_a_while(pi):
    before = pi.hear(pi.topic(Kind.HEALTH), Health, lambda said: True)
    for session in range(200):
        state = FleetState(session=1000 + session, at=0, state=Presence.ONLINE)
        pi.send(fleet_state_topic("default"), canonical_json(state))
    # one each half a second, by which all that was put off was said
    numbers: set[int] = set()

    def later(said):
        numbers.add(said.sequence)
        return len(numbers) > SAY_AGAIN_SECONDS / 0.5 + 1

    after = pi.hear(pi.topic(Kind.HEALTH), Health, later)
    assert after.sequence - before.sequence < 100


def test_a_second_daemon_on_the_same_folder_is_refused(pi):
    ended = run_to_end("edgepack_cli", "run", "--config", pi.home / "device.toml")
    assert ended.returncode == 78
    assert f"another daemon uses {pi.home / 'state'}; stop it first" in ended.stderr


def test_killed_in_probation_it_ends_as_if_it_had_not_been(fresh, bundles):
    (one, source_one), (two, source_two) = bundles["1.0.0"], bundles["1.1.0"]
    fresh.wish(one, source_one)
    first = fresh.hear_reported(succeeded(one))
    patient = Probation(seconds=3.0, max_seconds=20.0, shadow_seconds=5.0)
    fresh.wish(two, source_two, probation=patient)
    fresh.hear_reported(lambda said: said.slots[MODEL].phase is Phase.PROBATION)
    fresh.process.end(signal.SIGKILL)
    assert fresh.hear_state(lambda said: said.state is Presence.LOST).session == first.session
    fresh.start()
    last = fresh.hear_reported(succeeded(two))
    assert last.session > first.session
    slot = last.slots[MODEL]
    assert (slot.version, slot.previous, slot.wanted, slot.blocked) == ("1.1.0", one, two, [])
    assert fresh.version() == "1.1.0"
    fresh.wait_tidy()


def test_sigterm_ends_it_with_0_and_goodbye_and_what_ran_runs_again(fresh, bundles):
    digest, source = bundles["1.0.0"]
    fresh.wish(digest, source)
    session = fresh.hear_reported(succeeded(digest)).session
    assert fresh.process.end(signal.SIGTERM) == 0
    assert fresh.hear_state(lambda said: said.state is Presence.OFFLINE).session == session
    assert not (fresh.home / "serve.sock").exists()
    assert '"level": "error"' not in fresh.process.said
    assert "Traceback" not in fresh.process.said
    fresh.start()
    eventually(fresh.serves, "a prediction")
    assert fresh.version() == "1.0.0"


def test_a_device_whose_spool_is_damaged_serves_and_reports(fresh, bundles):
    digest, source = bundles["1.0.0"]
    fresh.wish(digest, source)
    fresh.hear_reported(succeeded(digest))
    assert fresh.process.end(signal.SIGTERM) == 0
    (fresh.home / "state" / "spool.db").write_bytes(b"\0" * 9000 + b"damage")
    (fresh.home / "state" / "session").write_bytes(b"damage")
    fresh.start()
    eventually(fresh.serves, "a prediction")
    fresh.hear(fresh.topic(Kind.TELEMETRY, MODEL), Window, lambda said: said.n >= 1)


def test_a_disk_that_takes_nothing_costs_no_prediction(fresh, bundles):
    """Neither session, journal nor spool can be written from the start of the process on."""
    digest, source = bundles["1.0.0"]
    fresh.wish(digest, source)
    fresh.hear_reported(succeeded(digest))
    assert fresh.process.end(signal.SIGTERM) == 0
    fresh.forget()
    run = [sys.executable, "-m", "edgepack_runtime", "--config", str(fresh.home / "device.toml")]
    command = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *run]
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with subprocess.Popen(command, **quiet) as process:
        try:
            eventually(fresh.serves, "a prediction")
            fresh.hear_reported(lambda said: "the disk failed" in said.slots[MODEL].words)
            fresh.hear(fresh.topic(Kind.TELEMETRY, MODEL), Window, lambda said: said.n >= 1)
            assert fresh.version() == "1.0.0"
        finally:
            process.terminate()
    assert process.returncode == 0


def test_an_order_that_a_file_too_many_stops_waits_and_is_told():
    def full(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    refused: list[tuple[str, ...]] = []
    orders = SimpleNamespace(obeyed=None, refuse=lambda *said: refused.append(said))
    device = SimpleNamespace(
        _without_room={}, _orders=orders, slots=SimpleNamespace(wish=full)
    )  # fmt: skip
    wish = SlotDesired(active=None)
    Daemon._wish(device, MODEL, wish)
    assert device._without_room == {MODEL: wish}
    assert refused[0][:2] == ("desired", "storage-fault")
    assert "waits for its disk: [Errno 24] Too many open files" in refused[0][2]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[serve]", "[sreve]", ["unknown field `sreve`", "serve.port"]),
        ("port = 0", "prot = 0", ["unknown field `prot`", "$.serve", "serve.port"]),
        ("port = 0", 'port = "x"', ["$.serve.port", "int"]),
        ('device = "pi-3"', 'device = "Pi 3"', ["'Pi 3' is not a valid id", "a-z"]),
        ("window_seconds = 0.5", "window_seconds = 0", ["$.telemetry.window_seconds", "0.1"]),
        ("window_seconds = 0.5", "window_seconds = nan", ["$.telemetry.window_seconds"]),
        ("port = 0", "port = 70000", ["$.serve.port", "65535"]),
        ("port = 1\n", "port = 0\n", ["$.mqtt.port", ">= 1"]),
        ("[serve]", "[serve", ["is not TOML"]),
    ],
    ids=["table", "key", "type", "id", "range", "not a number",
         "serve port", "mqtt port", "syntax"],
)  # fmt: skip
def test_a_bad_configuration_is_named_with_its_file(tmp_path, old, new, words):
    text = CONFIG.format(name="pi-3", owner=OWNER.public.fingerprint, mqtt_port=1)
    assert old in text
    path = tmp_path / "device.toml"
    path.write_text(text.replace(old, new, 1))
    ended = run_to_end("edgepack_cli", "run", "--config", path)
    assert ended.returncode == 78
    assert "Traceback" not in ended.stderr
    for one in [str(path), *words]:
        assert one in ended.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["device.toml"]


@pytest.mark.parametrize("missing", ["device.key", "mac.key", "keyring.json"])
def test_an_identity_that_is_not_there_is_named(tmp_path, missing):
    home = tmp_path / "pi-3"
    make_home(home, "pi-3", 1)
    (home / missing).unlink()
    ended = run_to_end("edgepack_cli", "run", "--config", home / "device.toml")
    assert ended.returncode == 78
    assert str(home / missing) in ended.stderr
    assert "Traceback" not in ended.stderr

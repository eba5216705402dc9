"""The attacks that The Update Framework names, made on what a device is told.

Source of the names: TUF specification 1.0.33, section 1.5.2. The attacker has the broker: he sends,
keeps back, repeats and retains what he likes; where a test says so he has a fleet key too. The
device is a real daemon. It refuses each with a code of its own, says so, and goes on serving what
it served.
"""

from __future__ import annotations

import msgspec
import pytest
from broker_process import Broker
from bundle_samples import PUBLISHER, STRANGER, fixed_key
from world_bundles import MODEL
from world_device import DAY_MS, FLEET, OWNER, PROBATION, Device, make_home
from world_registry import two_versions
from world_waiting import eventually

from edgepack_contract.keyring import Publisher, make_keyring
from edgepack_contract.keys import PrivateKey
from edgepack_contract.messages import FleetState, Ref, SlotDesired
from edgepack_contract.states import Phase, Presence
from edgepack_contract.topics import Kind, fleet_state_topic, keyring_topic

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("document-attacks")]

TOPIC = keyring_topic("default")
NEW_FLEET = fixed_key(33)
LAST_GENERATION = 2**53


@pytest.fixture(scope="module")
def broker():
    broker = Broker()
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """1.0.0 and 1.1.0: digest and address."""
    with two_versions(tmp_path_factory.mktemp("bundles")) as found:
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory, broker, bundles):
    home = tmp_path_factory.mktemp("shared") / "pi-1"
    yield from running(home, "pi-1", broker, bundles)


@pytest.fixture
def fresh(tmp_path, bundles):
    """A device and a broker of its own, for keyrings, which reach every device of a broker."""
    broker = Broker()
    try:
        yield from running(tmp_path / "pi-2", "pi-2", broker, bundles)
    finally:
        broker.kill()


def running(home, name, broker, bundles):
    """A device that runs 1.0.0; at the end it still does."""
    make_home(home, name, broker.port)
    device = Device(home, name, broker.port, FLEET)
    device.start()
    device.wish(*bundles["1.0.0"])
    device.hear_reported(succeeded(bundles["1.0.0"][0]))
    yield device
    device.send(device.topic(Kind.DESIRED), b"", retain=True)
    device.send(TOPIC, b"", retain=True)
    device.close()


@pytest.fixture
def pi(shared):
    """The shared device; whatever it was told, 1.0.0 answers."""
    assert shared.version() == "1.0.0"
    yield shared
    assert shared.version() == "1.0.0"
    shared.send(TOPIC, keyring(1), retain=True)
    shared.send(shared.topic(Kind.DESIRED), shared.signed(shared.current()), retain=True)
    shared.hear_reported(lambda said: said.refused is None)


def succeeded(digest):
    def there(said):
        slot = said.slots.get(MODEL)
        return slot and (slot.phase, slot.running) == (Phase.SUCCEEDED, digest)

    return there


def refused(device, payload, *, topic=None):
    """Retain something at the broker; the code with which the device refuses it."""
    device.send(topic or device.topic(Kind.DESIRED), payload, retain=True)
    said = device.hear_reported(lambda said: said.refused is not None)
    assert device.version() == "1.0.0"
    return said.refused.partition(":")[0]


def other(bundles):
    """What the attacker would like to run: a genuine bundle that nobody asked for."""
    digest, source = bundles["1.1.0"]
    ref = Ref(name=MODEL, digest=digest, sources=[source])
    return {MODEL: SlotDesired(active=ref, probation=PROBATION)}


def keyring(version, *, epoch=1, owner=OWNER, fleets=(FLEET,), **changes):
    publisher = Publisher(key=PUBLISHER.public.pem.decode(), names=["*"])
    fields = {"publishers": [publisher], "fleets": [one.public for one in fleets]} | changes
    return make_keyring(owner, version=version, epoch=epoch, **fields)


# --- arbitrary software ---------------------------------------------------------------------------


def test_arbitrary_software(pi, bundles):
    """Nobody but a holder of a fleet key tells a device what to run."""
    forged = pi.current(generation=pi.generation + 1, slots=other(bundles))
    assert refused(pi, pi.signed(forged, key=STRANGER)) == "unknown-key"
    # the publisher's and the owner's keys are for other things
    assert refused(pi, pi.signed(forged, key=PUBLISHER)) == "unknown-key"
    assert refused(pi, pi.signed(forged, key=OWNER)) == "unknown-key"


# --- rollback -------------------------------------------------------------------------------------


def test_rollback_to_an_earlier_document(pi, bundles):
    before = pi.signed(pi.current())
    pi.wish(*bundles["1.0.0"])
    pi.hear_reported(lambda said: said.generation == pi.generation)
    assert refused(pi, before) == "old-generation"


def test_rollback_to_an_earlier_copy_of_the_document(pi):
    now = pi.current()
    pi.send(pi.topic(Kind.DESIRED), pi.signed(now))
    earlier = msgspec.structs.replace(now, issued=now.issued - 1000)
    assert refused(pi, pi.signed(earlier)) == "replay"


def test_rollback_by_a_second_document_of_the_same_generation(pi, bundles):
    """Two documents of one generation: whoever holds the key says two things at once."""
    assert refused(pi, pi.signed(pi.current(slots=other(bundles)))) == "equivocation"


def test_rollback_to_an_earlier_keyring(fresh):
    fresh.send(TOPIC, keyring(3), retain=True)
    fresh.hear_reported(lambda said: said.keyring == 3)
    assert refused(fresh, keyring(2), topic=TOPIC) == "old-keyring"
    # nor does a restart make it forget
    fresh.process.kill()
    fresh.start()
    assert refused(fresh, keyring(2, revoked_digests=["sha256:" + "0" * 64]), topic=TOPIC) == (
        "old-keyring"
    )


# --- fast forward ---------------------------------------------------------------------------------


def test_fast_forward_of_generations_is_undone_by_an_epoch(fresh, bundles):
    """With a stolen fleet key the largest generation there is keeps the true fleet out."""
    stolen = fresh.current(generation=LAST_GENERATION)
    fresh.send(fresh.topic(Kind.DESIRED), fresh.signed(stolen), retain=True)
    fresh.hear_reported(lambda said: said.generation == LAST_GENERATION)
    assert refused(fresh, fresh.signed(fresh.current())) == "old-generation"
    fresh.send(TOPIC, keyring(2, epoch=2, fleets=[NEW_FLEET]), retain=True)
    fresh.hear_reported(lambda said: said.keyring == 2)
    anew = fresh.current(epoch=2, generation=1, slots=other(bundles))
    fresh.send(fresh.topic(Kind.DESIRED), fresh.signed(anew, key=NEW_FLEET), retain=True)
    said = fresh.hear_reported(succeeded(bundles["1.1.0"][0]))
    assert (said.epoch, said.generation, said.refused) == (2, 1, None)


def test_fast_forward_of_the_clock(pi):
    """A date from the future would make every true document look expired."""
    future = pi.current(generation=pi.generation + 1, issued=4_000_000_000_000)
    assert refused(pi, pi.signed(future)) == "future-dated"


def test_fast_forward_of_the_keyring_by_a_stranger(pi):
    forged = keyring(LAST_GENERATION, owner=STRANGER, fleets=[STRANGER])
    assert refused(pi, forged, topic=TOPIC) == "unknown-key"


# --- indefinite freeze ----------------------------------------------------------------------------


def test_indefinite_freeze(pi, bundles):
    """A document that was kept back until nobody means it any more is not obeyed."""
    now = pi.current()
    kept_back = msgspec.structs.replace(
        now,
        generation=pi.generation + 1,
        slots=other(bundles),
        issued=now.issued - 9 * DAY_MS,
        expires=now.issued - 2 * DAY_MS,
    )
    assert refused(pi, pi.signed(kept_back)) == "expired"


# --- endless data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64 * 1024 + 1, 300_000, 4_000_000])
def test_endless_data_as_a_document(pi, size):
    assert refused(pi, b" " * size) == "too-large"


def test_endless_data_as_a_keyring(pi):
    assert refused(pi, b" " * 300_000, topic=TOPIC) == "too-large"


# --- wrong recipient ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"device": "pi-2"}, "wrong-device"),
        ({"tenant": "other"}, "wrong-device"),
        ({"enrolment": PrivateKey.generate().public.fingerprint}, "wrong-enrolment"),
    ],
    ids=["another device", "another tenant", "the device before it was enrolled anew"],
)
def test_wrong_recipient(pi, changes, code):
    genuine = pi.signed(pi.current(generation=pi.generation + 1, **changes))
    assert refused(pi, genuine) == code


# --- key compromise -------------------------------------------------------------------------------


def test_key_compromise_of_a_fleet_key(fresh, bundles):
    """The owner replaces the key; the thief's documents are refused from then on, by name."""
    anew = keyring(2, fleets=[NEW_FLEET])
    fresh.send(TOPIC, anew, retain=True)
    fresh.hear_reported(lambda said: said.keyring == 2)
    thief = fresh.signed(fresh.current(generation=99, slots=other(bundles)))
    assert refused(fresh, thief) in ("unknown-key", "revoked-key")
    fresh.generation += 1
    true = fresh.current(slots=other(bundles))
    fresh.send(fresh.topic(Kind.DESIRED), fresh.signed(true, key=NEW_FLEET), retain=True)
    fresh.hear_reported(succeeded(bundles["1.1.0"][0]))


def test_key_compromise_of_a_fleet_key_does_not_reach_the_keyring(pi):
    """A fleet key is not an owner key: its thief can name no keys."""
    assert refused(pi, keyring(9, owner=FLEET, fleets=[STRANGER]), topic=TOPIC) == "unknown-key"


# --- retained poison ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "payload", "code"),
    [("desired", b"[" * 5000, "too-deep"), ("keyring", b"\xff" * 1000, "malformed-document")],
    ids=["desired", "keyring"],
)
def test_retained_poison_of_a_hostile_broker(fresh, topic, payload, code):
    """It waits for every connection; a device starts and serves all the same."""
    where = TOPIC if topic == "keyring" else fresh.topic(Kind.DESIRED)
    assert refused(fresh, payload, topic=where) == code
    fresh.process.kill()
    fresh.forget()
    fresh.start()
    eventually(fresh.serves, "a prediction")
    said = fresh.hear_reported(lambda said: said.refused is not None)
    assert said.refused.startswith(f"{code}: ")
    fresh.send(where, b"", retain=True)


def test_retained_poison_in_the_name_of_the_fleet_service(pi):
    """It is not signed, so that it can only make a device say again what it is."""
    state = FleetState(session=LAST_GENERATION, at=0, state=Presence.LOST)
    pi.send(fleet_state_topic("default"), msgspec.json.encode(state), retain=True)
    pi.send(fleet_state_topic("default"), b"garbage", retain=True)
    pi.wish(*pi_source(pi))
    pi.hear_reported(lambda said: said.generation == pi.generation)
    pi.send(fleet_state_topic("default"), b"", retain=True)


def pi_source(device):
    active = device.current().slots[MODEL].active
    return active.digest, active.sources[0]

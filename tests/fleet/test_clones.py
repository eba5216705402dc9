"""A copied identity is noticed by its sessions; what is only late is not taken for one."""

from __future__ import annotations

import pytest
from fleet_devices import NOW, ONE, FakeDevice, changed
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from edgepack_contract.messages import Health
from edgepack_contract.states import Presence
from edgepack_contract.topics import Kind
from edgepack_fleet.clones import TOLERANCE_MS, is_second_holder
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import AuditRow, Device
from edgepack_fleet.ingest import Ingest

LATER = TOLERANCE_MS + 1
DAY_MS = 86_400_000


class Setup:
    """One device that is two machines: ``old`` has the older session, ``new`` the newer one."""

    def __init__(self, folder):
        self.database = Database(f"sqlite:///{folder / 'fleet.db'}")
        self.ingest = Ingest(self.database, tenant="default", publish=lambda _: None)
        self.old, self.new = FakeDevice("pi-1", session=7), FakeDevice("pi-1", session=8)
        with self.database.write() as session:
            self.old.enrol(session)

    def take(self, *messages):
        before = self.ingest.counts.copy()
        self.ingest.commit(messages)
        return dict(self.ingest.counts - before)

    def seen(self):
        with self.database.read() as session:
            return session.get_one(Device, "pi-1").clone_seen_ms

    def audited(self):
        with self.database.read() as session:
            rows = session.scalars(select(AuditRow).where(AuditRow.action == "device.clone"))
            return [(one.actor, one.subject) for one in rows]


@pytest.fixture
def here(tmp_path):
    setup = Setup(tmp_path)
    yield setup
    setup.database.close()


def health(device):
    message = Health(
        session=device.session, sequence=device.next(), at=device.at, cpu_celsius=None,
        throttled=None, memory_available_bytes=None, memory_rss_bytes=None, disk_free_bytes=None,
        spool_items=0,
    )  # fmt: skip
    return device.sealed(Kind.HEALTH, message)


SAYS = {
    "state": lambda device: device.state(),
    "birth": lambda device: device.birth(),
    "reported": lambda device: device.reported(ONE),
    "health": health,
}


@pytest.mark.parametrize("says", SAYS.values(), ids=SAYS)
def test_what_an_older_session_says_of_a_later_time_is_a_clones(here, says):
    here.take(here.old.state(), here.new.state(), here.new.birth(), here.new.reported(ONE))
    here.old.at = NOW + LATER
    assert here.take(says(here.old)) == {"clone": 1}
    assert here.seen() == NOW + LATER
    assert here.audited() == [("fleet", "pi-1")]
    assert here.ingest.refused("pi-1") == {"clone": 1}
    with here.database.read() as session:
        assert session.get_one(Device, "pi-1").session == 8


@pytest.mark.parametrize("says", SAYS.values(), ids=SAYS)
def test_what_is_only_late_is_not(here, says):
    late = says(here.old)
    here.take(here.new.state(), here.new.birth())
    for received in (NOW, NOW + LATER, NOW + DAY_MS):
        assert here.take(changed(late, received_ms=received)) == {"old-session": 1}
    assert here.seen() is None
    assert here.audited() == []
    assert here.ingest.refused("pi-1") == {}


@pytest.mark.parametrize("presence", [Presence.LOST, Presence.OFFLINE])
def test_a_will_or_a_goodbye_is_not(here, presence):
    here.take(here.new.state())
    here.old.at = NOW + LATER
    assert here.take(here.old.state(presence)) == {"old-session": 1}
    assert here.seen() is None


def test_a_clock_that_was_ahead_before_a_restart_is_not(here):
    here.old.at = NOW + 10 * DAY_MS
    late = changed(here.old.reported(ONE), received_ms=NOW + 5)
    here.take(here.new.state())
    assert here.take(late) == {"old-session": 1}


def test_a_clock_that_was_behind_after_a_restart_is_not(here):
    """A board without a battery begins in the past until it has asked for the time."""
    late = here.old.reported(ONE)
    here.new.at = NOW - DAY_MS
    here.take(changed(here.new.state(), received_ms=NOW), late)
    assert here.seen() is None


def test_it_is_audited_once_a_day(here):
    here.take(here.new.state())
    moments = [NOW + LATER + hours * 3_600_000 for hours in (0, 1, 2, 24, 25, 48)]
    for moment in moments:
        here.old.at = moment
        assert here.take(here.old.state()) == {"clone": 1}
    days = {moment // DAY_MS for moment in moments}
    assert len(here.audited()) == len(days) == 3
    assert here.seen() == moments[-1]


def test_a_forged_message_accuses_nobody(here):
    here.take(here.new.state())
    here.old.at = NOW + LATER
    here.old.mac_key = b"x" * 32
    assert here.take(here.old.state()) == {"bad-mac": 1}
    assert here.seen() is None


@settings(max_examples=15)
@given(
    st.lists(st.sampled_from(["run", "restart"]), min_size=2, max_size=12),
    st.randoms(use_true_random=False),
    st.integers(-TOLERANCE_MS // 2, TOLERANCE_MS // 2),
)
def test_one_machine_is_never_taken_for_two(tmp_path_factory, story, rng, skew):
    """Whatever order its messages come in, however late, with a clock that is a little wrong."""
    here = Setup(tmp_path_factory.mktemp("clones"))
    device, sent, now = here.old, [], NOW
    for step in story:
        if step == "restart":
            device.session += 1
            device.sequence = 0
        for says in SAYS.values():
            now += rng.randrange(100_000)
            device.at = now + skew
            sent.append(changed(says(device), received_ms=now + rng.choice([0, 900, 10**7])))
    rng.shuffle(sent)
    latest = 0
    for message in sent:
        latest = max(latest, message.received_ms)
        here.take(changed(message, received_ms=latest))
    assert here.ingest.counts["clone"] == 0
    assert here.seen() is None
    here.database.close()


@settings(max_examples=10)
@given(st.lists(st.booleans(), min_size=4, max_size=20), st.integers(61_000, 500_000))
def test_two_machines_that_speak_in_turns_are_always_noticed(tmp_path_factory, turns, pause):
    here = Setup(tmp_path_factory.mktemp("clones"))
    here.take(here.new.state())
    expected = 0
    for number, old in enumerate(turns, start=1):
        device = here.old if old else here.new
        device.at = NOW + number * pause
        here.take(device.state())
        expected += old
    assert here.ingest.counts["clone"] == expected
    here.database.close()


@given(st.integers(0, 2**53), st.integers(0, 2**53), st.integers(0, 2**53))
def test_the_decision(said, began, now):
    assert not is_second_holder(said, began_ms=None, now_ms=now)
    expected = began + TOLERANCE_MS < said <= now + TOLERANCE_MS
    assert is_second_holder(said, began_ms=began, now_ms=now) == expected

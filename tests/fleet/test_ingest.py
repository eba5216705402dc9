"""Ingest: what devices say is taken once, and nothing else is taken."""

from __future__ import annotations

import threading

import msgspec
import pytest
from fleet_devices import HARDWARE, NOW, ONE, TWO, FakeDevice, RecordingPublisher, changed
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from edgepack_contract.messages import Acked, Health
from edgepack_contract.sealing import seal, unseal
from edgepack_contract.states import Phase, Presence
from edgepack_contract.topics import Kind, device_topic
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import Base, Device, DeviceEventRow, Gap, ReceivedInterval, WindowRow
from edgepack_fleet.devices import decommission_device, is_online, revoke_device
from edgepack_fleet.ingest import Incoming, Ingest
from edgepack_fleet.rollout.evidence import BlockQuery
from edgepack_fleet.telemetry import load_blocks


class Setup:
    """A database with two devices, and an ingest whose acknowledgements are recorded."""

    def __init__(self, folder):
        self.database = Database(f"sqlite:///{folder / 'fleet.db'}")
        self.publisher = RecordingPublisher()
        self.ingest = Ingest(self.database, tenant="default", publish=self.publisher.publish)
        self.one, self.two = FakeDevice("pi-1"), FakeDevice("pi-2")
        with self.database.write() as session:
            self.one.enrol(session)
            self.two.enrol(session)

    def take(self, *messages):
        """Commit messages as one batch and return what they were counted as."""
        before = self.ingest.counts.copy()
        self.ingest.commit(messages)
        return dict(self.ingest.counts - before)

    def acked(self):
        """(device, session, through) of every acknowledgement so far, each MAC checked."""
        keys = {device.name: device.mac_key for device in (self.one, self.two)}
        found = []
        for message in self.publisher.messages:
            name = message.topic.split("/")[3]
            body = unseal(message.payload, topic=message.topic, key=keys[name], max_bytes=9999)
            ack = msgspec.json.decode(body, type=Acked)
            found.append((name, ack.session, ack.through))
        return found

    def device(self, name="pi-1"):
        with self.database.read() as session:
            return session.get_one(Device, name)

    def count(self, table):
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(table))


@pytest.fixture
def here(tmp_path):
    setup = Setup(tmp_path)
    yield setup
    setup.database.close()


def test_a_device_introduces_itself(here):
    one = here.one
    counts = here.take(one.state(), one.birth(), one.reported(ONE, generation=3))
    assert counts == {"state": 1, "birth": 1, "reported": 1}
    row = here.device()
    assert (row.presence, row.session, row.last_seen_ms) == ("online", 7, NOW)
    assert row.hardware_class == f"amd64/{HARDWARE.model}"
    assert row.reported["slots"]["digits"]["running"] == ONE
    assert (row.generation_seen, row.epoch_seen) == (3, 1)


def test_health_is_kept(here):
    message = Health(
        session=7, sequence=1, at=NOW, cpu_celsius=55.5, throttled=False,
        memory_available_bytes=1, memory_rss_bytes=2, disk_free_bytes=3, spool_items=4,
    )  # fmt: skip
    assert here.take(here.one.sealed(Kind.HEALTH, message)) == {"health": 1}
    assert here.device().health["cpu_celsius"] == 55.5


def test_windows_and_events_share_a_sequence_and_are_acknowledged_after_the_commit(here):
    one = here.one
    counts = here.take(one.window(1), one.window(2, 4), one.event(5))
    assert counts == {"window": 2, "event": 1}
    assert here.acked() == [("pi-1", 7, 5)]
    assert (here.count(WindowRow), here.count(DeviceEventRow)) == (2, 1)


def test_what_is_sent_again_counts_once_and_is_acknowledged_again(here):
    window, event = here.one.window(1), here.one.event(2)
    here.take(window, event)
    assert here.take(window, event, window) == {"window-repeated": 2, "event-repeated": 1}
    assert here.acked() == [("pi-1", 7, 2), ("pi-1", 7, 2)]
    assert (here.count(WindowRow), here.count(DeviceEventRow)) == (1, 1)


def test_an_interval_that_overlaps_another_is_refused(here):
    here.take(here.one.window(3, 5))
    for first, last in [(1, 3), (5, 6), (2, 9), (1, 9)]:
        assert here.take(here.one.window(first, last)) == {"window-overlap": 1}
    assert here.take(here.one.window(4)) == {"window-repeated": 1}
    assert here.count(WindowRow) == 1


def test_a_hole_holds_the_acknowledgement_back_until_it_is_filled(here):
    here.take(here.one.window(1), here.one.window(3))
    assert here.acked()[-1] == ("pi-1", 7, 1)
    here.take(here.one.window(2))
    assert here.acked()[-1] == ("pi-1", 7, 3)
    assert here.count(ReceivedInterval) == 1


def test_each_session_has_a_sequence_of_its_own_and_old_ones_are_still_taken(here):
    here.take(here.one.window(1), here.one.window(2))
    here.one.session = 9
    here.take(here.one.state(), here.one.window(1))
    here.one.session = 7
    here.take(here.one.window(3))
    assert here.acked() == [("pi-1", 7, 2), ("pi-1", 9, 1), ("pi-1", 7, 3)]


@settings(max_examples=20)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6).flatmap(
        lambda sizes: st.tuples(
            st.just(sizes),
            st.permutations([i for i in range(len(sizes)) for _ in range(2)]),
            st.lists(st.booleans(), min_size=2 * len(sizes), max_size=2 * len(sizes)),
        )
    )
)
def test_any_order_with_any_repetition_gives_every_window_once(tmp_path_factory, case):
    sizes, order, cuts = case
    here = Setup(tmp_path_factory.mktemp("ingest"))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    batch = []
    for index, cut in zip(order, cuts, strict=True):
        batch.append(here.one.window(ends[index] - sizes[index] + 1, ends[index]))
        if cut:
            here.take(*batch)
            batch = []
    here.take(*batch)
    assert here.acked()[-1] == ("pi-1", 7, sum(sizes))
    assert here.count(WindowRow) == len(sizes)
    assert here.count(ReceivedInterval) == 1
    assert here.ingest.counts["window"] == len(sizes)
    here.database.close()


def test_a_block_is_by_the_fleets_clock_and_counts_only_the_models_errors(here):
    one = here.one
    one.at = NOW - 3_600_000  # its clock is an hour behind
    here.take(changed(one.state(), received_ms=NOW))
    window = one.window(1, errors=6, errors_by_kind={"backend": 2, "bad_request": 4})
    here.take(changed(window, received_ms=NOW))
    with here.database.read() as session:
        row = session.scalars(select(WindowRow)).one()
        block = msgspec.json.decode(row.block)
    assert row.start_ms == block["start_ms"] == NOW - 1000
    assert (block["n"], block["errors"]) == (42, 2)
    assert (row.n, row.errors) == (40, 6)


@pytest.mark.parametrize("role", ["shadow", "split"])
def test_a_rollout_is_not_judged_by_what_its_bundle_did_as_a_candidate(here, role):
    start = NOW - 1000
    here.take(
        here.one.window(1, bundle=TWO),
        here.one.window(2, bundle=TWO, role=role, n=7, rows=7, errors=7,
                        errors_by_kind={"backend": 7}),
        here.one.window(3, bundle=TWO),
    )  # fmt: skip
    with here.database.read() as session:
        found = load_blocks(session, [BlockQuery("pi-1", TWO, start - 60_000)])
        answered = session.scalar(select(func.sum(WindowRow.n)))
    assert [(block.n, block.errors) for block in found["pi-1"][TWO]] == [(40, 0), (40, 0)]
    # a split answers requests, a shadow answers nobody
    assert answered == (80 if role == "shadow" else 87)


def test_a_backlog_does_not_move_the_clock(here):
    """The least delay counts: old windows that arrive late say nothing about the clock."""
    here.take(here.one.window(1, start_ms=NOW - 9_000_000, end_ms=NOW - 8_999_000))
    here.take(here.one.state())
    here.take(here.one.window(2, start_ms=NOW - 8_000_000, end_ms=NOW - 7_999_000))
    with here.database.read() as session:
        assert session.get_one(WindowRow, ("pi-1", "digits", 7, 2)).start_ms == NOW - 8_000_000


class TestOrder:
    def test_repeated_and_older_messages_of_a_session_are_dropped(self, here):
        old, new = here.one.reported(ONE), here.one.reported(TWO)
        here.take(here.one.state(), new)
        assert here.take(old, new) == {"repeated": 2}
        assert here.device().reported["slots"]["digits"]["running"] == TWO

    def test_kinds_do_not_overtake_each_other(self, here):
        state, birth, reported = here.one.state(), here.one.birth(), here.one.reported(ONE)
        assert here.take(reported, state, birth) == {"reported": 1, "state": 1, "birth": 1}

    def test_an_older_session_is_dropped_and_a_newer_one_begins_again(self, here):
        old = here.one.reported(ONE)
        here.one.session, here.one.sequence = 8, 0
        assert here.take(here.one.reported(TWO)) == {"reported": 1}
        assert here.take(old) == {"old-session": 1}
        assert here.device().reported["slots"]["digits"]["running"] == TWO

    def test_the_will_of_this_session_counts_and_that_of_an_older_one_does_not(self, here):
        lost = here.one.state(Presence.LOST, sequence=0)
        here.take(here.one.state(), lost)
        assert here.device().presence == "lost"
        here.take(here.one.state())
        assert here.device().presence == "online"
        here.one.session = 8
        here.take(here.one.state())
        assert here.take(lost) == {"old-session": 1}
        assert here.device().presence == "online"

    @pytest.mark.parametrize("kind", ["health", "window"])
    def test_a_device_that_talks_on_outlives_the_will_of_its_last_connection(self, here, kind):
        """Brokers may find out late that a connection has ended, when there is another one."""
        here.take(here.one.state())
        here.take(here.one.state(Presence.LOST, sequence=0))
        message = SAYS[kind](here.one)
        here.take(message)
        assert here.device().presence == "online"
        here.take(here.one.state(Presence.LOST, sequence=0))
        here.take(message)
        assert here.device().presence == "lost", "a repetition is no sign of life"

    @pytest.mark.parametrize("kind", ["birth", "reported"])
    def test_what_a_broker_retains_of_a_lost_device_does_not_bring_it_back(self, here, kind):
        here.take(here.one.state(Presence.LOST, sequence=0), SAYS[kind](here.one))
        assert here.device().presence == "lost"

    def test_who_has_said_goodbye_is_gone_whatever_comes_late(self, here):
        here.take(here.one.state(Presence.OFFLINE), SAYS["window"](here.one))
        assert here.device().presence == "offline"

    def test_a_will_proves_no_life(self, here):
        here.take(here.one.state())
        here.one.at = NOW + 500_000
        here.take(here.one.state(Presence.LOST, sequence=0))
        assert here.device().last_seen_ms == NOW

    def test_the_lease_is_the_fleets_own(self, here):
        here.take(here.one.state())
        assert is_online(here.device(), now_ms=NOW + 1000, lease_ms=1000)
        assert not is_online(here.device(), now_ms=NOW + 1001, lease_ms=1000)


def forged(here):
    message = here.one.reported(TWO)
    return changed(message, payload=message.payload.replace(b"22222222", b"33333333"))


def to_another_device(here):
    return changed(here.one.reported(ONE), topic=device_topic("default", "pi-2", Kind.REPORTED))


def to_another_kind(here):
    return changed(here.one.state(), topic=device_topic("default", "pi-1", Kind.BIRTH))


def of_an_unknown_device(here):
    return FakeDevice("pi-9").state()


def of_another_tenant(here):
    return changed(here.one.state(), topic=device_topic("acme", "pi-1", Kind.STATE))


def a_desired_document(here):
    return here.one.sealed(Kind.DESIRED, {"a": 1})


def without_a_mac(here):
    return changed(here.one.state(), payload=b'{"session":7}')


def not_json(here):
    return here.one.sealed(Kind.STATE, b'{"session": }')


def with_an_unknown_field(here):
    return here.one.sealed(Kind.STATE, {"session": 1, "sequence": 1, "at": 1, "x": 1})


def with_a_huge_session(here):
    message = {"session": 2**80, "sequence": 1, "at": 1, "state": "online"}
    return here.one.sealed(Kind.STATE, message)


def with_a_huge_generation(here):
    return here.one.reported(ONE, generation=2**60)


def with_half_a_character(here):
    event = here.one.event(1)
    plain = unseal(event.payload, topic=event.topic, key=here.one.mac_key, max_bytes=9999)
    body = plain.replace(b"it crashed", b"\\ud800")
    return changed(event, payload=seal(body, topic=event.topic, key=here.one.mac_key))


def with_an_infinity(here):
    report = here.one.reported(ONE)
    plain = unseal(report.payload, topic=report.topic, key=here.one.mac_key, max_bytes=9999)
    body = plain.replace(b'"progress":0.0', b'"progress":1e999')
    return changed(report, payload=seal(body, topic=report.topic, key=here.one.mac_key))


def too_large(here):
    return changed(here.one.state(), payload=b"{" + b" " * 300_000 + b"}")


def empty(here):
    return changed(here.one.state(), payload=b"")


def no_topic_of_ours(here):
    return changed(here.one.state(), topic="edgepack/v1/default/pi-1/state/../../x")


def a_window_on_another_slots_topic(here):
    window = here.one.window(1)
    plain = unseal(window.payload, topic=window.topic, key=here.one.mac_key, max_bytes=9999)
    return here.one.sealed(Kind.TELEMETRY, plain, "other")


def an_event_on_another_kinds_topic(here):
    event = here.one.event(1)
    plain = unseal(event.payload, topic=event.topic, key=here.one.mac_key, max_bytes=9999)
    return here.one.sealed(Kind.EVENT, plain, "drift")


def an_event_of_a_slot_that_is_no_name(here):
    event = here.one.event(1)
    plain = unseal(event.payload, topic=event.topic, key=here.one.mac_key, max_bytes=9999)
    return here.one.sealed(Kind.EVENT, plain.replace(b'"digits"', b'"+/#"'), "crash")


def a_command_reply(here):
    return here.one.sealed(Kind.ACK, {"a": 1}, "ping")


BAD = [
    (forged, "bad-mac"),
    (to_another_device, "bad-mac"),
    (to_another_kind, "bad-mac"),
    (of_an_unknown_device, "unknown-device"),
    (of_another_tenant, "not-for-us"),
    (a_desired_document, "not-for-us"),
    (without_a_mac, "no-mac"),
    (not_json, "malformed-document"),
    (with_an_unknown_field, "malformed-document"),
    (with_a_huge_session, "out-of-range"),
    (with_a_huge_generation, "out-of-range"),
    (with_half_a_character, "bad-value"),
    (with_an_infinity, "bad-value"),
    (too_large, "too-large"),
    (empty, "cleared"),
    (no_topic_of_ours, "bad-topic"),
    (a_window_on_another_slots_topic, "wrong-slot"),
    (an_event_on_another_kinds_topic, "wrong-kind"),
    (an_event_of_a_slot_that_is_no_name, "wrong-slot"),
    (a_command_reply, "unexpected"),
]


@pytest.mark.parametrize(("make", "reason"), BAD, ids=[make.__name__ for make, _ in BAD])
def test_bad_messages_are_counted_and_change_nothing_for_the_good_ones_beside_them(
    here, make, reason
):
    here.take(here.two.state())
    good = here.two.window(1)
    assert here.take(make(here), good) == {reason: 1, "window": 1}
    assert here.device().reported is None
    assert here.count(WindowRow) == 1
    assert here.acked() == [("pi-2", 7, 1)]


def health_of(device):
    message = Health(
        session=device.session, sequence=device.next(), at=device.at, cpu_celsius=1.0,
        throttled=None, memory_available_bytes=None, memory_rss_bytes=None, disk_free_bytes=None,
        spool_items=0,
    )  # fmt: skip
    return device.sealed(Kind.HEALTH, message)


SAYS = {
    "state": lambda device: device.state(),
    "will": lambda device: device.state(Presence.LOST, sequence=0),
    "birth": lambda device: device.birth(),
    "reported": lambda device: device.reported(TWO, generation=9),
    "health": health_of,
    "window": lambda device: device.window(device.next()),
    "event": lambda device: device.event(device.next()),
}


def opened(device, message):
    return unseal(message.payload, topic=message.topic, key=device.mac_key, max_bytes=99_999)


def no_mac(here, message):
    return changed(message, payload=opened(here.one, message))


def forged_mac(here, message):
    return changed(message, payload=message.payload[:-66] + b"0" * 64 + b'"}')


def made_with_another_key(here, message):
    body = opened(here.one, message)
    return changed(message, payload=seal(body, topic=message.topic, key=b"k" * 32))


def of_another_device(here, message):
    other = FakeDevice("pi-2")
    return changed(message, payload=seal(opened(here.one, message), topic=message.topic,
                                         key=other.mac_key))  # fmt: skip


def on_another_devices_topic(here, message):
    return changed(message, topic=message.topic.replace("/pi-1/", "/pi-2/"))


def on_another_topic_of_its_own(here, message):
    *root, kind = message.topic.removeprefix("edgepack/v1/default/pi-1/").split("/")
    other = f"{root[0]}/other" if root else {"state": "reported"}.get(kind, "state")
    return changed(message, topic=f"edgepack/v1/default/pi-1/{other}")


def altered(here, message):
    at = message.payload.index(b'"session":7') + 10
    return changed(message, payload=message.payload[:at] + b"8" + message.payload[at + 1 :])


def truncated(here, message):
    return changed(message, payload=message.payload[:-1])


def cut_before_the_mac(here, message):
    return changed(message, payload=message.payload[: message.payload.rindex(b',"mac"')])


def encoded_anew(here, message):
    """The same JSON with a blank more: what was sealed are bytes."""
    return changed(message, payload=message.payload.replace(b'":', b'": ', 1))


def with_two_macs(here, message):
    return changed(message, payload=seal(message.payload, topic=message.topic, key=b"k" * 32))


ATTACKS = [
    (no_mac, "no-mac"),
    (forged_mac, "bad-mac"),
    (made_with_another_key, "bad-mac"),
    (of_another_device, "bad-mac"),
    (on_another_devices_topic, "bad-mac"),
    (on_another_topic_of_its_own, "bad-mac"),
    (altered, "bad-mac"),
    (truncated, "no-mac"),
    (cut_before_the_mac, "no-mac"),
    (encoded_anew, "bad-mac"),
    (with_two_macs, "bad-mac"),
]


def everything(here):
    """The whole database, as it is."""
    with here.database.read() as session:
        return {
            table.name: session.execute(select(table)).all()
            for table in Base.metadata.sorted_tables
        }


@pytest.mark.parametrize("kind", SAYS)
@pytest.mark.parametrize(("attack", "reason"), ATTACKS, ids=[make.__name__ for make, _ in ATTACKS])
def test_what_the_device_did_not_send_changes_nothing(here, kind, attack, reason):
    here.take(here.one.state(), here.one.birth(), here.one.window(1), here.two.state())
    here.one.sequence = 10
    message = attack(here, SAYS[kind](here.one))
    before, acked = everything(here), here.acked()
    assert here.take(message) == {reason: 1}
    assert everything(here) == before
    assert here.acked() == acked
    victim = message.topic.split("/")[3]
    assert here.ingest.refused(victim) == {reason: 1}
    assert here.ingest.refused("pi-9") == {}


REPLAYED = {"window": "window-repeated", "event": "event-repeated"}


@pytest.mark.parametrize("kind", [kind for kind in SAYS if kind != "will"])
def test_what_the_device_sent_before_changes_nothing(here, kind):
    here.take(here.one.state(), here.one.birth())
    message = SAYS[kind](here.one)
    here.take(message)
    before = everything(here)
    again = changed(message, received_ms=NOW + 5)
    assert here.take(again) == {REPLAYED.get(kind, "repeated"): 1}
    assert everything(here) == before


def test_the_key_of_an_earlier_enrolment_is_worthless(here):
    old = [says(here.one) for says in SAYS.values()]
    with here.database.write() as session:
        session.get_one(Device, "pi-1").mac_key = b"n" * 32
    assert here.take(*old) == {"bad-mac": len(SAYS)}
    here.one.mac_key = b"n" * 32
    assert here.take(here.one.state()) == {"state": 1}


@pytest.mark.parametrize("end", [revoke_device, decommission_device])
@pytest.mark.parametrize("kind", SAYS)
def test_who_is_no_member_is_not_heard(here, kind, end):
    here.take(here.one.state(), here.one.birth())
    with here.database.write() as session:
        end(session, "pi-1", now_ms=NOW)
    here.one.sequence = 10
    before = everything(here)
    assert here.take(SAYS[kind](here.one)) == {"not-accepted": 1}
    assert everything(here) == before
    assert here.acked() == []


@settings(max_examples=20)
@given(st.binary(max_size=200), st.text(max_size=80))
def test_nothing_raises_out_of_ingest(tmp_path_factory, payload, topic):
    here = Setup(tmp_path_factory.mktemp("ingest"))
    ours = device_topic("default", "pi-1", Kind.STATE)
    here.ingest.commit([Incoming(topic, payload, NOW), Incoming(ours, payload, NOW)])
    assert sum(here.ingest.counts.values()) == 2
    here.database.close()


def test_a_message_that_breaks_its_transaction_goes_alone(here, monkeypatch):
    take = Ingest._addressed

    def breaks(self, session, message):
        if message.topic.endswith("pi-1/state"):
            raise RuntimeError("unforeseen")
        return take(self, session, message)

    monkeypatch.setattr(Ingest, "_addressed", breaks)
    counts = here.take(here.one.state(), here.two.state(), here.two.window(1))
    assert counts == {"internal": 1, "state": 1, "window": 1}
    assert here.device("pi-2").presence == "online"


def test_nothing_is_acknowledged_when_the_commit_fails(here, monkeypatch):
    def full(*_):
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr("edgepack_fleet.ingest.through", full)
    with pytest.raises(OperationalError):
        here.ingest.commit([here.one.window(1)])
    assert here.publisher.messages == []
    assert here.count(WindowRow) == 0
    monkeypatch.undo()
    assert here.take(here.one.window(1)) == {"window": 1}


def test_a_hole_that_stays_becomes_a_gap_and_the_device_may_go_on(here):
    here.take(here.one.window(41), here.one.window(43))
    assert here.acked()[-1] == ("pi-1", 7, 0)
    assert here.ingest.declare_gaps(before_ms=NOW - 1, now_ms=NOW) == 0
    assert here.ingest.declare_gaps(before_ms=NOW, now_ms=NOW + 5) == 2
    assert here.acked()[-1] == ("pi-1", 7, 43)
    with here.database.read() as session:
        gaps = [(gap.first, gap.last) for gap in session.scalars(select(Gap).order_by(Gap.first))]
    assert gaps == [(1, 40), (42, 42)]
    assert here.take(here.one.window(44)) == {"window": 1}
    assert here.acked()[-1] == ("pi-1", 7, 44)
    assert here.ingest.declare_gaps(before_ms=NOW + 9, now_ms=NOW + 9) == 0


def test_the_thread_commits_what_is_queued_before_it_stops(here):
    here.ingest.start()
    senders = [
        threading.Thread(
            target=lambda device=device: [
                here.ingest.offer(device.window(i)) for i in range(1, 200)
            ]
        )
        for device in (here.one, here.two)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    here.ingest.stop()
    assert here.ingest.counts == {"window": 398}
    assert set(here.acked()) >= {("pi-1", 7, 199), ("pi-2", 7, 199)}
    assert here.take(here.one.reported(ONE, phase=Phase.IDLE)) == {"reported": 1}

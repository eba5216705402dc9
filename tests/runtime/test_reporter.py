"""What is to be said stays on the disk until the fleet says that it has it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter

import pytest

from edgepack_contract.canonical import canonical_json
from edgepack_contract.messages import Acked, Event, EventKind
from edgepack_contract.sealing import seal
from edgepack_contract.topics import Kind, device_topic, parse_topic
from edgepack_contract.window import WindowBody
from edgepack_runtime.reporter import Reporter, open_spool
from edgepack_runtime.telemetry.spool import IN_FLIGHT, Spool, SpoolError

KEY = bytes(range(32))
SESSION = 7
BUNDLE = "sha256:" + "1" * 64


def body(slot="main"):
    return WindowBody(slot=slot, bundle=BUNDLE, reference=None, start_ms=0, end_ms=1000)


def event(session=SESSION):
    return Event(
        session=session, sequence=0, at=5, slot="main", kind=EventKind.FALLBACK, digest=BUNDLE,
        code="errors", words="it broke",
    )  # fmt: skip


def acked(through, *, session=SESSION, slot="main", key=KEY):
    topic = device_topic("default", "pi-1", Kind.ACKED, slot)
    message = canonical_json(Acked(session=session, through=through))
    return parse_topic(topic), seal(message, topic=topic, key=key)


class RecordingLink:
    """Takes what it is given while it is connected, at most ``room`` messages."""

    def __init__(self):
        self.connected = True
        self.room = 10**9
        self.sent = []
        self.retained = []

    def send(self, kind, name, raw, *, qos):
        if not self.connected or self.room <= 0:
            return False
        self.room -= 1
        self.sent.append((kind, name, json.loads(raw)))
        return True

    def retain(self, kind, raw):
        self.retained.append((kind, json.loads(raw)))

    def sequences(self):
        return [one["last"] if kind == Kind.TELEMETRY else one["sequence"]
                for kind, _, one in self.sent]  # fmt: skip


class Here:
    def __init__(self, spool):
        self.link = RecordingLink()
        self.spool = spool
        self.reporter = Reporter(spool, self.link, session=SESSION, mac_key=KEY)

    def waiting(self):
        return self.spool.backlog().items


@pytest.fixture
def here(tmp_path):
    here = Here(Spool(tmp_path / "spool.db"))
    yield here
    here.reporter.close()


def test_windows_and_events_go_out_on_their_topics_in_one_sequence(here):
    async def run():
        here.reporter.keep_event(event()).result(10)
        await here.reporter.keep_windows([body(), body("second")])

    asyncio.run(run())
    assert [(kind, name) for kind, name, _ in here.link.sent] == [
        (Kind.EVENT, "fallback"), (Kind.TELEMETRY, "main"), (Kind.TELEMETRY, "second")
    ]  # fmt: skip
    assert here.link.sequences() == [1, 2, 1]
    assert here.waiting() == 3
    assert here.reporter.backlog.handed == 3


def test_never_more_than_twenty_wait_for_the_fleet(here):
    async def run():
        await here.reporter.keep_windows([body() for _ in range(IN_FLIGHT + 15)])
        await here.reporter.pump()
        assert here.link.sequences() == list(range(1, IN_FLIGHT + 1))
        await here.reporter.acknowledged(*acked(5))

    asyncio.run(run())
    assert here.link.sequences() == list(range(1, IN_FLIGHT + 6))
    assert here.waiting() == IN_FLIGHT + 10


def test_without_a_connection_it_keeps_and_with_one_it_sends(here):
    here.link.connected = False

    async def run():
        await here.reporter.keep_windows([body(), body()])
        assert here.link.sent == []
        here.link.connected = True
        await here.reporter.connected()

    asyncio.run(run())
    assert here.link.sequences() == [1, 2]


def test_after_a_reconnect_everything_unacknowledged_goes_again_and_nothing_else(here):
    async def run():
        await here.reporter.keep_windows([body() for _ in range(4)])
        await here.reporter.acknowledged(*acked(2))
        here.link.sent.clear()
        await here.reporter.connected()

    asyncio.run(run())
    assert here.link.sequences() == [3, 4]


def test_acknowledged_items_are_gone_for_good(here, tmp_path):
    async def run():
        await here.reporter.keep_windows([body(), body(), body("second")])
        await here.reporter.acknowledged(*acked(2))

    asyncio.run(run())
    with Spool(tmp_path / "spool.db") as reopened:
        assert [item.slot for item in reopened.hand_over()] == ["second"]


@pytest.mark.parametrize(
    "forged",
    [
        lambda: acked(9, key=bytes(32)),
        lambda: (acked(9)[0], acked(9, slot="second")[1]),
        lambda: (acked(9)[0], b""),
        lambda: (acked(9)[0], b"{}"),
        lambda: (acked(9)[0], acked(9)[1][:-1]),
        lambda: (acked(9)[0], seal(b'{"x":1}', topic=str(acked(9)[0]), key=KEY)),
        lambda: (acked(9)[0], b"{" + b" " * 300_000 + acked(9)[1][1:]),
    ],
    ids=["other key", "other topic", "empty", "no mac", "cut off", "other shape", "too large"],
)
def test_what_is_no_true_acknowledgement_deletes_nothing(here, forged, caplog):
    async def run():
        await here.reporter.keep_windows([body(), body()])
        await here.reporter.acknowledged(*forged())

    asyncio.run(run())
    assert here.waiting() == 2
    assert [record.event for record in caplog.records] == ["ack_ignored"]


@pytest.mark.parametrize(
    "ack", [acked(9, session=6), acked(9, slot="second"), acked(0)],
    ids=["other session", "other slot", "nothing yet"],
)  # fmt: skip
def test_an_acknowledgement_is_for_one_session_and_slot(here, ack):
    async def run():
        await here.reporter.keep_windows([body(), body()])
        await here.reporter.acknowledged(*ack)

    asyncio.run(run())
    assert here.waiting() == 2


def test_what_the_client_had_no_room_for_is_handed_over_again(here):
    here.link.room = 3

    async def run():
        await here.reporter.keep_windows([body() for _ in range(5)])
        assert here.link.sequences() == [1, 2, 3]
        here.link.room = 10**9
        await here.reporter.pump()

    asyncio.run(run())
    assert set(here.link.sequences()) == {1, 2, 3, 4, 5}


def test_many_at_once_send_every_item_once(here):
    async def run():
        await asyncio.gather(*(here.reporter.keep_windows([body()]) for _ in range(12)))

    asyncio.run(run())
    assert Counter(here.link.sequences()) == Counter(range(1, 13))


def test_a_spool_that_fails_costs_telemetry_only(here, caplog):
    here.spool.close()

    async def run():
        await here.reporter.keep_windows([body()])
        await here.reporter.connected()

    asyncio.run(run())
    assert here.link.sent == []
    assert {record.event for record in caplog.records} == {"spool_failed"}
    with pytest.raises(SpoolError):
        here.reporter.keep_event(event()).result(10)


def test_what_is_retained_and_what_is_mentioned(here):
    here.reporter.say(Kind.BIRTH, Acked(session=1, through=2))
    here.reporter.mention(Kind.HEALTH, Acked(session=1, through=3))
    assert here.link.retained == [(Kind.BIRTH, {"session": 1, "through": 2})]
    assert here.link.sent == [(Kind.HEALTH, None, {"session": 1, "through": 3})]


def test_a_damaged_spool_is_moved_aside_and_a_new_one_begun(tmp_path, caplog):
    path = tmp_path / "spool.db"
    with Spool(path) as spool:
        spool.append_window(SESSION, body())
    path.write_bytes(b"not a database" * 1000)
    path.with_name("spool.db-wal").write_bytes(b"its log")
    with open_spool(path, max_bytes=10**6) as spool:
        assert spool.backlog().items == 0
        assert spool.append_window(SESSION, body()) == 1
    assert path.with_name("spool.db.damaged").read_bytes().startswith(b"not a database")
    assert [record.event for record in caplog.records] == ["spool_failed"]
    with Spool(path) as spool:
        assert spool.backlog().items == 1


def test_a_disk_that_takes_no_spool_leaves_it_in_memory(tmp_path, caplog):
    path = tmp_path / "spool.db"
    path.mkdir()
    with open_spool(path, max_bytes=10**6) as spool:
        assert spool.append_window(SESSION, body()) == 1
        assert [item.last for item in spool.hand_over()] == [1]
    assert path.is_dir()
    assert "cannot be opened" in caplog.text


def test_a_spool_of_another_program_is_not_touched(tmp_path):
    """A lock that somebody else holds is no damage: what waits in the file is still good."""
    path = tmp_path / "spool.db"
    with Spool(path) as spool:
        spool.append_window(SESSION, body())
    holder = sqlite3.connect(path, timeout=0, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN IMMEDIATE")
    try:
        with open_spool(path, max_bytes=10**6) as spool:
            assert spool.backlog().items == 0
    finally:
        holder.close()
    assert not path.with_name("spool.db.damaged").exists()
    with Spool(path) as spool:
        assert spool.backlog().items == 1

"""The audit log: whatever is done to it or to a rollout's events afterwards is found."""

from __future__ import annotations

import pytest
from fleet_devices import NOW
from fleet_world import AT_ONCE, World
from sqlalchemy import text

from edgepack_contract.errors import EdgepackError
from edgepack_fleet import auditing
from edgepack_fleet.auditing import AUDIT, Head, parse_head, verify_log
from edgepack_fleet.auditlog import GENESIS, append_audit
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import Group


def add(session, number):
    append_audit(
        session, at_ms=NOW + number, actor="ann", action="rollout.pause",
        subject=f"r{number}", detail={"group": "all", "n": number, "list": [1.5, None, "ü"]},
    )  # fmt: skip


@pytest.fixture(params=[2, 500], ids=["small batches", "one batch"])
def database(tmp_path, request, monkeypatch):
    monkeypatch.setattr(auditing, "BATCH", request.param)
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    with database.write() as session:
        for number in range(6):
            add(session, number)
    yield database
    database.close()


def verify(database, known=None):
    with database.read() as session:
        return verify_log(session, known)


def do(database, *statements):
    with database.write() as session:
        for statement in statements:
            session.execute(text(statement))


def test_an_untouched_log_is_whole(database):
    report = verify(database)
    assert report.broken == ()
    assert report.head.sequence == 6
    assert verify(database, report.head).broken == ()
    assert parse_head(str(report.head)) == report.head


def test_an_empty_log_is_whole(database):
    do(database, "DELETE FROM audit")
    assert verify(database).head == Head(0, GENESIS)
    assert verify(database).broken == ()


SWAP = (
    "UPDATE audit SET sequence = 99 WHERE sequence = 3",
    "UPDATE audit SET sequence = 3 WHERE sequence = 4",
    "UPDATE audit SET sequence = 4 WHERE sequence = 99",
)
INSERT = (
    "UPDATE audit SET sequence = sequence + 100 WHERE sequence > 2",
    "UPDATE audit SET sequence = sequence - 99 WHERE sequence > 100",
    (
        "INSERT INTO audit SELECT 3, at_ms, actor, action, subject, detail, previous_hash, hash "
        "FROM audit WHERE sequence = 2"
    ),
)


@pytest.mark.parametrize(
    "touches",
    [
        ("UPDATE audit SET at_ms = at_ms + 1 WHERE sequence = 3",),
        ("UPDATE audit SET at_ms = 'yesterday' WHERE sequence = 3",),
        ("UPDATE audit SET actor = 'bob' WHERE sequence = 3",),
        ("UPDATE audit SET actor = x'00ff' WHERE sequence = 3",),
        ("UPDATE audit SET action = 'rollout.resume' WHERE sequence = 3",),
        ("UPDATE audit SET subject = 'r9' WHERE sequence = 3",),
        ("UPDATE audit SET detail = '{}' WHERE sequence = 3",),
        ("UPDATE audit SET detail = 'not json' WHERE sequence = 3",),
        ("UPDATE audit SET detail = 'NaN' WHERE sequence = 3",),
        ("UPDATE audit SET previous_hash = hash WHERE sequence = 3",),
        ("UPDATE audit SET hash = previous_hash WHERE sequence = 3",),
        ("UPDATE audit SET sequence = 30 WHERE sequence = 3",),
        ("DELETE FROM audit WHERE sequence = 3",),
        SWAP,
        INSERT,
    ],
    ids=lambda touches: touches[-1][:60],
)
def test_it_breaks_where_it_was_touched(database, touches):
    do(database, *touches)
    (fault,) = verify(database).broken
    assert (fault.chain, fault.sequence) == (AUDIT, 3)
    assert "audit entry 3 " in fault.words
    assert verify(database).head.sequence == 2


def test_a_tail_that_was_cut_off_shows_against_a_head_that_was_kept(database):
    head = verify(database).head
    do(database, "DELETE FROM audit WHERE sequence > 4")
    assert verify(database).broken == ()
    (fault,) = verify(database, head).broken
    assert "cut off" in fault.words
    # filling it up again, with hashes that are right, does not help
    with database.write() as session:
        for number in range(3):
            add(session, number + 50)
    assert verify(database).broken == ()
    (fault,) = verify(database, head).broken
    assert "written anew" in fault.words


@pytest.mark.parametrize("words", ["", "5", "x:" + "a" * 64, "5:" + "a" * 63, "-5:" + "a" * 64])
def test_what_is_no_head_is_refused(words):
    with pytest.raises(EdgepackError, match="SEQUENCE:HASH"):
        parse_head(words)


def test_it_is_part_of_the_transaction_of_what_was_done(database):
    def half() -> None:
        with database.write() as session:
            session.add(Group(name="half", labels={}, created_ms=NOW))
            add(session, 6)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    with database.write() as session:
        add(session, 7)
    assert verify(database).head.sequence == 7


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(auditing, "BATCH", 3)
    world = World(tmp_path, devices=2)
    world.push("1.0.0")
    world.rollout_id = world.roll_out("1.0.0", AT_ONCE)
    with world.database.write() as session:
        append_audit(
            session, at_ms=NOW, actor="ann", action="rollout.start", subject=world.rollout_id,
            detail={},
        )  # fmt: skip
    yield world
    world.close()


def test_the_events_of_a_rollout_are_verified_too(world):
    report = verify(world.database)
    assert report.broken == ()
    assert report.rollouts == 1
    assert report.events == world.rollout(world.rollout_id).sequence > 6


@pytest.mark.parametrize(
    ("touch", "place"),
    [
        ("UPDATE rollout_events SET at_ms = at_ms + 1 WHERE sequence = 4", 4),
        ("UPDATE rollout_events SET actor = 'bob' WHERE sequence = 4", 4),
        ("UPDATE rollout_events SET cause = 'resumed' WHERE sequence = 4", 4),
        ("UPDATE rollout_events SET words = 'all is well' WHERE sequence = 4", 4),
        ("UPDATE rollout_events SET body = CAST('{}' AS BLOB) WHERE sequence = 4", 4),
        ("UPDATE rollout_events SET body = 'text' WHERE sequence = 4", 4),
        ("UPDATE rollout_events SET previous_hash = hash WHERE sequence = 4", 4),
        ("UPDATE rollout_events SET hash = previous_hash WHERE sequence = 4", 4),
        ("UPDATE rollout_events SET sequence = 40 WHERE sequence = 4", 4),
        ("DELETE FROM rollout_events WHERE sequence = 4", 4),
        ("DELETE FROM rollout_events WHERE sequence > 4", 5),
        ("DELETE FROM rollout_events", 1),
        ("UPDATE rollouts SET document = replace(document, '1.0.0', '1.0.1')", None),
        ("UPDATE rollouts SET document = x'00'", None),
    ],
)
def test_a_touched_event_is_found(world, touch, place):
    do(world.database, touch)
    (fault,) = verify(world.database).broken
    assert fault.chain == world.rollout_id
    assert place in (None, fault.sequence)
    assert world.rollout_id in fault.words


def test_a_rollout_that_was_removed_as_a_whole_is_missed(world):
    do(world.database, "DELETE FROM rollout_events", "DELETE FROM rollouts")
    (fault,) = verify(world.database).broken
    assert "is gone" in fault.words

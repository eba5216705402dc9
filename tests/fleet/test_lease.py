"""The lease: one holder, an epoch per change, and no commit without it."""

from __future__ import annotations

import pytest
from fleet_devices import NOW
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import Group
from edgepack_fleet.errors import LeaseLostError
from edgepack_fleet.lease import DRIVER, acquire, check, release

TTL = 15_000


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    yield database
    database.close()


def take(database, holder, now_ms, **more):
    with database.write() as session:
        return acquire(session, name=DRIVER, holder=holder, now_ms=now_ms, ttl_ms=TTL, **more)


def test_one_holder_at_a_time(database):
    mine = take(database, "a", NOW)
    assert mine.epoch == 1
    assert take(database, "b", NOW + TTL - 1) is None
    assert take(database, "a", NOW + TTL - 1) == mine
    assert take(database, "b", NOW + TTL) is None
    theirs = take(database, "b", NOW + 2 * TTL)
    assert theirs.epoch == 2


def test_a_former_holder_cannot_commit(database):
    mine = take(database, "a", NOW)
    take(database, "b", NOW + TTL)

    def drive() -> None:
        with database.write() as session:
            session.add(Group(name="late", labels={}, created_ms=NOW))
            check(session, mine, now_ms=NOW + TTL)

    with pytest.raises(LeaseLostError):
        drive()
    with database.read() as session:
        assert session.get(Group, "late") is None


def test_a_lease_that_ran_out_is_no_lease_even_if_nobody_took_it(database):
    mine = take(database, "a", NOW)
    with database.write() as session:
        check(session, mine, now_ms=NOW + TTL - 1)
        with pytest.raises(LeaseLostError):
            check(session, mine, now_ms=NOW + TTL)


def test_who_is_alone_need_not_wait_and_still_gets_a_new_epoch(database):
    mine = take(database, "a", NOW)
    theirs = take(database, "b", NOW + 1, alone=True)
    assert theirs.epoch == 2
    with database.write() as session, pytest.raises(LeaseLostError):
        check(session, mine, now_ms=NOW + 1)


def test_a_released_lease_is_free_at_once(database):
    mine = take(database, "a", NOW)
    with database.write() as session:
        release(session, mine, now_ms=NOW + 1)
    assert take(database, "b", NOW + 1).epoch == 2


def test_releasing_what_another_holds_does_nothing(database):
    mine = take(database, "a", NOW)
    theirs = take(database, "b", NOW + TTL)
    with database.write() as session:
        release(session, mine, now_ms=NOW + TTL + 1)
        check(session, theirs, now_ms=NOW + TTL + 1)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2 * TTL)), max_size=20))
def test_at_no_time_do_two_hold_it(tmp_path_factory, steps):
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('lease') / 'fleet.db'}")
    now, leases = NOW, {}
    for holder, later in steps:
        now += later
        lease = take(database, holder, now)
        if lease is not None:
            leases[holder] = lease
        held = 0
        with database.write() as session:
            for one in leases.values():
                try:
                    check(session, one, now_ms=now)
                except LeaseLostError:
                    continue
                held += 1
        assert held <= 1
    database.close()

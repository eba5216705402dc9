"""The audit log: a chain that breaks at the row that was touched."""

from __future__ import annotations

import pytest
from fleet_devices import NOW
from sqlalchemy import text

from edgepack_fleet.auditlog import append_audit, broken_audit
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import Group


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    with database.write() as session:
        for number in range(5):
            append_audit(
                session, at_ms=NOW + number, actor="ann", action="rollout.start",
                subject=f"r{number}", detail={"group": "all", "n": number},
            )  # fmt: skip
    yield database
    database.close()


def test_an_untouched_log_is_whole(database):
    with database.read() as session:
        assert broken_audit(session) is None


@pytest.mark.parametrize(
    "touch",
    [
        "UPDATE audit SET actor = 'bob' WHERE sequence = 3",
        "UPDATE audit SET detail = '{}' WHERE sequence = 3",
        "UPDATE audit SET at_ms = at_ms + 1 WHERE sequence = 3",
        "UPDATE audit SET hash = previous_hash WHERE sequence = 3",
        "DELETE FROM audit WHERE sequence = 3",
    ],
)
def test_it_breaks_where_it_was_touched(database, touch):
    with database.write() as session:
        session.execute(text(touch))
    with database.read() as session:
        assert broken_audit(session) == 3


def test_it_is_part_of_the_transaction_of_what_was_done(database):
    def half() -> None:
        with database.write() as session:
            session.add(Group(name="half", labels={}, created_ms=NOW))
            append_audit(
                session, at_ms=NOW, actor="ann", action="group.create", subject="half", detail={}
            )
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    with database.write() as session:
        row = append_audit(
            session, at_ms=NOW, actor="ann", action="group.create", subject="other", detail={}
        )
        assert row.sequence == 6
        assert broken_audit(session) is None

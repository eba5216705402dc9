"""The database: migrations, one writer, readers that cannot write, one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import Base, Group
from edgepack_fleet.errors import StorageError


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'fleet.db'}"


@pytest.fixture
def database(url):
    database = Database(url)
    yield database
    database.close()


def test_migrations_end_in_the_tables_of_the_code(database):
    with database.read() as session:
        context = MigrationContext.configure(session.connection())
        assert compare_metadata(context, Base.metadata) == []


def test_opening_again_changes_nothing(url):
    for _ in range(2):
        database = Database(url)
        with database.write() as session:
            session.merge(Group(name="all", labels={}, created_ms=1))
        database.close()
    database = Database(url)
    with database.read() as session:
        assert session.scalars(select(Group.name)).all() == ["all"]
    database.close()


def test_it_is_durable_by_its_settings(database):
    with database.write() as session:
        assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert session.execute(text("PRAGMA synchronous")).scalar() == 2
        assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1


def test_nobody_else_may_read_its_files(tmp_path, database):
    with database.write() as session:
        session.add(Group(name="all", labels={}, created_ms=1))
    assert {path.stat().st_mode & 0o077 for path in tmp_path.glob("fleet.db*")} == {0}


def test_a_reader_cannot_write(database):
    with database.read() as session, pytest.raises(OperationalError, match="readonly"):
        session.execute(text("DELETE FROM groups"))


def test_an_error_in_a_transaction_leaves_nothing(database):
    def half() -> None:
        with database.write() as session:
            session.add(Group(name="half", labels={}, created_ms=1))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    with database.read() as session:
        assert session.get(Group, "half") is None


def test_readers_see_commits_only_and_do_not_wait_for_the_writer(database):
    with database.write() as writer:
        writer.add(Group(name="new", labels={}, created_ms=1))
        writer.flush()
        with database.read() as reader:
            assert reader.get(Group, "new") is None
    with database.read() as reader:
        assert reader.get(Group, "new") is not None


def test_writers_in_threads_take_turns(database):
    with database.write() as session:
        session.add(Group(name="count", labels={"n": "0"}, created_ms=1))

    def add() -> None:
        for _ in range(20):
            with database.write() as session:
                row = session.get_one(Group, "count")
                row.labels = {"n": str(int((row.labels or {})["n"]) + 1)}

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.get_one(Group, "count").labels == {"n": "80"}


def test_a_second_service_on_the_same_database_is_refused(url, database):
    with pytest.raises(StorageError, match="another fleet service") as caught:
        Database(url)
    assert caught.value.code == "in-use"


@pytest.mark.parametrize("url", ["postgresql://db/fleet", "sqlite://", "sqlite:///"])
def test_other_databases_are_refused_by_name(url):
    with pytest.raises(StorageError, match="sqlite:///FILE"):
        Database(url)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "fleet.db").write_bytes(b"not a database, though long enough to be read" * 99)
    with pytest.raises(StorageError, match="cannot open database"):
        Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    # the lock was given back: the next try fails for the same reason, not for the lock
    with pytest.raises(StorageError, match="cannot open database"):
        Database(f"sqlite:///{tmp_path / 'fleet.db'}")


def test_a_newer_database_is_refused(url):
    database = Database(url)
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(StorageError, match="9999"):
        Database(url)


KILLED = """
import sys
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import Group
database = Database(sys.argv[1])
for number in range(10**9):
    with database.write() as session:
        session.add(Group(name=f"g{number}", labels={}, created_ms=number))
    print(number, flush=True)
"""


def test_what_was_committed_is_there_after_kill_9(url):
    child = subprocess.Popen([sys.executable, "-c", KILLED, url], stdout=subprocess.PIPE)
    assert child.stdout is not None
    committed = [int(child.stdout.readline()) for _ in range(25)]
    os.kill(child.pid, signal.SIGKILL)
    committed += [int(line) for line in child.stdout]
    child.wait()
    child.stdout.close()
    database = Database(url)
    with database.read() as session:
        found = set(session.scalars(select(Group.created_ms)))
    database.close()
    assert found >= set(committed)

"""The database: one connection that writes and checkpoints, read-only connections for the rest.

SQLite in WAL mode with ``synchronous=FULL``: a committed transaction survives a power cut. Before
3.51.3 two connections that write and checkpoint at the same moment could lose data; with exactly
one connection that can do either, in one process that holds a lock file, that cannot happen.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool, StaticPool

from edgepack_fleet.errors import StorageError

BUSY_TIMEOUT_SECONDS = 5.0
MAX_READERS = 16


class Database:
    """An open, migrated database.

    Args:
        url: ``sqlite:///ABSOLUTE/PATH``.

    Raises:
        StorageError: Another process has it open, it cannot be opened, or a newer version of the
            service wrote it.
    """

    def __init__(self, url: str) -> None:
        self._path = _file_of(url)
        _make_folder(self._path.parent)
        self._write_lock = threading.Lock()
        self._lock_file = _lock(self._path.with_name(f"{self._path.name}.lock"))
        try:
            # it holds MAC keys; the journal files take over its mode
            self._path.touch(mode=0o600)
            self._writer = _writing_engine(self._path)
            self._reader = _reading_engine(self._path)
            with self._writer.connect() as connection:
                _migrate(connection)
        except (SQLAlchemyError, sqlite3.Error, CommandError, OSError) as error:
            os.close(self._lock_file)
            raise StorageError(f"cannot open database {self._path}: {error}") from error

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that may write; it commits when the block ends, and only then."""
        session = Session(self._writer, expire_on_commit=False)
        with self._write_lock, session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent view that cannot write."""
        with Session(self._reader) as session:
            yield session

    def close(self) -> None:
        """Close every connection, the writing one last: it checkpoints."""
        self._reader.dispose()
        with self._write_lock:
            self._writer.dispose()
        os.close(self._lock_file)


def is_there(url: str) -> bool:
    """Whether there is a database to open, which opening would make otherwise."""
    return _file_of(url).exists()


def _file_of(url: str) -> Path:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        raise StorageError(
            f"database {parsed.render_as_string(hide_password=True)} is not of the form "
            "sqlite:///FILE, the only one this version stores in"
        )
    return Path(parsed.database).absolute()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(f"cannot make folder {path}: {error.strerror}") from error


def _lock(path: Path) -> int:
    """Take the lock that proves this process alone has the database; the kernel frees it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise StorageError(
            f"another fleet service has {path.with_suffix('')} open; stop it first",
            code="in-use",
        ) from error
    return handle


def _writing_engine(path: Path) -> Engine:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    # one connection for ever; the write lock keeps threads out of each other's way
    engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _begin_immediate(connection: Connection) -> None:
    # the driver does not begin by itself with isolation_level=None
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _reading_engine(path: Path) -> Engine:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(
            f"{path.as_uri()}?mode=ro",
            uri=True,
            timeout=BUSY_TIMEOUT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )

    engine = create_engine(
        "sqlite://", creator=connect, poolclass=QueuePool, pool_size=MAX_READERS, max_overflow=0
    )
    event.listen(engine, "begin", _begin_deferred)
    return engine


def _begin_deferred(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN DEFERRED")


def migration_config(connection: Connection | None = None) -> Config:
    """The Alembic configuration, from the package and not from a file on the machine."""
    config = Config()
    config.set_main_option("script_location", "edgepack_fleet:db/migrations")
    attributes: dict[str, Any] = config.attributes
    attributes["connection"] = connection
    return config


def _migrate(connection: Connection) -> None:
    command.upgrade(migration_config(connection), "head")
    connection.commit()

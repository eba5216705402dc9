"""The spool: windows and events on disk, until the fleet says that it has them.

SQLite with one connection, a write-ahead log and ``synchronous=FULL``: what ``append_window`` or
``append_event`` returned survives ``kill -9`` and a power cut. Calls wait for the disk, so they are
made outside the serving loop, from one thread at a time.

Items of a (session, slot) are numbered from 1 without gaps, windows and events in one sequence.
What was handed to the MQTT client never changes again, since it may have arrived; what never was
may be merged with its neighbour when the spool is full, so that a long time offline costs
resolution in time and no counts. Only when nothing is left to merge is the oldest such item
dropped, which leaves a gap in the sequence that the fleet sees, and is counted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from edgepack_contract.canonical import canonical_json
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Event
from edgepack_contract.window import Window, WindowBody, merge_windows, parse_window, place
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.telemetry.backlog import Backlog

IN_FLIGHT = 20
"""Items handed over and not acknowledged, at most: the client sends all of them at once when it
reconnects."""

DEFAULT_BYTES = 64 * 1024 * 1024

_SCHEMA = """
CREATE TABLE IF NOT EXISTS item (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('window', 'event')),
    name TEXT NOT NULL,
    slot TEXT NOT NULL,
    session INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    likeness TEXT,
    merged INTEGER NOT NULL DEFAULT 1,
    handed INTEGER NOT NULL DEFAULT 0,
    body BLOB NOT NULL,
    UNIQUE (session, slot, first)
);
CREATE TABLE IF NOT EXISTS sequence (
    session INTEGER NOT NULL,
    slot TEXT NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (session, slot)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS total (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    bytes INTEGER NOT NULL,
    dropped INTEGER NOT NULL
);
INSERT OR IGNORE INTO total VALUES (1, 0, 0);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON item
BEGIN UPDATE total SET bytes = bytes + length(new.body); END;
CREATE TRIGGER IF NOT EXISTS changed AFTER UPDATE OF body ON item
BEGIN UPDATE total SET bytes = bytes + length(new.body) - length(old.body); END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON item
BEGIN UPDATE total SET bytes = bytes - length(old.body); END;
"""

_NEIGHBOURS = """
SELECT early.id, late.id FROM item AS early JOIN item AS late
    ON late.session = early.session AND late.slot = early.slot AND late.first = early.last + 1
WHERE early.handed = 0 AND late.handed = 0 AND early.likeness = late.likeness
ORDER BY early.merged + late.merged, early.id LIMIT 64
"""
"""Those that cover the least come first, so that resolution is lost evenly."""

_MERGE_DOWN_TO = 15 / 16
"""Of the bound: merging a little more at once spares the search on every append."""

_MAX_BODY_BYTES = LIMITS.message_bytes - 1024
"""Room is left for the MAC; what is larger could never be sent."""


DAMAGED = "spool-damaged"
"""The code of a :class:`SpoolError` when the file itself is at fault, and not the disk."""


class SpoolError(DeviceError):
    """The spool cannot be read or written; the item that was to be kept is lost."""

    default_code = "spool"


@dataclass(frozen=True, slots=True)
class Item:
    """One message to send: the body of topic ``telemetry/{name}`` or ``event/{name}``.

    ``body`` is a complete :class:`Window` or :class:`Event`, canonical, not yet sealed.
    """

    id: int
    kind: Literal["window", "event"]
    name: str
    slot: str
    session: int
    first: int
    last: int
    body: bytes


class Spool:
    """A bounded queue on disk. Not thread-safe; may be used from any one thread at a time.

    Args:
        path: The database; made when missing.
        max_bytes: Of bodies together. The file is somewhat larger.

    Raises:
        SpoolError: The file cannot be opened, or is damaged.
    """

    def __init__(self, path: Path, *, max_bytes: int = DEFAULT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._in_flight: set[int] = set()
        try:
            self._db = _open(path)
        except sqlite3.Error as error:
            raise SpoolError(
                f"the spool {path} cannot be opened: {error}; when it is damaged, move it away: "
                "what it holds is lost, a new one is made",
                code=DAMAGED if _is_damage(error) else None,
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; what was appended is already safe."""
        self._db.close()

    def append_window(self, session: int, body: WindowBody) -> int:
        """Keep a closed window and return its sequence.

        Raises:
            SpoolError: It is too large to be sent, or the disk does not take it.
        """
        with self._transaction("append a window"):
            sequence = self._next(session, body.slot)
            window = place(body, session=session, first=sequence, last=sequence)
            raw = _sendable(canonical_json(window))
            self._insert(
                _Row("window", body.slot, body.slot, session, sequence, _likeness(body), raw)
            )
        return sequence

    def append_event(self, event: Event) -> int:
        """Keep an event and return its sequence, which replaces the one that ``event`` carries.

        Raises:
            SpoolError: It is too large to be sent, or the disk does not take it.
        """
        with self._transaction("append an event"):
            sequence = self._next(event.session, event.slot)
            raw = _sendable(canonical_json(msgspec.structs.replace(event, sequence=sequence)))
            self._insert(
                _Row("event", event.kind.value, event.slot, event.session, sequence, None, raw)
            )
        return sequence

    def hand_over(self, limit: int = IN_FLIGHT) -> list[Item]:
        """Take the oldest items that are not in flight, as many as may be in flight together.

        That they may arrive is durable before this returns, so they can be published at once and
        will never change. Those that an earlier run took without hearing back come again.

        Raises:
            SpoolError: The disk does not take it; nothing may be published.
        """
        free = limit - len(self._in_flight)
        if free <= 0:
            return []
        with self._transaction("hand items over"):
            rows = self._db.execute(
                "SELECT id, kind, name, slot, session, first, last, body FROM item"
                " ORDER BY id LIMIT ?",
                (free + len(self._in_flight),),
            ).fetchall()
            items = [Item(*row) for row in rows if row[0] not in self._in_flight][:free]
            self._db.executemany(
                "UPDATE item SET handed = 1 WHERE id = ? AND handed = 0",
                [(item.id,) for item in items],
            )
        self._in_flight.update(item.id for item in items)
        return items

    def forget_in_flight(self) -> None:
        """Let everything unacknowledged be handed over again: the client or the fleet is new."""
        self._in_flight.clear()

    def acknowledge(self, slot: str, session: int, through: int) -> int:
        """Delete what the fleet has committed, up to the sequence ``through``.

        What was never handed over stays, whatever is acknowledged.

        Returns:
            How many items were deleted.

        Raises:
            SpoolError: The disk does not take it; they will be acknowledged again.
        """
        with self._transaction("delete acknowledged items"):
            gone = self._db.execute(
                "DELETE FROM item WHERE slot = ? AND session = ? AND last <= ? AND handed = 1"
                " RETURNING id",
                (slot, session, through),
            ).fetchall()
        self._in_flight.difference_update(item for (item,) in gone)
        return len(gone)

    def backlog(self) -> Backlog:
        """How much waits.

        Raises:
            SpoolError: The disk does not answer.
        """
        with self._transaction("count"):
            items, handed = self._db.execute(
                "SELECT count(*), coalesce(sum(handed), 0) FROM item"
            ).fetchone()
            size, dropped = self._db.execute("SELECT bytes, dropped FROM total").fetchone()
        return Backlog(items=items, handed=handed, bytes=size, dropped=dropped)

    @contextmanager
    def _transaction(self, what: str) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise SpoolError(f"the spool could not {what}: {error}") from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        # a full disk has already rolled back; a second failure has nothing to add to the first
        with suppress(sqlite3.Error):
            self._db.rollback()

    def _next(self, session: int, slot: str) -> int:
        row = self._db.execute(
            "INSERT INTO sequence VALUES (?, ?, 1)"
            " ON CONFLICT DO UPDATE SET last = last + 1 RETURNING last",
            (session, slot),
        ).fetchone()
        return int(row[0])

    def _insert(self, row: _Row) -> None:
        newest = self._db.execute(
            "INSERT INTO item (kind, name, slot, session, first, last, likeness, body)"
            " VALUES (:kind, :name, :slot, :session, :sequence, :sequence, :likeness, :body)",
            asdict(row),
        ).lastrowid
        while self._bytes() > self._max_bytes:
            if not self._merge() and not self._drop_before(newest):
                break

    def _bytes(self) -> int:
        return int(self._db.execute("SELECT bytes FROM total").fetchone()[0])

    def _merge(self) -> bool:
        """Merge neighbours until there is room; whether anything changed."""
        used: set[int] = set()
        for early, late in self._db.execute(_NEIGHBOURS).fetchall():
            if used.isdisjoint((early, late)):
                used |= {early, late}
                self._merge_pair(early, late)
            if self._bytes() <= self._max_bytes * _MERGE_DOWN_TO:
                break
        return bool(used)

    def _merge_pair(self, early: int, late: int) -> None:
        window = merge_windows(self._window(early), self._window(late))
        body = canonical_json(window)
        if len(body) > _MAX_BODY_BYTES:
            self._db.execute("UPDATE item SET likeness = NULL WHERE id = ?", (early,))
            return
        self._db.execute("DELETE FROM item WHERE id = ?", (late,))
        self._db.execute(
            "UPDATE item SET last = ?, merged = ?, body = ? WHERE id = ?",
            (window.last, window.merged, body, early),
        )

    def _window(self, item: int) -> Window:
        return parse_window(
            self._db.execute("SELECT body FROM item WHERE id = ?", (item,)).fetchone()[0]
        )

    def _drop_before(self, newest: int | None) -> bool:
        gone = self._db.execute(
            "DELETE FROM item WHERE id ="
            " (SELECT id FROM item WHERE handed = 0 AND id < ? ORDER BY id LIMIT 1) RETURNING id",
            (newest,),
        ).fetchall()
        self._db.execute("UPDATE total SET dropped = dropped + ?", (len(gone),))
        return bool(gone)


@dataclass(frozen=True, slots=True)
class _Row:
    kind: str
    name: str
    slot: str
    session: int
    sequence: int
    likeness: str | None
    body: bytes


def _likeness(body: WindowBody) -> str:
    """Equal for windows that may be merged: same bundle, role, edges, and bundle compared with."""
    compared = [part.against if part else None for part in (body.pairs, body.differences)]
    return " ".join(map(str, (body.bundle, body.role, body.reference, *compared)))


def _sendable(raw: bytes) -> bytes:
    if len(raw) > _MAX_BODY_BYTES:
        raise SpoolError(
            f"a message of {len(raw)} bytes cannot be sent, at most {_MAX_BODY_BYTES} can",
            code="too-large",
        )
    return raw


def _is_damage(error: sqlite3.Error) -> bool:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(_SCHEMA)
    except sqlite3.Error:
        db.close()
        raise
    return db

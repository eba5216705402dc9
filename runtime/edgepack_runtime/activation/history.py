"""What became of the installs of one slot: the newest hundred, kept for whoever is at the device.

``history.json`` is replaced as a whole, so that a power cut leaves the old list or the new one. It
is for people: nothing that the slot does depends on it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgepack_contract.limits import MIB
from edgepack_contract.messages import EventKind
from edgepack_runtime.activation.events import Announce
from edgepack_runtime.activation.state import SlotState, short_words
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.storage.fsio import DurableFS

logger = logging.getLogger(__name__)

FILE = "history.json"
MOST_RECORDS = 100
MOST_BYTES = MIB
MOST_FIGURES = 64


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one install ended, or that the daemon crashed.

    ``at`` is milliseconds since 1970 UTC by the device's clock, ``install`` the number of the
    install in its slot, ``active`` the digest that answers afterwards. ``figures`` is what was
    measured.
    """

    at: int
    install: int
    outcome: EventKind
    name: str = ""
    version: str = ""
    digest: str | None = None
    active: str | None = None
    code: str = ""
    words: str = ""
    figures: dict[str, float] = {}


class History:
    """The history of one slot; may be used from any thread.

    Args:
        fs: All file changes go through it.
        folder: The slot's folder.
    """

    def __init__(self, fs: DurableFS, folder: Path) -> None:
        self._fs, self._path = fs, folder / FILE
        self._lock = threading.Lock()

    def records(self) -> list[Record]:
        """The records, oldest first; none when there is no file or it is damaged."""
        return read_history(self._fs, self._path)

    def remember(self, record: Record) -> None:
        """Add a record. An effect may run twice: the same end of the same install counts once.

        Raises:
            DiskFullError: No room; the old list stands.
            StorageFaultError: The disk failed.
        """
        with self._lock:
            known = self.records()
            if any(_same(one, record) for one in known):
                return
            kept = [*known, record][-MOST_RECORDS:]
            self._fs.atomic_write(self._path, msgspec.json.encode(kept))

    def clear(self) -> None:
        """Forget everything.

        Raises:
            StorageFaultError: The disk failed.
        """
        with self._lock:
            self._fs.remove_tree(self._path)


def read_history(fs: DurableFS, path: Path) -> list[Record]:
    """The records of a file, oldest first; see :meth:`History.records`."""
    try:
        raw = fs.read_bounded(path, max_bytes=MOST_BYTES)
        return msgspec.json.decode(raw, type=list[Record])
    except FileNotFoundError:
        return []
    except (DeviceError, msgspec.DecodeError) as error:
        logger.warning("%s is ignored: %s", path, error, extra={"event": "history_ignored"})
        return []


def figures_of(evidence: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers of an event's evidence, those of the variant in use as ``probe_...``."""
    last = (evidence.get("alternatives") or [{}])[-1]
    found = dict(evidence) | {f"probe_{name}": value for name, value in last.items()}
    numbers = {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return dict(sorted(numbers.items())[:MOST_FIGURES])


def record_of(
    end: Announce, before: SlotState, after: SlotState, *, at: int, figures: dict[str, float]
) -> Record:
    """The record of an end that is about to be announced.

    Args:
        end: What is announced.
        before: The slot before the step that led to it.
        after: The slot now.
        at: Milliseconds since 1970 UTC.
        figures: What was measured.
    """
    known = (after.active, after.previous, before.trial, before.active, before.previous)
    bundle = next((one for one in known if one and one.digest == end.digest), None)
    return Record(
        at=at,
        install=end.install,
        outcome=end.kind,
        name=bundle.name if bundle else after.name or "",
        version=bundle.version if bundle else "",
        digest=end.digest,
        active=after.active.digest if after.active else None,
        code=end.code,
        words=short_words(end.words),
        figures=figures,
    )


def _same(one: Record, other: Record) -> bool:
    def end(record: Record) -> tuple[object, ...]:
        return record.install, record.outcome, record.digest, record.code, record.words

    return end(one) == end(other)

"""The durable state of one slot: a file of one line, replaced as a whole, and a copy of the last.

``CURRENT`` holds ``edgepack-slot/1 CRC32 JSON`` in under 4 KiB, so that it fits one block of the
disk. ``CURRENT.prev`` is what CURRENT held before; it is read only when CURRENT is damaged, and is
at most one step old, which every step allows: effects may run twice.
"""

from __future__ import annotations

import json
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from edgepack_contract.canonical import canonical_json
from edgepack_contract.instructions import Obeyed
from edgepack_contract.states import Phase
from edgepack_runtime.activation.state import RESTING, VERSION, Installed, Lost, SlotState
from edgepack_runtime.errors import DeviceError, JournalError
from edgepack_runtime.storage.fsio import DurableFS

logger = logging.getLogger(__name__)

MAX_BYTES = 4096
_MAGIC = b"edgepack-slot/1"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """What the journal held; ``fresh`` when there was none at all."""

    state: SlotState
    fresh: bool = False


class Journal:
    """The journal of one slot.

    Args:
        fs: All file changes go through it.
        folder: ``slots/<slot>``; made when missing.
    """

    def __init__(self, fs: DurableFS, folder: Path) -> None:
        self._fs = fs
        self._folder = folder
        self.path = folder / "CURRENT"
        self.copy = folder / "CURRENT.prev"
        self._last = b""

    def load(self) -> Found:
        """Read the state back, and tidy up after writes that were cut off.

        Whatever is damaged or unknown leads to a state to go on from, never to an error: a slot
        whose journal is lost is in safe mode until it is told again what to run.
        """
        self._fs.make_dirs(self._folder)
        self._fs.clean_temporaries(self._folder)
        return self.peek()

    def peek(self) -> Found:
        """Read the state and leave the folder as it is; somebody else may be writing there."""
        raw, copy = self._read(self.path), self._read(self.copy)
        for content in (raw, copy):
            body = _checked(content)
            if body is not None:
                self._last = content or b""
                return Found(_understand(body))
        if raw is None and copy is None:
            return Found(SlotState(), fresh=True)
        logger.error("the journal %s is lost", self.path, extra={"event": "journal_lost"})
        words = "the record of this slot is damaged; it waits for its next instruction"
        return Found(SlotState(phase=Phase.SAFE_MODE, code="journal-lost", words=words))

    def save(self, state: SlotState) -> SlotState:
        """Make a state durable, before anything is done about it.

        Returns:
            The state as written, with the next sequence number.

        Raises:
            JournalError: It does not fit.
            DiskFullError: No room; the last state stands.
            StorageFaultError: The disk failed.
        """
        numbered = replace(state, seq=state.seq + 1)
        raw = encode(numbered)
        if self._last:
            self._fs.atomic_write(self.copy, self._last)
        self._fs.atomic_write(self.path, raw)
        self._last = raw
        return numbered

    def _read(self, path: Path) -> bytes | None:
        try:
            return self._fs.read_bounded(path, max_bytes=MAX_BYTES)
        except FileNotFoundError:
            return None
        except DeviceError as error:
            logger.warning("journal unreadable: %s", error, extra={"event": "journal_unreadable"})
            return b""


def encode(state: SlotState) -> bytes:
    """The line of a state.

    Raises:
        JournalError: It is longer than a block of the disk.
    """
    body = canonical_json(state)
    raw = b"%s %08x %s\n" % (_MAGIC, zlib.crc32(body), body)
    if len(raw) > MAX_BYTES:
        raise JournalError(f"the state has {len(raw)} bytes, at most {MAX_BYTES} fit its file")
    return raw


def _checked(raw: bytes | None) -> bytes | None:
    """The JSON of a line whose checksum is right, else None."""
    magic, _, rest = (raw or b"").removesuffix(b"\n").partition(b" ")
    crc, _, body = rest.partition(b" ")
    return body if magic == _MAGIC and crc == b"%08x" % zlib.crc32(body) else None


def _understand(body: bytes) -> SlotState:
    try:
        state = msgspec.json.decode(body, type=SlotState)
    except msgspec.DecodeError:
        return _salvage(body)
    return state if state.v == VERSION and _is_sound(state) else _salvage(body)


def _is_sound(state: SlotState) -> bool:
    """Whether the fields agree with the phase."""
    if state.phase in RESTING:
        return True
    trial_known = state.trial is not None or state.phase == Phase.DOWNLOADING
    return state.wanted is not None and trial_known


def _salvage(body: bytes) -> SlotState:
    """Fall back: another version wrote this, so only what is still understood is believed."""
    try:
        plain = json.loads(body)
    except ValueError:
        plain = {}
    plain = plain if isinstance(plain, dict) else {}
    active = _field(plain, "active", Installed) or _field(plain, "previous", Installed)
    return SlotState(
        phase=Phase.FELL_BACK if active else Phase.SAFE_MODE,
        active=active,
        lost=None if active else _field(plain, "lost", Lost),
        seq=_field(plain, "seq", int) or 0,
        install=_field(plain, "install", int) or 0,
        blocked=_field(plain, "blocked", tuple[str, ...]) or (),
        floors=_field(plain, "floors", dict[str, int]) or {},
        obeyed=_field(plain, "obeyed", Obeyed) or Obeyed(),
        owner=_field(plain, "owner", str) or "",
        enrolment=_field(plain, "enrolment", str) or "",
        code="unknown-state",
        words="another version of the daemon wrote the record of this slot",
    )


def _field(plain: dict[str, Any], name: str, shape: type[T]) -> T | None:
    try:
        return msgspec.convert(plain.get(name), shape)
    except msgspec.ValidationError:
        return None

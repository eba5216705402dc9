"""The newest captured requests, in segments of a folder; the oldest segment goes first.

A segment is a row of records, each after its length and CRC-32 (4 bytes each, little-endian). Every
run begins a new one, so that what a power cut has torn off stays at the end of its segment, where a
reader stops. Segments may be removed at any time, by anybody.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgepack_runtime.capture.records import RECORD_BYTES
from edgepack_runtime.storage.fsio import DurableFS, open_regular

SUFFIX = ".capture"
SEGMENTS = 16
MOST_SEGMENTS = 256
_FRAME = struct.Struct("<II")
_DIGITS = 12


class Ring:
    """A bounded row of records on the disk. One writer; readers need no lock.

    Args:
        fs: All file changes go through it.
        folder: Where the segments are.
        max_bytes: The most that they may hold together.
    """

    def __init__(self, fs: DurableFS, folder: Path, *, max_bytes: int) -> None:
        self._fs, self._folder, self._most = fs, folder, max_bytes
        self._segment: Path | None = None

    def append(self, records: Sequence[bytes]) -> None:
        """Add records and make them durable; the oldest make room for them.

        Raises:
            DiskFullError: No room.
            StorageFaultError: The disk failed.
        """
        self._fs.make_dirs(self._folder)
        for chunk in self._chunks([_framed(record) for record in records]):
            self._make_room(len(chunk))
            with self._fs.appending(self._target(len(chunk))) as file:
                file.write(chunk)
                file.finish()

    def _chunks(self, frames: list[bytes]) -> Iterator[bytes]:
        chunk = bytearray()
        for frame in frames:
            if chunk and len(chunk) + len(frame) > self._most // SEGMENTS:
                yield bytes(chunk)
                chunk.clear()
            chunk += frame
        if chunk and len(chunk) <= self._most:
            yield bytes(chunk)

    def _target(self, size: int) -> Path:
        segment, most = self._segment, self._most // SEGMENTS
        if segment and segment.exists() and segment.stat().st_size + size <= most:
            return segment
        last = max((number_of(path) for path in segments(self._folder)), default=0)
        self._segment = self._folder / f"{last + 1:0{_DIGITS}}{SUFFIX}"
        return self._segment

    def _make_room(self, size: int) -> None:
        there = segments(self._folder)
        sizes = [path.stat().st_size for path in there]
        while there and (sum(sizes) + size > self._most or len(there) >= MOST_SEGMENTS):
            self._fs.remove_tree(there.pop(0))
            sizes.pop(0)


def segments(folder: Path) -> list[Path]:
    """The segments of a folder, oldest first."""
    found = [path for path in folder.glob(f"*{SUFFIX}") if path.stem.isdigit()]
    return sorted(found, key=number_of)


def number_of(segment: Path) -> int:
    """The number of a segment."""
    return int(segment.stem)


def read_records(segment: Path) -> Iterator[tuple[str, bytes]]:
    """The records of a segment with their names, ``SEGMENT-PLACE``; ends at what is torn.

    Raises:
        OSError: It cannot be read.
    """
    with open_regular(segment) as fd, open(fd, "rb", closefd=False) as stream:
        place = 0
        while len(frame := stream.read(_FRAME.size)) == _FRAME.size:
            size, crc = _FRAME.unpack(frame)
            record = stream.read(size) if size <= RECORD_BYTES else b""
            if len(record) != size or zlib.crc32(record) != crc:
                return
            place += 1
            yield f"{number_of(segment)}-{place}", record


def clear(fs: DurableFS, folder: Path) -> int:
    """Remove every segment; returns how many there were.

    Raises:
        StorageFaultError: The disk failed.
    """
    found = segments(folder)
    for segment in found:
        fs.remove_tree(segment)
    return len(found)


def _framed(record: bytes) -> bytes:
    return _FRAME.pack(len(record), zlib.crc32(record)) + record

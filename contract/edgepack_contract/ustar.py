"""The container of a bundle: an uncompressed ustar archive, read strictly and written repeatably.

Source of the format: POSIX.1-1988 ustar interchange format (512-byte headers, octal numbers). Only
regular files are allowed, and each thing that two tar programs could understand differently
(extensions, long names, base-256 numbers, prefixes, links, padding, trailing bytes) is refused. No
bytes are extracted: the reader gives positions in one file that stays open.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from edgepack_contract.digest import CHUNK_BYTES
from edgepack_contract.errors import ConfigError, MalformedBundleError
from edgepack_contract.limits import LIMITS

BLOCK_BYTES = 512
MAX_FILE_BYTES = 8**11 - 1
"""What eleven octal digits can say: one byte less than 8 GiB."""

_NAME_PART = r"[a-z0-9][a-z0-9._-]{0,98}"
_NAME = re.compile(rf"\A(?=.{{1,100}}\Z){_NAME_PART}(?:/{_NAME_PART}){{0,2}}\Z")
_END = bytes(2 * BLOCK_BYTES)
_MAGIC = b"ustar\x0000"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the bytes of one file are."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class NewEntry:
    """A file to be written: its name, its size, and how to open its bytes."""

    name: str
    size: int
    open: Callable[[], BinaryIO]


class UstarReader:
    """An archive whose every header was checked; one open file, never opened again.

    The file is opened without following a symbolic link and must be a regular file. Reads are by
    position, so that readers do not disturb each other. Use it as a context manager.
    """

    def __init__(self, file: int, entries: dict[str, Entry]) -> None:
        self._file = file
        self.entries = entries

    @classmethod
    def open(cls, path: Path) -> UstarReader:
        """Open an archive and check all of its headers.

        Raises:
            MalformedBundleError: A rule is broken; the message names the entry and the rule.
            OSError: The file cannot be read.
        """
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if path.is_symlink():
                raise _broken(str(path), "is a symbolic link, give the file itself") from error
            raise
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise _broken(str(path), "is not a regular file")
            return cls(file, _scan(file, status.st_size))
        except BaseException:
            os.close(file)
            raise

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """All bytes of one file.

        Raises:
            MalformedBundleError: It is missing, larger than ``max_bytes``, or was cut off since.
        """
        entry = self.entry(name)
        if entry.size > max_bytes:
            raise _broken(name, f"has {entry.size} bytes, at most {max_bytes} are accepted")
        data = os.pread(self._file, entry.size, entry.offset)
        if len(data) != entry.size:
            raise _broken(name, "was cut off while it was read")
        return data

    def stream(self, name: str) -> BinaryIO:
        """A stream of the bytes of one file; valid as long as the archive is open.

        Raises:
            MalformedBundleError: It is missing.
        """
        return io.BufferedReader(_Section(self._file, self.entry(name)))

    def entry(self, name: str) -> Entry:
        """Where one file is.

        Raises:
            MalformedBundleError: It is missing.
        """
        found = self.entries.get(name)
        if found is None:
            raise _broken(name, "is missing", code="missing-entry")
        return found

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_ustar(stream: BinaryIO, entries: Iterable[NewEntry], *, mtime: int) -> None:
    """Write an archive in the order given: mode 0644, owner 0, no names of users or groups.

    Args:
        stream: Where to; the caller makes it durable.
        entries: The files.
        mtime: Seconds since 1970 for every file; SOURCE_DATE_EPOCH, or 0.

    Raises:
        ValueError: A name or size that the reader would refuse, or bytes that are not ``size``.
    """
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen or not is_entry_name(entry.name):
            raise ValueError(f"{entry.name!r} is there twice, or no entry may have that name")
        seen.add(entry.name)
        stream.write(_header(entry.name, entry.size, mtime))
        with entry.open() as source:
            _copy_exactly(source, stream, entry)
        stream.write(bytes(-entry.size % BLOCK_BYTES))
    stream.write(_END)


def is_entry_name(name: str) -> bool:
    """Whether an entry may have this name: at most three parts of ``a-z 0-9 . _ -``, 100 bytes."""
    return _NAME.match(name) is not None


def source_date() -> int:
    """Seconds since 1970 from SOURCE_DATE_EPOCH, 0 without.

    Raises:
        ConfigError: It is set to something else than a number that an archive can hold.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not text.isascii() or not text.isdecimal() or int(text) > MAX_FILE_BYTES:
        raise ConfigError(
            f"SOURCE_DATE_EPOCH is {text[:40]!r}; set it to seconds since 1970, or unset it",
            code="bad-source-date",
        )
    return int(text)


def _header(name: str, size: int, mtime: int) -> bytes:
    if not 0 <= size <= MAX_FILE_BYTES:
        raise ValueError(f"{name} has {size} bytes, an entry holds at most {MAX_FILE_BYTES}")
    blank_sum = b" " * 8
    fields = (
        name.encode().ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" + b"0000000\0",
        b"%011o\0" % size + b"%011o\0" % mtime,
        blank_sum,
        b"0" + bytes(100) + _MAGIC + bytes(32) + bytes(32) + b"0000000\0" + b"0000000\0",
    )
    header = b"".join(fields).ljust(BLOCK_BYTES, b"\0")
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _copy_exactly(source: BinaryIO, target: BinaryIO, entry: NewEntry) -> None:
    left = entry.size
    while left:
        chunk = source.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise ValueError(f"{entry.name}: its source ends {left} bytes early")
        target.write(chunk)
        left -= len(chunk)
    if source.read(1):
        raise ValueError(f"{entry.name}: its source has more than {entry.size} bytes")


def _scan(file: int, total: int) -> dict[str, Entry]:
    if total % BLOCK_BYTES or total < len(_END):
        raise _broken("archive", f"{total} bytes are not whole blocks of {BLOCK_BYTES}: truncated?")
    if total > LIMITS.bundle_bytes:
        raise _broken("archive", f"{total} bytes, at most {LIMITS.bundle_bytes} are accepted")
    entries: dict[str, Entry] = {}
    for entry in _walk(file, total):
        if entry.name in entries:
            raise _broken(entry.name, "is there twice")
        entries[entry.name] = entry
        if len(entries) > LIMITS.bundle_entries:
            raise _broken("archive", f"more than {LIMITS.bundle_entries} entries")
    return entries


def _walk(file: int, total: int) -> Iterator[Entry]:
    position = 0
    while True:
        header = os.pread(file, BLOCK_BYTES, position)
        if len(header) != BLOCK_BYTES:
            raise _broken("archive", "ends without its two zero blocks: truncated?")
        if not any(header):
            _check_end(file, position, total)
            return
        entry = _parse_header(header, position)
        padded = entry.size + -entry.size % BLOCK_BYTES
        position = entry.offset + padded
        if position + len(_END) > total:
            raise _broken(entry.name, f"{entry.size} bytes reach beyond the end: truncated?")
        if any(os.pread(file, padded - entry.size, entry.offset + entry.size)):
            raise _broken(entry.name, "its padding is not zero")
        yield entry


def _check_end(file: int, position: int, total: int) -> None:
    if os.pread(file, len(_END) + 1, position) != _END or position + len(_END) != total:
        raise _broken("archive", "must end with exactly two zero blocks")


def _parse_header(header: bytes, position: int) -> Entry:
    raw_name = header[:100].split(b"\0", 1)[0]
    name = raw_name.decode("ascii", errors="replace")
    if not is_entry_name(name) or any(header[len(raw_name) : 100]):
        # quoted: these bytes are anybody's, and the words end on a terminal
        raise _broken(ascii(name[:100]), "no entry may have this name; is this a bundle at all?")
    size = _octal(name, "size", header[124:136])
    # With name, size and time decoded, an entry has one spelling only: that of our writer.
    # Comparing with it checks type, mode, links, owners, prefix, padding and checksum.
    mtime = _octal(name, "time", header[136:148])
    expected = _header(name, size, mtime)
    _check_spelling(name, header, expected)
    return Entry(name=name, offset=position + BLOCK_BYTES, size=size)


_FIELDS = (
    ("mode", 100, 108), ("user id", 108, 116), ("group id", 116, 124), ("size", 124, 136),
    ("time", 136, 148), ("type (only regular files are allowed)", 156, 157),
    ("link name", 157, 257), ("magic and version", 257, 265), ("user name", 265, 297),
    ("group name", 297, 329), ("device number", 329, 345), ("prefix", 345, 500),
    ("padding", 500, 512), ("checksum", 148, 156),
)  # fmt: skip


def _check_spelling(name: str, header: bytes, expected: bytes) -> None:
    if header == expected:
        return
    for rule, start, end in _FIELDS:
        if header[start:end] != expected[start:end]:
            raise _broken(name, f"header: {rule} is {header[start:end].rstrip(bytes(1))[:40]!r}")


def _octal(name: str, rule: str, field: bytes) -> int:
    digits, end = field[:-1], field[-1:]
    if end != b"\0" or not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise _broken(name, f"header: {rule} is {field!r}, not octal digits and a zero byte")
    return int(digits, 8)


def _broken(name: str, rule: str, *, code: str = "bad-archive") -> MalformedBundleError:
    return MalformedBundleError(f"bundle archive: {name}: {rule}", code=code)


class _Section(io.RawIOBase):
    """A window of an open file, read by position."""

    def __init__(self, file: int, entry: Entry) -> None:
        super().__init__()
        # A copy of the descriptor, so that a closed archive cannot turn reads to another file
        self._file = os.dup(file)
        self._entry = entry
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill ``buffer`` from the window; 0 at its end."""
        size = min(len(buffer), self._entry.size - self._position)
        data = os.pread(self._file, size, self._entry.offset + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()

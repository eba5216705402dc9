"""A compressed copy of a layer that is being fetched, with the validator by which to go on.

```
packed/<hex>.gz     what has come of it
packed/<hex>.etag   its size, or "-", and the validator of what it is a part of (RFC 9110, 8.8.3)
```
Nothing of it is believed: what it unpacks to is bounded by the layer's size and judged by its
digest, so that a wrong one costs a download, no more.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgepack_contract.errors import MalformedBundleError
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.storage.fsio import Appending, DurableFS, open_regular

_GZIP_ONLY = 16 + zlib.MAX_WBITS
_BLOCK_BYTES = 64 * 1024
_MAX_ETAG_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """What is there of a compressed copy.

    Attributes:
        size: How many bytes.
        total: How many it has in all, None when that was not said.
        etag: Its strong validator.
    """

    size: int
    total: int | None
    etag: str

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return self.size == self.total


class PackedPart:
    """A compressed copy on its way.

    Args:
        fs: All file changes go through it.
        folder: Where it is kept; made when it is needed.
        name: The hex digest of the layer.
    """

    def __init__(self, fs: DurableFS, folder: Path, name: str) -> None:
        self._fs, self._folder = fs, folder
        self._data, self._etag = folder / f"{name}.gz", folder / f"{name}.etag"

    def kept(self) -> Kept | None:
        """What there is to go on with, None for nothing."""
        try:
            raw = self._fs.read_bounded(self._etag, max_bytes=_MAX_ETAG_BYTES).decode("ascii")
            size = self._data.stat().st_size
        except (OSError, DeviceError, UnicodeDecodeError):
            return None
        total, _, etag = raw.partition(" ")
        return Kept(size, int(total) if total.isdecimal() else None, etag)

    @contextmanager
    def appending(self, etag: str, *, start: int, total: int | None) -> Iterator[Appending]:
        """Open it to write at its end, or anew when that is where ``start`` is.

        Raises:
            DiskFullError: No room.
            StorageFaultError: The disk failed.
        """
        self._fs.make_dirs(self._folder)
        with self._fs.appending(self._data) as file:
            if start == 0:
                file.restart()
                said = "-" if total is None else str(total)
                self._fs.atomic_write(self._etag, f"{said} {etag}".encode("ascii"))
            yield file

    def unpacked(self, size: int) -> Iterator[bytes]:
        """What it holds, block by block, at most ``size`` bytes and exactly that.

        Raises:
            MalformedBundleError: It is not gzip, or holds another number of bytes.
            StorageFaultError: The disk failed.
        """
        left, inflater = size, zlib.decompressobj(_GZIP_ONLY)
        with self._fs.blaming(self._data), open_regular(self._data) as fd:
            while not inflater.eof and (raw := os.read(fd, _BLOCK_BYTES)):
                for block in _inflated(inflater, raw):
                    left -= len(block)
                    if left < 0:
                        raise _other(size)
                    yield block
            if not inflater.eof or inflater.unused_data or left or os.read(fd, 1):
                raise _other(size)

    def remove(self) -> None:
        """Remove it.

        Raises:
            StorageFaultError: The disk failed.
        """
        for path in (self._etag, self._data):
            if path.exists():
                with self._fs.blaming(path):
                    self._fs.calls.unlink(path)


def _inflated(inflater: zlib._Decompress, raw: bytes) -> Iterator[bytes]:
    while raw or inflater.unconsumed_tail:
        try:
            block = inflater.decompress(raw or inflater.unconsumed_tail, _BLOCK_BYTES)
        except zlib.error as error:
            raise MalformedBundleError(
                f"the compressed copy is not gzip: {error}", code="bad-encoding"
            ) from error
        raw = b""
        if block:
            yield block
        if inflater.eof or not (block or inflater.unconsumed_tail):
            return


def _other(size: int) -> MalformedBundleError:
    return MalformedBundleError(
        f"the compressed copy does not hold the {size} bytes that are signed", code="bad-encoding"
    )

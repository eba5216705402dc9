"""Compressed copies of blobs, made once, for devices behind slow links.

A copy is gzip (RFC 1952) without a time or a name, so that the same blob always gives the same
bytes, and a download that was cut can go on after a move of the service. Weights that look like
noise save nothing; a few samples tell so before all of a large blob is read.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from edgepack_contract.digest import CHUNK_BYTES

LEAST_BYTES = 4 * 1024
WORTH = 0.9
"""The copy has at most this share of the blob's bytes, or there is none."""

_SAMPLE_BYTES = 256 * 1024
_SAMPLES = 4
_GZIP = 16 + zlib.MAX_WBITS


def make_packed(blob: Path, target: Path, *, incoming: Path) -> bool:
    """Put a compressed copy of ``blob`` at ``target``, whole or not at all.

    Args:
        blob: The file.
        target: Where the copy goes; nothing happens when it is there.
        incoming: A folder of the same file system for what is half done.

    Returns:
        Whether there is a copy now.
    """
    if target.exists():
        return True
    size = blob.stat().st_size
    if size < LEAST_BYTES or not _is_promising(blob, size):
        return False
    handle, name = tempfile.mkstemp(dir=incoming)
    try:
        with os.fdopen(handle, "wb") as copy:
            copy.writelines(_packed(blob))
            copy.flush()
            os.fsync(copy.fileno())
            worth = copy.tell() <= WORTH * size
        if worth:
            Path(name).rename(target)
        return worth
    finally:
        Path(name).unlink(missing_ok=True)


def _is_promising(blob: Path, size: int) -> bool:
    step = max(_SAMPLE_BYTES, size // _SAMPLES)
    taken = packed = 0
    with blob.open("rb") as stream:
        for start in range(0, size, step):
            stream.seek(start)
            sample = stream.read(_SAMPLE_BYTES)
            taken, packed = taken + len(sample), packed + len(zlib.compress(sample, 1))
    return packed <= (1 + WORTH) / 2 * taken


def _packed(blob: Path) -> Iterator[bytes]:
    packer = zlib.compressobj(wbits=_GZIP)
    with blob.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield packer.compress(chunk)
    yield packer.flush()

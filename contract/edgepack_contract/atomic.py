"""Write a file or a folder so that it is there whole, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a free place beside ``path``; it takes that name when the block ends well.

    When the block fails, what it wrote is removed and ``path`` is as it was. The block makes the
    content durable; the rename is made durable here.

    Raises:
        OSError: The folder of ``path`` is missing or cannot be written.
    """
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        _remove(part)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def replacing_private(path: Path) -> Iterator[BinaryIO]:
    """Write a file that only its owner may read (mode 0600) as :func:`replacing` does, durably.

    Raises:
        OSError: The folder of ``path`` is missing or cannot be written.
    """
    with replacing(path) as part:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(handle)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)

"""Model files that are read as a whole, none larger than a bound."""

from __future__ import annotations

from pathlib import Path

from edgepack_contract.limits import GIB
from edgepack_packager.errors import ModelSourceError

MAX_FILE_BYTES = 4 * GIB


def read_bounded(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of ``path``.

    Raises:
        ModelSourceError: Unreadable, or over ``limit`` bytes.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise ModelSourceError(
                f"{path.name} has {size} bytes; models are read up to {limit}", code="too-large"
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelSourceError(f"cannot read {path}: {error.strerror}") from error

"""Files that are small or wrong: no read of one takes more than it may."""

from __future__ import annotations

from pathlib import Path

from edgepack_contract.errors import ConfigError


def read_small(path: Path, most: int) -> bytes:
    """The bytes of a file; of one with more than ``most`` the first ``most + 1``.

    So whoever parses them under the same limit sees that there are too many.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        return stream.read(most + 1)


def read_configured(path: Path, most: int, *, code: str) -> bytes:
    """:func:`read_small`, of a file that a configuration or an option names.

    Raises:
        ConfigError: It cannot be read; with this code.
    """
    try:
        return read_small(path, most)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", code=code) from error

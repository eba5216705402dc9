"""Which files of the bundles that a device keeps have which digest, by what their lists say.

Nothing is hashed here: whoever copies a file hashes it on the way, and a list that is wrong costs
a copy that is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from edgepack_contract.description import DESCRIPTION_PATH, is_file_path
from edgepack_contract.limits import LIMITS
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.storage.fsio import DurableFS

MAX_ENTRIES = 1024
_ENTRIES = ("*/store/*/model", "*/*/store/*/model")
"""Below the folder of all slots: what a slot keeps, and what its candidate does."""


class _Listed(msgspec.Struct):
    path: str
    size: int
    digest: str


class _Listing(msgspec.Struct):
    files: list[_Listed] = []


Holdings = Mapping[tuple[str, int], list[Path]]
"""Files by digest and size."""


def held_files(fs: DurableFS, slots: Path) -> Holdings:
    """The files of all complete bundles below the folder of a device's slots.

    Args:
        fs: Reads the lists.
        slots: The folder of all slots.
    """
    found: dict[tuple[str, int], list[Path]] = {}
    for model in _models(slots):
        for listed in _listed(fs, model):
            if is_file_path(listed.path):
                found.setdefault((listed.digest, listed.size), []).append(model / listed.path)
    return found


def _models(slots: Path) -> Iterator[Path]:
    entries = (path for pattern in _ENTRIES for path in sorted(slots.glob(pattern)))
    for number, path in enumerate(entries):
        if number >= MAX_ENTRIES:
            return
        yield path


def _listed(fs: DurableFS, model: Path) -> list[_Listed]:
    try:
        raw = fs.read_bounded(model / DESCRIPTION_PATH, max_bytes=LIMITS.description_bytes)
        return msgspec.json.decode(raw, type=_Listing).files
    except (FileNotFoundError, DeviceError, msgspec.DecodeError, RecursionError):
        # what cannot be read is fetched
        return []

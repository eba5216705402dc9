"""Is there room for a model? What the machine and its control groups leave, against the probe."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edgepack_contract.description import MODEL_DATA_PATH, MODEL_PATH
from edgepack_contract.limits import KIB, MIB
from edgepack_runtime import machine_state
from edgepack_runtime.activation.figures import chosen_figures

RESERVE_BYTES = 64 * MIB
LOAD_FACTOR = 3
"""A model of which nothing was measured takes up to this many times its file while it loads."""

PROBED_SHARE = 1.25
"""The probe's child loads with nothing beside it; here memory is in more pieces."""

_CGROUPS = Path("/sys/fs/cgroup")


class _Files(NamedTuple):
    """Where a control group says how much it may take, and has; and what of that is cache."""

    most: str
    used: str
    cache: tuple[str, str]


_VERSION_1 = _Files(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")
)
_VERSION_2 = _Files("memory.max", "memory.current", ("active_file", "inactive_file"))
_READ_BYTES = 64 * KIB
_MOST_LEVELS = 32


def needed_bytes(folder: Path) -> int:
    """What loading the variant in ``folder`` takes: as the probe measured it, else a guess."""
    figures = chosen_figures(folder)
    if figures is not None and figures.model_bytes is not None:
        return int(PROBED_SHARE * figures.model_bytes)
    files = [folder / MODEL_PATH, folder / MODEL_DATA_PATH]
    return LOAD_FACTOR * sum(file.stat().st_size for file in files if file.exists())


def available_bytes() -> int | None:
    """What this process may still take, None when the machine does not say."""
    known = [machine_state.look(Path("/")).memory_available_bytes, _left_by_groups()]
    return min((one for one in known if one is not None), default=None)


def fits(folder: Path) -> bool:
    """Whether the variant in ``folder`` can be loaded beside what is loaded now."""
    available = available_bytes()
    return available is None or needed_bytes(folder) + RESERVE_BYTES <= available


def _left_by_groups() -> int | None:
    """The least that a control group above this process leaves, see cgroups(7)."""
    left = [one for line in _read(Path("/proc/self/cgroup")) for one in _left_by_line(line)]
    return min(left, default=None)


def _left_by_line(line: str) -> list[int]:
    """What the groups of a hierarchy leave, ``ID:CONTROLLERS:PATH``; version 2 names none."""
    _, controllers, path = f"{line}::".split(":", 2)
    if "memory" in controllers.split(","):
        root, files = _CGROUPS / "memory", _VERSION_1
    elif not controllers:
        root, files = _CGROUPS, _VERSION_2
    else:
        return []
    group = Path(path.strip(":/"))
    levels = [group, *group.parents][:_MOST_LEVELS]
    left = (_left_by(root / level, files) for level in levels)
    return [one for one in left if one is not None]


def _left_by(group: Path, files: _Files) -> int | None:
    try:
        most = int(_read(group / files.most)[0])
        used = int(_read(group / files.used)[0])
        # the cache of files is given back under pressure, also what was read twice: a bundle that
        # was just verified
        cached = [line.split() for line in _read(group / "memory.stat")]
        used -= sum(int(size) for name, size in cached if name in files.cache)
    except (IndexError, ValueError):
        # no limit ("max"), or no such group
        return None
    return max(0, most - used)


def _read(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as stream:
            return stream.read(_READ_BYTES).splitlines()
    except (OSError, UnicodeDecodeError):
        return []

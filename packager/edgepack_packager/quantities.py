"""Quantities as people write them: losses, sizes, times."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgepack_packager.errors import RecipeError

_DROP = re.compile(r"\A(\d+(?:\.\d+)?)(pt|%)\Z")
_SIZE = re.compile(r"\A(\d+(?:\.\d+)?)\s*(B|kB|KiB|MB|MiB|GB|GiB)?\Z")
_TIME = re.compile(r"\A(\d+(?:\.\d+)?)\s*(us|ms|s|m)?\Z")
_SIZE_UNITS = {
    "B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3,
}  # fmt: skip
_TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class Drop:
    """The loss that a candidate may have against another model.

    Attributes:
        value: A share: 0.01 for one point or one per cent.
        relative: Whether it is relative to the other model's own figure (``1%``), or in points
            of the figure itself (``1pt``).
    """

    value: float
    relative: bool

    @classmethod
    def parse(cls, text: str, *, what: str = "max_drop") -> Drop:
        """Read ``0.5pt`` or ``1%``.

        Raises:
            RecipeError: Neither of the two forms, or not between 0 and 100.
        """
        found = _DROP.match(text.strip())
        if found is None or not 0 < float(found[1]) <= 100:
            raise RecipeError(
                f"{what} {text!r}: write points as 0.5pt or a relative loss as 1%",
                code="bad-drop",
            )
        return cls(value=float(found[1]) / 100, relative=found[2] == "%")

    def __str__(self) -> str:
        return f"{self.value * 100:g}{'%' if self.relative else 'pt'}"


def parse_size(text: str | int) -> int:
    """Bytes of ``2MiB``, ``500 kB`` or a plain number.

    Raises:
        RecipeError: Not a positive size.
    """
    found = _SIZE.match(str(text).strip())
    size = int(float(found[1]) * _SIZE_UNITS[found[2] or "B"]) if found else 0
    if size < 1:
        raise RecipeError(f"{text!r} is not a size such as 2MiB or 500kB", code="bad-size")
    return size


def parse_latency_ms(text: str | float) -> float:
    """Milliseconds of ``5ms``, ``800us``, ``0.1s`` or a plain number of milliseconds.

    Raises:
        RecipeError: Not a positive time.
    """
    latency = _seconds(text, "ms") * 1000
    if latency <= 0:
        raise RecipeError(f"{text!r} is not a time such as 5ms or 800us", code="bad-latency")
    return latency


def parse_seconds(text: str | float) -> float:
    """Seconds of ``60s``, ``10m`` or a plain number of seconds.

    Raises:
        RecipeError: Not a positive time.
    """
    seconds = _seconds(text, "s")
    if seconds <= 0:
        raise RecipeError(f"{text!r} is not a time such as 60s or 10m", code="bad-time")
    return seconds


def _seconds(text: str | float, unit: str) -> float:
    found = _TIME.match(str(text).strip())
    return float(found[1]) * _TIME_UNITS[found[2] or unit] if found else 0.0

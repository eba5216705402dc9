"""The system clock, for the outermost layers; everything else is told the time."""

from __future__ import annotations

import time


def wall_ms() -> int:
    """The system clock, milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000

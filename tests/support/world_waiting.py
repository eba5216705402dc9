"""Waiting for what other threads and processes do: a condition, a deadline, and words."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SECONDS = 60.0
"""Long: it is only ever waited for in full when something is broken."""

_pause = threading.Event()


def eventually(condition: Callable[[], T], what: object, *, seconds: float = SECONDS) -> T:
    """Ask until the answer is true, and return it; ``what`` may be called for the words."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"never came: {what() if callable(what) else what}")
        _pause.wait(0.02)

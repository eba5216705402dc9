"""The event loop of a daemon: where requests follow each other at once, it waits awake.

A process that sleeps until the next request has to be woken for it, and comes back to caches that
others have used: together longer than all else that a small request takes. So a wait begins with
looking again and again, as busy polling of sockets does (``SO_BUSY_POLL``, socket(7)), but only
where the waits before it were as short: the forecast of Linux's haltpoll governor. A daemon whose
callers pause for longer sleeps as ever.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import time
from collections.abc import Callable

SHORT_WAITS = 2
"""So many in a row make another one likely. One does not: a body often follows its head."""


class AwakeSelector(selectors.DefaultSelector):
    """Waits as its base does, but awake at first where that is likely to be enough.

    Args:
        seconds: How long it waits awake at most; 0 for never.
        clock: Monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self._seconds, self._clock = seconds, clock
        self._short = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See :meth:`selectors.BaseSelector.select`."""
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        begun = self._clock()
        ready = self._look(begun, timeout) if self._short >= SHORT_WAITS else []
        if not ready:
            left = None if timeout is None else max(0.0, timeout - (self._clock() - begun))
            ready = super().select(left)
        self._short = self._short + 1 if self._clock() - begun < self._seconds else 0
        return ready

    def _look(self, begun: float, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        end = begun + (self._seconds if timeout is None else min(self._seconds, timeout))
        while self._clock() < end:
            ready = super().select(0)
            if ready:
                return ready
            # whoever shares the processor may be who is waited for
            os.sched_yield()
        return []


def new_event_loop(busy_poll_us: int) -> asyncio.AbstractEventLoop:
    """A loop that waits awake for so many microseconds where requests follow each other at once.

    On a machine with one processor nobody could ask meanwhile: there it always sleeps.
    """
    seconds = busy_poll_us * 1e-6 if (os.cpu_count() or 1) > 1 else 0.0
    return asyncio.SelectorEventLoop(AwakeSelector(seconds))

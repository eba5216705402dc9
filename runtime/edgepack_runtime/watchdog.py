"""Is the daemon worth keeping: the loop keeps time, threads live, and models answer.

A timer that says "alive" from a thread of its own would say so of a daemon that answers nobody.
This one has each slot answer: requests since the last look will do, else a golden row goes the way
of a slow request, through the threads of the slot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from edgepack_contract.errors import EdgepackError
from edgepack_runtime.serving.slot import Slot

logger = logging.getLogger(__name__)

LOOKS = 4
"""In each period of the service manager's watchdog: one bad look does not end the daemon."""

LAG_SHARE = 0.5
"""A loop that is late by this share of the time between looks is too busy to serve."""


class Watchdog:
    """Looks after a daemon, and says ``alive`` for as long as it is.

    Args:
        slots: The slots by name; looked at anew each time.
        dead: Names what has ended that should run; empty when nothing has.
        alive: Called after every good look.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        *,
        dead: Callable[[], list[str]],
        alive: Callable[[], None],
    ) -> None:
        self._slots, self._dead, self._alive = slots, dead, alive
        self._answered: dict[str, int] = {}
        self._canaries: dict[str, asyncio.Task[None]] = {}
        self._late: str | None = None

    async def run(self, seconds: float) -> None:
        """Look :data:`LOOKS` times in ``seconds``, until cancelled."""
        loop, every = asyncio.get_running_loop(), seconds / LOOKS
        try:
            while True:
                due = loop.time() + every / 2
                await asyncio.sleep(every / 2)
                self.look(lag=loop.time() - due, most=LAG_SHARE * every)
                # the canaries have the other half
                await asyncio.sleep(every / 2)
                self.conclude()
        finally:
            for task in self._canaries.values():
                task.cancel()

    def look(self, *, lag: float, most: float) -> None:
        """Begin a look: see whether the loop kept time, and ask the slots that nobody asked.

        Args:
            lag: How late the loop is, in seconds.
            most: How late it may be.
        """
        self._late = f"the loop is {lag:.1f} s late" if lag > most else None
        for name, slot in self._slots.items():
            if slot.active is not None and not self._busy(name, slot):
                task = self._canaries.get(name)
                if task is None or task.done():
                    self._canaries[name] = asyncio.create_task(_ask(slot))

    def conclude(self) -> list[str]:
        """End a look: say ``alive``, or log and return what is wrong."""
        wrong = [self._late] if self._late else []
        wrong += [f"the thread of slot {name} has ended" for name in self._dead()]
        for name, task in list(self._canaries.items()):
            if name not in self._slots or self._slots[name].active is None:
                task.cancel()
                del self._canaries[name]
            elif self._busy(name, self._slots[name]):
                continue
            elif not task.done():
                wrong.append(f"slot {name} does not answer")
            elif not task.cancelled() and (error := task.exception()) is not None:
                wrong.append(f"slot {name} fails: {error}")
        for name, slot in self._slots.items():
            self._answered[name] = slot.totals.answered
        if wrong:
            words = "; ".join(wrong)
            logger.error("not well: %s", words, extra={"event": "watchdog_unwell"})
        else:
            self._alive()
        return wrong

    def _busy(self, name: str, slot: Slot) -> bool:
        """Whether it answered somebody since the last look ended."""
        return self._answered.get(name, slot.totals.answered) != slot.totals.answered


async def _ask(slot: Slot) -> None:
    model = slot.active
    if model is None:
        return
    try:
        await slot.in_pool(model.canary)
    except EdgepackError:
        # a swap takes a model away from under whoever asks it; the new one is asked next time
        if slot.active is model:
            raise

"""When a daemon is asked to end: once to end well, twice to hurry."""

from __future__ import annotations

import asyncio
import signal


class Stop:
    """SIGTERM and SIGINT, which from now on do not kill the process.

    Attributes:
        asked: Set by the first.
        hurried: Set by the second.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.asked, self.hurried = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask)

    def ask(self) -> None:
        """Ask once more."""
        if self.asked.is_set():
            self.hurried.set()
        self.asked.set()


async def until_stopped(stop: Stop, *work: asyncio.Task[None]) -> None:
    """Wait until asked to stop, or for a piece of work to end, which it should not.

    Raises:
        BaseException: What ended the work.
    """
    waiting = asyncio.create_task(stop.asked.wait())
    done, _ = await asyncio.wait({waiting, *work}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for task in done - {waiting}:
        task.result()

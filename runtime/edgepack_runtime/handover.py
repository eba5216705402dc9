"""Messages from the link's thread to the loop, with an end to how many wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

MOST_WAITING = 64


class Handover:
    """Hands messages over in order; beyond the bound the link reads no more until some were taken.

    A flood then waits at the broker, which has bounds of its own, and not in this process.

    Args:
        loop: Whose thread takes them.
        take: Takes one, by topic and payload.
        most: How many may wait.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[str, bytes], None],
        *,
        most: int = MOST_WAITING,
    ) -> None:
        self._loop, self._handle = loop, take
        self._free = threading.Semaphore(most)

    def put(self, topic: str, payload: bytes) -> None:
        """Hand a message over, from the link's thread."""
        self._free.acquire()
        self._loop.call_soon_threadsafe(self._take, topic, payload)

    def _take(self, topic: str, payload: bytes) -> None:
        self._free.release()
        self._handle(topic, payload)

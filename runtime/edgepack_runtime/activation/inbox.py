"""What other threads say to a slot's thread: wishes, and that it should end."""

from __future__ import annotations

import threading
from collections import deque

from edgepack_runtime.activation.events import Wished


class Inbox:
    """Wishes in their order. Everything that the slot's thread waits for ends when one comes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wishes: deque[Wished] = deque()
        self._stopping = False
        self._put = 0

    def put(self, wished: Wished) -> int:
        """Add a wish; returns its number, from 1."""
        with self._changed:
            self._wishes.append(wished)
            self._put += 1
            self._changed.notify_all()
            return self._put

    def stop(self) -> None:
        """Ask the thread to end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def take(self) -> Wished | None:
        """The next wish, None without waiting for one."""
        with self._changed:
            return self._wishes.popleft() if self._wishes else None

    @property
    def stopping(self) -> bool:
        """Whether the thread should end."""
        return self._stopping

    @property
    def waiting(self) -> bool:
        """Whether there is something to attend to."""
        return self._stopping or bool(self._wishes)

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to attend to, at most ``seconds``; whether there is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.waiting, timeout=seconds)

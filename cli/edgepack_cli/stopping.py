"""Commands that leave nothing behind when somebody or something ends them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, what schedulers send, and what a terminal or a connection sends that is closed."""


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """While in it, the signals of :data:`ENDINGS` clean up as Ctrl-C does; nohup keeps its word.

    Yields:
        To be called now and then; it raises KeyboardInterrupt again if one was asked for. A
        library in C that looks for another one, as pyarrow does for pandas, takes the first for a
        failed import and goes on.
    """
    asked: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in ENDINGS}
    taken = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in taken:
        signal.signal(number, end)
    try:
        yield check
    finally:
        for number, old in taken.items():
            signal.signal(number, old)

"""A few threads for what is too slow for the event loop, which the process can leave behind.

:class:`concurrent.futures.ThreadPoolExecutor` joins its threads when the process ends, so that one
run of a model which never returns would keep a stopped daemon from ending, and a slot for ever one
thread short.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

MOST_LOST = 16
"""Threads of one crew that may hang; with more there is no end to it, and none is replaced."""


@dataclass(frozen=True, slots=True)
class _Job:
    future: Future[Any]
    work: Callable[[], Any]

    def carry_out(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.work())
        except BaseException as error:  # noqa: BLE001 - carried to whoever waits for the job
            self.future.set_exception(error)


class Crew:
    """Threads that do jobs in the order in which they come.

    Args:
        size: How many.
        name: What they are called.
    """

    def __init__(self, size: int, name: str) -> None:
        self.lost = 0
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        for _ in range(size):
            self._add()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have something done; a job that has not begun can be cancelled."""
        future: Future[T] = Future()
        self._jobs.put(_Job(future, work))
        return future

    def replace(self, job: Future[Any]) -> None:
        """Give up the thread that hangs in ``job``; another takes its place.

        Should it come back after all, one thread ends.
        """
        if self.lost < MOST_LOST:
            self.lost += 1
            self._add()
            job.add_done_callback(self._found)

    def stop(self, timeout: float) -> None:
        """Finish the jobs that are there, and wait ``timeout`` seconds for each thread at most."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout if not self.lost else 0.0)

    def _found(self, _job: Future[Any]) -> None:
        self.lost -= 1
        self._jobs.put(None)

    def _add(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.carry_out()

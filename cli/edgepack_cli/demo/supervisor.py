"""Keeps the demo's processes running: a child that dies is started again within a second."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CHECK_SECONDS = 0.1
STOP_SECONDS = 10.0


@dataclass(slots=True)
class Child:
    """One supervised process.

    ``is_ready`` says whether it works after its first start, ``is_back`` whether it does all that
    it did before it died; without the latter the former counts. ``outages`` are pairs (died, back)
    in monotonic seconds; the second is None until the process is back.
    """

    name: str
    command: Sequence[str]
    log: Path
    is_ready: Callable[[], bool]
    is_back: Callable[[], bool] | None = None
    process: subprocess.Popen[bytes] | None = None
    outages: list[list[float | None]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """The process id now."""
        if self.process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.process.pid

    def was_down(self, moment: float, *, margin: float) -> bool:
        """Whether ``moment`` (monotonic seconds) lies in an outage, give or take ``margin``."""
        return any(
            died is not None
            and died - margin <= moment
            and (back is None or moment <= back + margin)
            for died, back in self.outages
        )


class Supervisor:
    """Starts children, restarts them, stops them in the opposite order."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._children: list[Child] = []
        self._stopping = threading.Event()
        self._something = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self, child: Child) -> Child:
        """Start a child and watch it from now on.

        The watching thread starts it: an exception of a signal, which comes on the main thread,
        cannot come between the process and our knowing of it.
        """
        self._children.append(child)
        self._something.set()
        if not self._thread.is_alive():
            self._thread.start()
        while child.process is None and self._thread.is_alive():
            time.sleep(CHECK_SECONDS / 10)
        return child

    def wait_ready(self, children: Sequence[Child], *, seconds: float) -> None:
        """Wait until every child works.

        Raises:
            TimeoutError: One does not in time; the message ends with the end of its log.
        """
        deadline = time.monotonic() + seconds
        for child in children:
            while not child.is_ready():
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{child.name} did not start; its log ends:\n{_tail(child.log)}"
                    )
                time.sleep(CHECK_SECONDS / 2)

    def kill(self, child: Child) -> None:
        """SIGKILL, as a crash would; the watch starts it again."""
        os.kill(child.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Stop everything; SIGTERM first, SIGKILL for what does not listen."""
        self._stopping.set()
        self._something.set()
        if self._thread.is_alive():
            self._thread.join()
        for child in reversed(self._children):
            _terminate(child)

    def _spawn(self, child: Child) -> None:
        with child.log.open("ab") as log:
            child.process = subprocess.Popen(  # noqa: S603 - our own programs
                list(child.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def _watch(self) -> None:
        while not self._stopping.is_set():
            for child in list(self._children):
                self._check(child)
            self._something.wait(CHECK_SECONDS)
            self._something.clear()

    def _check(self, child: Child) -> None:
        if child.process is None:
            self._spawn(child)
        elif child.process.poll() is not None:
            if not self._stopping.is_set():
                child.outages.append([time.monotonic(), None])
                self._spawn(child)
        elif child.outages and child.outages[-1][1] is None and (child.is_back or child.is_ready)():
            child.outages[-1][1] = time.monotonic()


def _terminate(child: Child) -> None:
    process = child.process
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(path: Path, lines: int = 12) -> str:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-lines:])

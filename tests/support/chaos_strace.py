"""Tracing one thread of a stopped process with strace: what it calls, and a signal or an error.

strace counts ``when=`` for each thread and each system call by itself. Hence a thread is named, and
strace is attached to it alone (``-p`` without ``-f``) before its first call: then ``when=k`` is the
k-th such call of that thread, whatever the others do.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

ATTACH_SECONDS = 20.0


class Tracer:
    """strace on one thread.

    Args:
        thread: Which.
        options: What to do with its calls.
        log: Where strace writes.
    """

    def __init__(self, thread: int, options: list[str], log: Path) -> None:
        self._log = log
        command = ["strace", "-qq", "-p", str(thread), "-o", str(log), *options]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._wait_attached(thread)

    def finish(self) -> str:
        """Wait for strace, which ends with the thread; what it wrote."""
        try:
            self._process.communicate(timeout=ATTACH_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _wait_attached(self, thread: int) -> None:
        status = Path(f"/proc/{thread}/status")
        deadline = time.monotonic() + ATTACH_SECONDS
        while "TracerPid:\t0" in status.read_text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._process.communicate()[0].decode(errors="replace")
                raise RuntimeError(f"strace does not trace: {said}")
            time.sleep(0.001)


def count_options() -> list[str]:
    """Count every call."""
    return ["-c", "-U", "calls,name"]


def kill_options(call: str, when: int) -> list[str]:
    """Kill the process at the ``when``-th call of that name, before it takes effect."""
    return ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={when}"]


def error_options(call: str, when: int, error: str) -> list[str]:
    """Let the ``when``-th call of that name fail without being made."""
    return ["-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}"]


def parse_counts(text: str) -> dict[str, int]:
    """Calls by name, from the table of ``strace -c``."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0].isdigit() and words[1] != "total":
            found[words[1]] = int(words[0])
    return found

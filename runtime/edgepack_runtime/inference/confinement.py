"""What a process that tries out a stranger's model takes from itself first; Linux only.

No privilege is needed for any of it, and none of it can be taken back by the process itself.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

OUTPUT_BYTES = 1024 * 1024
"""All that it may write, to files and to what its parent reads."""

_FILES = 64
_SPARE_BYTES = 64 * 1024 * 1024
_PR_SET_PDEATHSIG = 1


class OrphanedError(RuntimeError):
    """The parent was gone before this process could be tied to it."""


def confine(*, seconds: int, parent: int) -> None:
    """Bound the time, the output and the open files of this process, and tie it to its parent.

    Processes are not bounded: the kernel counts those of the user, not those of this process.

    Args:
        seconds: Of wall clock; as many of each core.
        parent: Its process id; this process dies with the thread that started it. 0 for none.

    Raises:
        OrphanedError: The parent is gone already.
    """
    if parent:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            raise OrphanedError("nobody waits for this process")
    # should the parent hang, nobody else is left to end a model that does
    signal.alarm(seconds)
    on_all_cores = seconds * (os.cpu_count() or 1)
    resource.setrlimit(resource.RLIMIT_CPU, (on_all_cores, on_all_cores + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_BYTES, OUTPUT_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    os.nice(5)
    _be_the_first_to_go()
    _leave_every_folder()


def limit_memory(most: int) -> None:
    """Stop a runaway: from now on the process may take about ``most`` bytes, and not far more.

    RLIMIT_DATA counts what is reserved, and stacks and arenas reserve far more than they touch. The
    exact limit is to be held against :func:`peak_bytes` afterwards.
    """
    reserved = max((status_bytes("VmData") or 0) - (status_bytes("RssAnon") or 0), 0)
    limit = most + reserved + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def limit_cpu(seconds: int) -> None:
    """From now on the process may have computed for so many seconds in all, and then ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (min(seconds, hard), hard))


def keep_output_apart() -> int:
    """Send whatever is printed from now on to standard error; where standard output went before."""
    kept = os.dup(1)
    os.dup2(2, 1)
    return kept


def status_bytes(name: str) -> int | None:
    """A size that the kernel keeps of this process, by its name in ``/proc/self/status``."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        field, _, value = line.partition(":")
        if field == name:
            return int(value.split()[0]) * 1024
    return None


def _be_the_first_to_go() -> None:
    """When memory runs out, the kernel shall end this process and not the one that serves."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _leave_every_folder() -> None:
    """Work in a folder that is empty and stays so, because it is removed already."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="edgepack-probe-"))
        os.chdir(folder)
        folder.rmdir()
    except OSError:
        # a full or read-only disk; what matters is that no file of a model's choice is found
        os.chdir("/")

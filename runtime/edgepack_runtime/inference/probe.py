"""Try a model in a child process before it may come near the one that serves.

A malformed graph can crash, hang or exhaust the process that loads it. The child bears that; this
module, which runs in the parent, only starts it and reads its verdict. It imports neither numpy
nor onnxruntime. ``python -m edgepack_runtime.inference.child FOLDER`` is the child. It has a
session of its own, no environment to speak of, and ends with its parent.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

ProbeCode = Literal[
    "", "load-failed", "golden-mismatch", "latency-budget",
    "probe-memory", "probe-timeout", "probe-cpu", "probe-crashed",
    "malformed-model", "undescribed-model", "forbidden-operator", "external-data", "model-limits",
]  # fmt: skip

REFUSING = frozenset({
    "malformed-model", "undescribed-model", "forbidden-operator", "external-data", "model-limits",
})  # fmt: skip
"""What the pre-scan says of a graph that must not be: the whole bundle is refused for it."""

ROUNDS = 3
CPU_SHARE = 0.75
"""Of the time that a probe has: what a thread may compute of it, however busy the machine is."""

_READ_BYTES = 64 * 1024
_WORDS = 500
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "TMPDIR")
"""What finds the libraries, and room for a folder."""

_SECONDS_MORE = 5
"""The parent ends the child; should it not, the child ends itself so much later."""


class Order(NamedTuple):
    """What the child is to do, as its command line has it.

    ``memory_bytes`` is 0 for no limit, ``seconds`` after how many it ends itself, ``parent`` the
    process it ends with, 0 for none, ``cpu_seconds`` what each thread may compute, 0 for no limit.
    """

    folder: str
    memory_bytes: int = 0
    threads: int = 1
    seconds: int = 65
    rounds: int = ROUNDS
    parent: int = 0
    cpu_seconds: int = 0


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The verdict on one variant, on this machine.

    ``code`` is empty when the model may be activated, else it and ``words`` say why not. Latencies
    are milliseconds of one golden row, ``load_ms`` those of loading; ``peak_bytes`` is the most
    memory that the child held, and ``model_bytes`` how much of it the model added. ``rows`` golden
    rows were right.
    """

    code: ProbeCode
    words: str = ""
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    peak_bytes: int | None = None
    model_bytes: int | None = None
    load_ms: float | None = None
    rows: int = 0

    @property
    def ok(self) -> bool:
        """Whether the model may be activated."""
        return not self.code


def probe_model(
    folder: Path,
    *,
    timeout_s: float,
    memory_bytes: int | None = None,
    threads: int = 1,
    rounds: int = ROUNDS,
    cpu_seconds: int | None = None,
) -> ProbeResult:
    """Load, check and measure an unpacked variant in a child. Blocks; never raises for the model.

    Args:
        folder: The files of one variant, already verified.
        timeout_s: The child is killed after this many seconds.
        memory_bytes: The most memory the child may hold, None for no limit.
        threads: Threads of the model where its description leaves them to the device.
        rounds: How often latency is measured; the quietest round counts, and with 0 there is none.
        cpu_seconds: What each of its threads may compute; None for :data:`CPU_SHARE` of the time.
            That it is used up is the model's doing, and not that of a busy machine.
    """
    seconds = math.ceil(timeout_s) + _SECONDS_MORE
    order = Order(
        str(folder.absolute()),
        memory_bytes or 0,
        threads,
        seconds,
        rounds,
        os.getpid(),
        cpu_seconds or math.ceil(CPU_SHARE * timeout_s),
    )
    # -P: the current folder is nobody's package
    command = [sys.executable, "-P", "-m", "edgepack_runtime.inference.child", *map(str, order)]
    # in memory, because the disk may be full; the child bounds what it writes
    out, err = os.memfd_create("probe-out"), os.memfd_create("probe-err")
    try:
        with _started(command, out, err) as child:
            return verdict(child.wait(timeout_s), _read(out), _read(err))
    except subprocess.TimeoutExpired:
        return _timed_out(f"not done within {timeout_s:g} s")
    except OSError as error:
        return ProbeResult(code="probe-crashed", words=f"the child did not start: {error}")
    finally:
        os.close(out)
        os.close(err)


@contextmanager
def _started(command: list[str], out: int, err: int) -> Iterator[subprocess.Popen[bytes]]:
    """The child, which is gone at the end with all that it may have started."""
    child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        env=_environment(),
        start_new_session=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def verdict(returncode: int, out: bytes, err: bytes) -> ProbeResult:
    """Read the end of a child: its own words when it had any, else how it died.

    Args:
        returncode: As subprocess gives it: minus the signal for a death by signal.
        out: What it wrote to standard output.
        err: What it wrote to standard error.
    """
    if returncode < 0:
        return _killed(-returncode)
    try:
        result = msgspec.json.decode(out, type=ProbeResult)
    except msgspec.DecodeError:
        last = err.decode(errors="replace").strip()[-_WORDS:] or "it said nothing"
        return ProbeResult(code="probe-crashed", words=f"exit {returncode} without verdict: {last}")
    if result.ok != (returncode == 0):
        return ProbeResult(code="probe-crashed", words=f"exit {returncode} contradicts its verdict")
    return result


def _killed(number: int) -> ProbeResult:
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    if number == signal.SIGALRM:
        return _timed_out(f"ended by {name}")
    if number == signal.SIGXCPU:
        words = "the model computed for all the processor time that it may take, without an end"
        return ProbeResult(code="probe-cpu", words=words)
    if number == signal.SIGKILL:
        # nobody else kills it: the parent's own kill is reported as a timeout before this
        return ProbeResult(
            code="probe-memory", words="killed by the kernel, which was out of memory"
        )
    return ProbeResult(code="probe-crashed", words=f"onnxruntime died of {name}")


def _timed_out(words: str) -> ProbeResult:
    return ProbeResult(code="probe-timeout", words=f"the model was {words}")


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {
        **kept,
        "ORT_DISABLE_TELEMETRY": "1",
        "MALLOC_ARENA_MAX": "2",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _read(descriptor: int) -> bytes:
    # positioned, because the offset of the file is shared with the child that wrote it
    return os.pread(descriptor, _READ_BYTES, max(0, os.fstat(descriptor).st_size - _READ_BYTES))

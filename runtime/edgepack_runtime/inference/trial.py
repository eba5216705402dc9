"""The judgement of the probe's child: load, golden rows, latency, memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack_contract.description import GOLDEN_PATH, Description
from edgepack_contract.errors import BundleError
from edgepack_runtime.inference.confinement import limit_memory, status_bytes
from edgepack_runtime.inference.errors import GoldenError, ModelError
from edgepack_runtime.inference.golden import compare_golden, load_golden, run_rows, split_rows
from edgepack_runtime.inference.probe import ROUNDS
from edgepack_runtime.inference.session import Session, Tensor
from edgepack_runtime.inference.variant import open_variant

RUNS_PER_ROUND = 200
ROUND_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one row."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


def run_trial(
    folder: Path, description: Description, *, memory_bytes: int, threads: int, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Judge one variant, whose graph was looked over, in this process.

    Args:
        folder: Its files.
        description: What it says of itself.
        memory_bytes: The most that this process may hold; 0 for no limit but the bundle's budget.
        threads: Threads of a session where the description leaves them to the device.
        rounds: How often latency is measured.

    Returns:
        The fields of a ``ProbeResult``.
    """
    limits = [size for size in (memory_bytes, description.budgets.memory_bytes) if size]
    before = status_bytes("VmRSS")
    if limits:
        # what is imported already is not the model's
        limit_memory(max(min(limits), status_bytes("RssAnon") or 0))
    try:
        found = _judge(folder, description, memory_bytes, threads, rounds)
    except MemoryError as error:
        found = refused("probe-memory", f"out of memory: {error}")
    except (ModelError, BundleError, OSError) as error:
        found = refused(_code_of(error), str(error))
    peak = status_bytes("VmHWM")
    return found | {
        "peak_bytes": peak,
        "model_bytes": max(peak - before, 0) if peak and before else None,
    }


def refused(code: str, words: str) -> dict[str, Any]:
    """The fields of a ``ProbeResult`` that says no."""
    return {"code": code, "words": words[:500]}


def measure(
    run: Callable[[int], object],
    clock: Callable[[], float] = time.perf_counter,
    rounds: int = ROUNDS,
) -> Latency:
    """Time ``run(i)`` in rounds and return the round with the lowest p95.

    Whatever else the machine does can only add time, so the quietest round is the nearest to what
    the model takes.
    """
    found = (measure_round(run, clock) for _ in range(rounds))
    return min(found, key=lambda latency: latency.p95_ms)


def measure_round(
    run: Callable[[int], object],
    clock: Callable[[], float] = time.perf_counter,
    *,
    runs: int = RUNS_PER_ROUND,
    seconds: float = ROUND_SECONDS,
) -> Latency:
    """Time ``run(i)`` once round: ``runs`` times or for ``seconds``, at least once."""
    taken: list[float] = []
    started = clock()
    while len(taken) < runs and (not taken or clock() - started < seconds):
        begun = clock()
        run(len(taken))
        taken.append((clock() - begun) * 1e3)
    taken.sort()
    p50, p95, p99 = (taken[math.ceil(share * len(taken)) - 1] for share in (0.5, 0.95, 0.99))
    return Latency(p50, p95, p99)


def _judge(
    folder: Path, description: Description, memory_bytes: int, threads: int, rounds: int
) -> dict[str, Any]:
    begun = time.perf_counter()
    session = open_variant(folder, description, default_threads=threads)
    figures: dict[str, Any] = {"load_ms": (time.perf_counter() - begun) * 1e3}
    rows = load_golden(folder / GOLDEN_PATH)
    golden = description.golden
    result = compare_golden(run_rows(session, rows.inputs, golden.rows), rows.outputs, golden)
    if not result.ok:
        return refused("golden-mismatch", result.words)
    figures["rows"] = golden.rows
    if not rounds:
        return {"code": "", "words": ""} | figures
    latency = _measure_rows(session, rows.inputs, golden.rows, rounds)
    figures |= {"p50_ms": latency.p50_ms, "p95_ms": latency.p95_ms, "p99_ms": latency.p99_ms}
    code, words = _over_budget(description, latency, memory_bytes)
    return {"code": code, "words": words} | figures


def _measure_rows(session: Session, inputs: dict[str, Tensor], rows: int, rounds: int) -> Latency:
    feeds = list(split_rows(session, inputs, rows))
    return measure(lambda number: session.run(feeds[number % rows]), rounds=rounds)


def _over_budget(description: Description, latency: Latency, memory_bytes: int) -> tuple[str, str]:
    budgets = description.budgets
    if budgets.latency_ms is not None and latency.p95_ms > budgets.latency_ms:
        return "latency-budget", (
            f"{latency.p95_ms:.3g} ms here for 95 % of single rows, "
            f"{budgets.latency_ms:g} ms allowed"
        )
    peak = status_bytes("VmHWM") or 0
    for limit, whose in (
        (memory_bytes, "the device's limit"),
        (budgets.memory_bytes, "its budget"),
    ):
        if limit and peak > limit:
            return "probe-memory", f"held {peak} bytes at its peak, {whose} is {limit}"
    return "", ""


def _code_of(error: Exception) -> str:
    if isinstance(error, GoldenError):
        return "golden-mismatch"
    code = getattr(error, "code", "")
    return "probe-memory" if code == "out-of-memory" else "load-failed"

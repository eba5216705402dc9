"""Trying out a model in no more memory than the machine can spare now."""

from __future__ import annotations

from pathlib import Path

from edgepack_contract.limits import MIB
from edgepack_runtime.inference.probe import ROUNDS, ProbeResult, probe_model
from edgepack_runtime.memory import available_bytes

RESERVE_BYTES = 64 * MIB
"""What a probe leaves to those who serve meanwhile."""

LEAST_BYTES = 64 * MIB
"""With less not even onnxruntime itself can be loaded."""


def spare_bytes(available: int | None) -> int | None:
    """What a probe may hold of the memory that is available; None where that is not known."""
    return None if available is None else max(0, available - RESERVE_BYTES)


def probe_here(
    folder: Path, *, timeout_s: float, threads: int = 1, rounds: int = ROUNDS
) -> ProbeResult:
    """Probe a variant within what memory there is; see :func:`.probe_model`."""
    spare = spare_bytes(available_bytes())
    if spare is not None and spare < LEAST_BYTES:
        words = f"{spare} bytes of memory can be spared for trying it, {LEAST_BYTES} are needed"
        return ProbeResult(code="probe-memory", words=words)
    return probe_model(
        folder, timeout_s=timeout_s, memory_bytes=spare, threads=threads, rounds=rounds
    )

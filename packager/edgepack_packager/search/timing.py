"""Latency of candidates, measured in turns, so that what else the machine does hits all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack_contract.description import SessionOptions
from edgepack_contract.limits import MIB
from edgepack_packager.data.rows import Feeds
from edgepack_packager.graphs.running import model_size, open_folder
from edgepack_runtime.inference.probe import ROUNDS
from edgepack_runtime.inference.session import Session
from edgepack_runtime.inference.trial import (
    ROUND_SECONDS,
    RUNS_PER_ROUND,
    Latency,
    measure_round,
)

Times = dict[str, Latency]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to measure: rounds, and runs or seconds of each, whatever ends first."""

    rounds: int
    runs: int
    seconds: float


GLANCE = Pace(rounds=2, runs=20, seconds=0.1)
"""To see what is slower by far."""

FULL = Pace(rounds=ROUNDS, runs=RUNS_PER_ROUND, seconds=ROUND_SECONDS)
"""As a device's own probe measures."""

SIDE_BY_SIDE_BYTES = 64 * MIB
"""Models of a turn that together take more than this are loaded in several turns."""


def take_turns(
    reference: str,
    folders: Mapping[str, Path],
    rows: Sequence[Feeds],
    options: SessionOptions,
    pace: Pace,
) -> Times:
    """The latency of every candidate, each measured next to the reference.

    Args:
        reference: The name of the candidate that the others are held against.
        folders: Where each candidate is, by name.
        rows: Single rows to time.
        options: The session options of the target.
        pace: How long to measure.

    Returns:
        For each candidate its quietest round, as a device's own probe takes it.
    """
    found: Times = {}
    sizes = {name: model_size(folder) for name, folder in folders.items() if name != reference}
    for group in groups(sizes, SIDE_BY_SIDE_BYTES):
        together = {name: folders[name] for name in (reference, *group)}
        for name, latency in _rounds(together, rows, options, pace).items():
            found[name] = _quieter(found.get(name), latency)
    return found


def groups(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in order, in groups whose sizes add up to at most ``most``; at least one group."""
    found: list[list[str]] = [[]]
    for name, size in sizes.items():
        if found[-1] and sum(sizes[other] for other in found[-1]) + size > most:
            found.append([])
        found[-1].append(name)
    return found


def _rounds(
    folders: Mapping[str, Path], rows: Sequence[Feeds], options: SessionOptions, pace: Pace
) -> Times:
    sessions = {name: open_folder(folder, options=options) for name, folder in folders.items()}
    found: Times = {}
    for _ in range(pace.rounds):
        for name, session in sessions.items():
            latency = measure_round(_runner(session, rows), runs=pace.runs, seconds=pace.seconds)
            found[name] = _quieter(found.get(name), latency)
    for session in sessions.values():
        session.release()
    return found


def _runner(session: Session, rows: Sequence[Feeds]) -> Callable[[int], object]:
    return lambda turn: session.run(rows[turn % len(rows)])


def _quieter(one: Latency | None, other: Latency) -> Latency:
    return other if one is None or other.p95_ms < one.p95_ms else one

"""Rows split into calibration, evaluation and reference, whole sequences and times at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack_packager.data.rows import Array, Parts, Rows
from edgepack_packager.data.sequences import sequence_numbers
from edgepack_packager.errors import DataError

CALIBRATION_ROWS = 512
CALIBRATION_SHARE = 0.15
EVALUATION_SHARE = 0.60
"""The larger part goes to the proof, since the width of its interval is what decides."""

LEAST_ROWS = 8
LEAST_SEQUENCES = 3

Indices = npt.NDArray[np.intp]


def split_rows(
    rows: Rows, *, seed: int, times: Array | None = None, sequences: Array | None = None
) -> Parts:
    """Split rows into three parts that share no row, the same way for the same seed.

    What is split are rows, or with ``sequences`` whole sequences. By ``times``, the latest are the
    evaluation, as a model meets them, and what has the same time stays together; the older ones
    are dealt to calibration and reference by the seed. Reference and evaluation keep the order
    that the rows came in, or that of time.

    Args:
        rows: All rows.
        seed: Of the random choices.
        times: The time of each row: numbers or times.
        sequences: The sequence of each row.

    Raises:
        DataError: There is too little to split, or a time is none.
    """
    if rows.n < LEAST_ROWS:
        raise DataError(
            f"{rows.n} rows are too few to split; give at least {LEAST_ROWS}", code="too-few-rows"
        )
    units = np.arange(rows.n) if sequences is None else sequence_numbers(sequences, rows.n)
    sizes = np.bincount(units)
    if len(sizes) < LEAST_SEQUENCES:
        raise DataError(
            f"{len(sizes)} sequences are too few to split; give at least {LEAST_SEQUENCES}, or "
            "calibration, evaluation and reference rows one by one",
            code="too-few-sequences",
        )
    random = np.random.default_rng(seed)
    if times is None:
        dealt = _deal(sizes, random.permutation(len(sizes)))
    else:
        times = _checked(times)
        dealt = _by_time(sizes, _starts(times, units, len(sizes)), random)
    plain = times is None and sequences is None
    parts = [_rows_of(groups, units, times) for groups in dealt]
    # plain rows are calibrated on in the order that they are drawn in
    calibration = dealt[0] if plain else parts[0]
    return Parts(rows.take(calibration), rows.take(parts[1]), rows.take(parts[2]))


def split_in_order(rows: Rows) -> Parts:
    """Cut rows that are one sequence into three, in order: what is judged on comes last.

    Raises:
        DataError: Fewer than 8 rows: there is nothing to split.
    """
    if rows.n < LEAST_ROWS:
        raise DataError(
            f"{rows.n} rows are too few to split; give at least {LEAST_ROWS}", code="too-few-rows"
        )
    calibration = _calibration_size(rows.n)
    reference = rows.n - int(rows.n * EVALUATION_SHARE)
    return Parts(
        calibration=rows.take(np.arange(calibration)),
        evaluation=rows.take(np.arange(reference, rows.n)),
        reference=rows.take(np.arange(calibration, reference)),
    )


def _deal(sizes: Indices, order: Indices) -> tuple[Indices, Indices, Indices]:
    """Groups in ``order`` to calibration, evaluation and reference until each has its share."""
    n, total = int(sizes.sum()), np.cumsum(sizes[order])
    wanted = _calibration_size(n)
    first = _reached(total, wanted, most=len(order) - 2)
    more = int((n - wanted) * EVALUATION_SHARE / (1 - CALIBRATION_SHARE))
    second = max(_reached(total, wanted + more, most=len(order) - 1), first + 1)
    return order[:first], order[first:second], order[second:]


def _by_time(
    sizes: Indices, starts: Array, random: np.random.Generator
) -> tuple[Indices, Indices, Indices]:
    order = np.argsort(starts, kind="stable")
    ordered, total = starts[order], np.cumsum(sizes[order])
    n = int(total[-1])
    # a cut is possible where time goes on, and leaves at least two groups before it
    cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    cuts = cuts[cuts >= 2]
    if not len(cuts):
        raise DataError(
            "the times leave nothing to split: all but the first are the same", code="bad-time"
        )
    gaps = np.abs(total[cuts - 1] - n * (1 - EVALUATION_SHARE))
    cut = int(cuts[np.argmin(gaps)])
    older = random.permutation(order[:cut])
    first = _reached(np.cumsum(sizes[older]), _calibration_size(n), most=len(older) - 1)
    return older[:first], order[cut:], older[first:]


def _calibration_size(n: int) -> int:
    return min(CALIBRATION_ROWS, max(1, int(n * CALIBRATION_SHARE)))


def _reached(total: Indices, wanted: int, *, most: int) -> int:
    """How many groups it takes to have ``wanted`` rows, between 1 and ``most``."""
    return min(int(np.searchsorted(total, wanted)) + 1, most)


def _checked(times: Array) -> Array:
    if times.ndim != 1 or times.dtype.kind not in "iufM":
        raise DataError(
            f"the time column holds {_kind(times)} such as {str(times.reshape(-1)[0])!r}; write "
            "times as in 2026-03-31T12:00:00, or as numbers",
            code="bad-time",
        )
    gone = np.isnat(times) if times.dtype.kind == "M" else ~np.isfinite(times.astype(np.float64))
    if gone.any():
        raise DataError(f"row {int(np.argmax(gone))} has no time", code="bad-time")
    return times


def _kind(values: npt.NDArray[Any]) -> str:
    return "texts" if values.dtype.kind in "OU" else str(values.dtype)


def _starts(times: Array, units: Indices, count: int) -> Array:
    """The earliest time of each group."""
    order = np.argsort(times, kind="stable")
    _, first = np.unique(units[order], return_index=True)
    found: Array = times[order][first]
    return found[:count]


def _rows_of(groups: Indices, units: Indices, times: Array | None) -> Indices:
    rows = np.flatnonzero(np.isin(units, groups))
    return rows if times is None else rows[np.argsort(times[rows], kind="stable")]

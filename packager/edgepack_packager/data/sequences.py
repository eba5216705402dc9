"""Sequences: which rows follow which, so that a state can be carried from one to the next."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgepack_packager.data.rows import Array
from edgepack_packager.errors import DataError

Indices = npt.NDArray[np.intp]


def sequence_numbers(names: Array | None, rows: int) -> Indices:
    """The number of each row's sequence, shape (rows,); sequences are numbered as they appear.

    Args:
        names: The sequence of each row; None when all rows are one sequence, in order.
        rows: How many rows there are.

    Raises:
        DataError: A row names no sequence.
    """
    if names is None:
        return np.zeros(rows, dtype=np.intp)
    nameless = [name is None or name != name for name in names.tolist()]  # noqa: PLR0124 - NaN
    if any(nameless):
        raise DataError(
            f"row {nameless.index(True)} names no sequence; every row belongs to one",
            code="bad-sequence",
        )
    known: dict[object, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names.tolist()], dtype=np.intp)


def step_rows(units: Indices) -> list[Indices]:
    """The rows of each step: at step t, the row t of every sequence that is so long.

    The longest sequences come first, so that those of a step are the first of the step before.

    Args:
        units: The number of each row's sequence, shape (rows,).
    """
    order = np.argsort(units, kind="stable")
    lengths = np.bincount(units)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    longest = np.argsort(-lengths, kind="stable")
    return [
        order[starts[longest[: int(np.count_nonzero(lengths > step))]] + step]
        for step in range(int(lengths.max(initial=0)))
    ]


def previous_rows(units: Indices) -> Indices:
    """The row before each row in its sequence, shape (rows,); -1 for the first of a sequence."""
    order = np.argsort(units, kind="stable")
    before = np.concatenate([[-1], order[:-1]])
    first = np.concatenate([[True], units[order][1:] != units[order][:-1]])
    found = np.empty(len(units), dtype=np.intp)
    found[order] = np.where(first, -1, before)
    return found

"""Figures by the values of a column: where a model that is good on the whole is not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from edgepack_packager.data.rows import Array
from edgepack_packager.evidence.exam import Exam
from edgepack_packager.evidence.figures import Figures, SliceFigure
from edgepack_packager.evidence.losses import Losses
from edgepack_packager.evidence.statistic import number

MOST_NUMBERS = 20
"""A column of more different numbers than these is cut at its quartiles."""

MOST_VALUES = 50
OTHER = "other"
MISSING = "missing"


def slice_figures(exam: Exam, metric: str, losses: Losses) -> tuple[SliceFigure, ...]:
    """Figures for every value of every slice's column, in the order of the values."""
    return tuple(
        _slice_figure(column, value, rows, exam, metric, losses)
        for column, values in exam.slices.items()
        for value, rows in cut(values)
    )


def _slice_figure(
    column: str, value: str, rows: Array, exam: Exam, metric: str, losses: Losses
) -> SliceFigure:
    part = losses.of(rows)
    units = None if exam.units is None else number(exam.units[rows])
    loss, _ = part.loss(units)
    return SliceFigure(column, value, len(rows), metric, part.figure(units), loss)


def cut(values: Array) -> Iterator[tuple[str, Array]]:
    """The name of each value, or range of values, and the numbers of its rows.

    At most ``MOST_VALUES`` values are told apart, the most frequent; the rest is ``other``.
    """
    flat = values.reshape(len(values), -1)[:, 0]
    gone = _missing(flat)
    names = np.full(len(flat), MISSING, dtype=object)
    known = flat[~gone]
    order: list[str] = []
    if len(known):
        codes, order = _quartiles(known) if _is_wide(known) else _each(known)
        names[~gone] = np.array(order, dtype=object)[codes]
    if gone.any():
        order.append(MISSING)
    for name in dict.fromkeys(order):
        rows = np.flatnonzero(names == name)
        if len(rows):
            yield name, rows


def _missing(values: Array) -> Array:
    if values.dtype.kind == "f":
        return np.asarray(np.isnan(values))
    if values.dtype.kind in "mM":
        return np.asarray(np.isnat(values))
    return np.array([value is None for value in values.tolist()], dtype=np.bool_)


def _is_wide(values: Array) -> bool:
    return values.dtype.kind in "iufmM" and len(np.unique(values)) > MOST_NUMBERS


def _quartiles(values: Array) -> tuple[Array, list[str]]:
    edges = np.unique(np.quantile(values, [0.25, 0.5, 0.75], method="lower"))
    codes = np.searchsorted(edges, values, side="left")
    ends = [_spell(edge) for edge in edges]
    middle = [f"{low} < x <= {high}" for low, high in pairwise(ends)]
    return codes, [f"<= {ends[0]}", *middle, f"> {ends[-1]}"]


def _each(values: Array) -> tuple[Array, list[str]]:
    plain = values.astype(str) if values.dtype.kind == "O" else values
    different, codes, counts = np.unique(plain, return_inverse=True, return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[:MOST_VALUES])
    places = np.full(len(different), len(kept))
    places[kept] = np.arange(len(kept))
    return places[codes], [*(_spell(different[place]) for place in kept), OTHER]


def _spell(value: object) -> str:
    if isinstance(value, np.floating):
        return f"{value:g}"
    return str(value)


def slice_warning(figures: Figures, allowed: float) -> str | None:
    """The worst slice, when its loss may be over what is allowed although the whole passes."""
    if figures.loss is None or figures.loss.high > allowed:
        return None
    over = [item for item in figures.slices if item.loss is not None and item.loss.value > allowed]
    if not over:
        return None
    worst = max(over, key=lambda item: item.loss.value if item.loss else 0.0)
    return (
        f"where {worst.column} is {worst.value}, the {worst.metric} loss is {worst.loss}, over the "
        f"{allowed:.4g} that holds for all rows together"
    )

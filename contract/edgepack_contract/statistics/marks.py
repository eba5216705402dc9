"""Where the values of a block lie among the edges and categories of their features.

Two ways that count alike: few features are sorted and their marks looked up, all at once; of many
features every value is compared with every mark, because a look-up then costs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgepack_contract.reference import FeatureReference

Array = NDArray[Any]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CHUNK_ROWS = 255
"""Rows counted at once: where they are compared, their number must fit in 8 bits."""

MOST_SEARCHED = 48
"""Features up to which sorting is the quicker way."""


class Marks(Protocol):
    """The edges and categories of some features of one tensor."""

    width: int
    """Columns of the widest feature."""

    def arrange(self, block: Array) -> Array:
        """Rows of single or double precision, shape (n, features), as :meth:`count` takes them.

        Returns:
            Shape (features, n); the values of a feature in any order.
        """
        ...

    def count(self, table: Array, valid: Integers) -> Integers:
        """Count values by column, shape (features, width).

        Args:
            table: As :meth:`arrange` gives it, at most ``CHUNK_ROWS`` values of each feature.
            valid: How many values of each feature are not NaN.
        """
        ...


def marks_of(features: Sequence[FeatureReference]) -> Marks:
    """The quicker way for these features."""
    return SearchedMarks(features) if len(features) <= MOST_SEARCHED else ComparedMarks(features)


class SearchedMarks:
    """Sorts each feature, and looks up where its marks would go: one search for all of them.

    Values and marks become complex numbers, which numpy orders by their real parts (the feature's
    place), then by their imaginary parts (the value). A NaN, and a mark that only fills a shorter
    feature up, come between the feature's values and the next feature.
    """

    def __init__(self, features: Sequence[FeatureReference]) -> None:
        self.width = _width(features)
        self._places = np.arange(len(features))[:, None]
        marks = np.full((len(features), self.width - 1), 0, np.complex128)
        marks.real = self._places + 0.25
        for place, item in enumerate(features):
            some = item.edges or item.categories
            marks.real[place, : len(some)] = place
            marks.imag[place, : len(some)] = np.array(some, np.float64)
        self._double, self._single = marks, marks.copy()
        self._single.imag = _in_single(marks.imag)
        self._categories = np.array(
            [place for place, item in enumerate(features) if item.kind == "category"], np.intp
        )
        self._last = np.array([features[place].columns - 1 for place in self._categories], np.intp)

    def arrange(self, block: Array) -> Array:
        """See :class:`Marks`."""
        table = block.T.copy()
        table.sort(axis=1)
        return table

    def count(self, table: Array, valid: Integers) -> Integers:
        """See :class:`Marks`."""
        features, rows = table.shape
        marks = self._double if table.dtype == np.float64 else self._single
        line = self._line(table, whole=bool((valid == rows).all()))
        firsts = self._places * rows
        under = line.searchsorted(marks.reshape(-1)).reshape(marks.shape) - firsts
        sums = np.empty((features, self.width + 1), np.int64)
        sums[:, 0], sums[:, 1:-1], sums[:, -1] = 0, under, valid
        counts: Integers = sums[:, 1:] - sums[:, :-1]
        some = self._categories
        if len(some):
            upto = line.searchsorted(marks[some].reshape(-1), side="right")
            same = upto.reshape(len(some), -1) - firsts[some] - under[some]
            counts[some, :-1], counts[some, -1] = same, 0
            counts[some, self._last] = valid[some] - same.sum(axis=1)
        return counts

    def _line(self, table: Array, *, whole: bool) -> NDArray[np.complex128]:
        line = np.empty(table.shape, np.complex128)
        line.real, line.imag = self._places, table
        if not whole:
            absent = np.isnan(table)
            line.real[absent] += 0.5
            line.imag[absent] = 0.0
        return line.reshape(-1)


class ComparedMarks:
    """Compares every value with every mark of its feature."""

    def __init__(self, features: Sequence[FeatureReference]) -> None:
        self.width = _width(features)
        self._last = np.array([item.columns - 1 for item in features], np.intp)
        self._category = np.array([item.kind == "category" for item in features], np.bool_)
        # NaN compares false with everything, so that padding counts nothing
        self._double = np.full((self.width - 1, len(features)), np.nan)
        for place, item in enumerate(features):
            marks = item.edges or item.categories
            self._double[: len(marks), place] = np.array(marks, np.float64)
        self._single = _in_single(self._double)
        self._any_category = bool(self._category.any())
        self._any_numeric = not self._category.all()

    def arrange(self, block: Array) -> Array:
        """See :class:`Marks`."""
        return block.T

    def count(self, table: Array, valid: Integers) -> Integers:
        """See :class:`Marks`."""
        block = table.T
        marks = self._double if block.dtype == np.float64 else self._single
        counts = np.zeros((self.width, len(self._last)), np.int64)
        if self._any_numeric:
            # the number of values at or over each edge; differences are the bins
            over = _true(block[:, None, :] >= marks)
            counts[0] = valid
            counts[1:] = over
            counts[:-1] -= over
        if self._any_category:
            same = _true(block[:, None, :] == marks)[:, self._category]
            counts[:, self._category] = 0
            counts[:-1, self._category] = same
            rest = valid[self._category] - same.sum(axis=0)
            counts[self._last[self._category], np.flatnonzero(self._category)] = rest
        return counts.T


def _width(features: Sequence[FeatureReference]) -> int:
    return max((item.columns for item in features), default=1)


def _in_single(marks: Floats) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # an edge beyond single precision is never reached in it
        return marks.astype(np.float32)


def _true(mask: NDArray[np.bool_]) -> Integers:
    # summing bytes over rows is many times faster than summing booleans as integers
    sums: Integers = np.add.reduce(mask.view(np.uint8), axis=0, dtype=np.uint8).astype(np.int64)
    return sums

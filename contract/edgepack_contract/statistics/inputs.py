"""Count the rows of tensors over the edges and categories of their features.

Everything is counted in blocks of rows: a few steps for a block and all features cost a fraction of
a microsecond per row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from edgepack_contract.reference import DESCRIBED_VALUES, DESCRIPTORS, FeatureReference
from edgepack_contract.statistics.marks import (
    CHUNK_ROWS,
    Array,
    Floats,
    Integers,
    marks_of,
)
from edgepack_contract.window import InputColumns

FARTHEST = 1e100
"""Values farther than this from the reference (in its units) are left out of the moments, as
infinities are: their squares must stay finite."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted so far; one entry per feature, ``counts`` padded to the widest feature."""

    counts: Integers
    null: Integers
    n: Integers
    mean: Floats
    m2: Floats
    low: Floats
    high: Floats

    @classmethod
    def empty(cls, features: int, columns: int) -> Tally:
        """A tally of no rows."""
        return cls(
            counts=np.zeros((features, columns), np.int64),
            null=np.zeros(features, np.int64),
            n=np.zeros(features, np.int64),
            mean=np.zeros(features),
            m2=np.zeros(features),
            low=np.full(features, np.inf),
            high=np.full(features, -np.inf),
        )

    def add(self, other: Tally) -> Tally:
        """Both together; moments as :meth:`edgepack_contract.moments.Moments.merge`."""
        if not len(self.null):
            return self
        n = self.n + other.n
        some = np.maximum(n, 1)
        delta = other.mean - self.mean
        return Tally(
            counts=self.counts + other.counts,
            null=self.null + other.null,
            n=n,
            mean=(self.n * self.mean + other.n * other.mean) / some,
            m2=self.m2 + other.m2 + delta * delta * (self.n * other.n / some),
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
        )


class Counter(Protocol):
    """Counts the rows of one tensor."""

    def count(self, rows: Array) -> Tally:
        """Count ``rows`` of shape (n, ...)."""
        ...


class EdgeCounter:
    """Counts the rows of a numeric tensor against the edges and categories of its features."""

    def __init__(self, features: Sequence[FeatureReference]) -> None:
        self._features = len(features)
        self._source = _source(features)
        self._index = np.array([item.index for item in features], np.intp)
        self._in_order = [item.index for item in features] == list(range(len(features)))
        self._mean = np.array([[item.mean] for item in features], np.float64)
        self._unit = np.array([[item.unit] for item in features], np.float64)
        self._marks = marks_of(features)

    def count(self, rows: Array) -> Tally:
        """Count a block of rows.

        Args:
            rows: Numbers of shape (n, ...); flattened to (n, columns).
        """
        flat = flatten(rows)
        if not len(flat):
            return Tally.empty(self._features, self._marks.width)
        total = self._chunk(self._select(flat[:CHUNK_ROWS]))
        for start in range(CHUNK_ROWS, len(flat), CHUNK_ROWS):
            total = total.add(self._chunk(self._select(flat[start : start + CHUNK_ROWS])))
        return total

    def _select(self, flat: Array) -> Array:
        if self._source == "descriptor":
            return descriptors(flat)[:, self._index]
        whole = self._in_order and flat.shape[1] == self._features
        return flat if whole else flat[:, self._index]

    def _chunk(self, rows: Array) -> Tally:
        table = self._marks.arrange(numeric(rows))
        tally = _moments(table, self._mean, self._unit)
        counts = self._marks.count(table, table.shape[1] - tally.null)
        return replace(tally, counts=counts)


class TextCounter:
    """Counts the rows of a tensor of text against the categories of its features."""

    def __init__(self, features: Sequence[FeatureReference]) -> None:
        self._features = features
        self._width = max((item.columns for item in features), default=1)
        self._places = [
            {category: place for place, category in enumerate(item.categories)} for item in features
        ]

    def count(self, rows: Array) -> Tally:
        """Count a block of rows of text; None is null."""
        flat = flatten(rows)
        tally = Tally.empty(len(self._features), self._width)
        for place, item in enumerate(self._features):
            known, other = self._places[place], item.columns - 1
            for value in flat[:, item.index].tolist():
                if value is None:
                    tally.null[place] += 1
                else:
                    tally.counts[place, known.get(as_text(value), other)] += 1
        return tally


class InputCounter:
    """Counts the rows of all tensors of a reference, in the order of its features."""

    def __init__(self, features: Sequence[FeatureReference]) -> None:
        self._features = list(features)
        self._width = max((item.columns for item in features), default=1)
        places: dict[tuple[str, str, bool], list[int]] = {}
        for place, item in enumerate(features):
            places.setdefault((item.tensor, item.source, item.textual), []).append(place)
        self._parts = [
            (tensor, np.array(some, np.intp), _counter([features[place] for place in some]))
            for (tensor, _, _), some in places.items()
        ]

    @property
    def tensors(self) -> frozenset[str]:
        """The names of the tensors that are counted."""
        return frozenset(tensor for tensor, _, _ in self._parts)

    def empty(self) -> Tally:
        """A tally of no rows."""
        return Tally.empty(len(self._features), self._width)

    def count(self, tensors: Mapping[str, Array]) -> Tally:
        """Count a block of rows; every tensor has the same number of them.

        Raises:
            KeyError: A tensor of the reference is missing.
        """
        if len(self._parts) == 1:
            name, _, counter = self._parts[0]
            return counter.count(tensors[name])
        total = self.empty()
        for name, places, counter in self._parts:
            part = counter.count(tensors[name])
            total.counts[places, : part.counts.shape[1]] = part.counts
            for field in ("null", "n", "mean", "m2", "low", "high"):
                getattr(total, field)[places] = getattr(part, field)
        return total

    def columns(self, tally: Tally) -> InputColumns:
        """The wire form of a tally."""
        rows = zip(tally.counts.tolist(), self._features, strict=True)
        some = (tally.n > 0).tolist()
        return InputColumns(
            n=tally.n.tolist(),
            null=tally.null.tolist(),
            counts=[counts[: item.columns] for counts, item in rows],
            mean=tally.mean.tolist(),
            m2=tally.m2.tolist(),
            min=_known(tally.low, some),
            max=_known(tally.high, some),
        )


def flatten(rows: Array) -> Array:
    """The rows of a tensor of shape (n, ...) as a table of shape (n, columns)."""
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))


def descriptors(flat: Array) -> Floats:
    """The scalars that stand for each row of a wide tensor, in the order of ``DESCRIPTORS``.

    Args:
        flat: Shape (n, columns).

    Returns:
        Shape (n, 4), float64. A row with a NaN has NaN in all four.
    """
    table = np.empty((len(flat), len(DESCRIPTORS)))
    with np.errstate(invalid="ignore", over="ignore"):
        for place, row in enumerate(flat):
            values = row[:: 1 + len(row) // DESCRIBED_VALUES].astype(np.float64)
            table[place] = [getattr(values, name)() for name in DESCRIPTORS]
    return table


def as_text(value: object) -> str:
    """A cell of a text tensor as text; bytes are UTF-8."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _counter(features: Sequence[FeatureReference]) -> Counter:
    return TextCounter(features) if features[0].textual else EdgeCounter(features)


def _source(features: Sequence[FeatureReference]) -> str:
    sources = {item.source for item in features}
    if len(sources) > 1:
        raise ValueError("one counter takes columns or descriptors of a tensor, not both")
    return sources.pop() if sources else "column"


def numeric(block: Array) -> Array:
    """The numbers as they are compared: single precision stays, everything else becomes double."""
    return block if block.dtype in (np.float32, np.float64) else block.astype(np.float64)


_NO_COUNTS: Integers = np.zeros((0, 0), np.int64)


def _moments(table: Array, origin: Floats, unit: Floats) -> Tally:
    """Nulls and moments of at least one value of each feature; columns are counted elsewhere.

    Args:
        table: Shape (features, n).
        origin: Shape (features, 1), as ``unit``.
        unit: What one stands for.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        z = np.subtract(table, origin, dtype=np.float64)
        z /= unit
        low, high = z.min(axis=1), z.max(axis=1)
        # a NaN anywhere in a feature is in its ends, and compares false
        if bool(((low >= -FARTHEST) & (high <= FARTHEST)).all()):
            features, rows = z.shape
            mean = z.sum(axis=1) / rows
            z -= mean[:, None]
            m2 = np.einsum("ij,ij->i", z, z)
            null = np.zeros(features, np.int64)
            return Tally(_NO_COUNTS, null, null + rows, mean, m2, low, high)
        return _usable_moments(z, np.isnan(table).sum(axis=1, dtype=np.int64))


def _usable_moments(z: Floats, null: Integers) -> Tally:
    usable = np.abs(z) <= FARTHEST
    n = usable.sum(axis=1, dtype=np.int64)
    kept = np.where(usable, z, 0.0)
    mean = kept.sum(axis=1) / np.maximum(n, 1)
    m2 = np.where(usable, (kept - mean[:, None]) ** 2, 0.0).sum(axis=1)
    low = np.where(usable, z, np.inf).min(axis=1)
    high = np.where(usable, z, -np.inf).max(axis=1)
    return Tally(_NO_COUNTS, null, n, mean, m2, low, high)


def _known(values: Floats, some: list[bool]) -> list[float | None]:
    return [value if known else None for value, known in zip(values.tolist(), some, strict=True)]

"""Count the answers of a model: classes, confidence on fixed bins, or values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack_contract.description import TensorSpec
from edgepack_contract.reference import (
    ENTROPY_EDGES,
    SHARE_EDGES,
    OutputHistogram,
    OutputReference,
)
from edgepack_contract.statistics.inputs import InputCounter, Tally, as_text, flatten
from edgepack_contract.statistics.marks import Array, Floats, Integers
from edgepack_contract.window import OutputColumns

UNKNOWN_CLASS = -1
"""The class of an answer that is no class of the model, or not finite."""


_FEW_VALUES = 256


class ClassReader:
    """Reads the class and its probability out of the outputs of a classifier.

    Probabilities are preferred, then scores (of which the softmax is taken, or the logistic
    function of a single one), then labels alone. A single column of probabilities is that of the
    second of two classes.
    """

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        by_kind = {spec.kind: spec for spec in reversed(outputs)}
        self._shares = by_kind.get("probabilities") or by_kind.get("scores")
        self._label = by_kind.get("label")
        self.labels = _labels(self._shares, self._label)
        self._places = _places(self.labels or [])

    @property
    def classifies(self) -> bool:
        """Whether there is a class to read at all."""
        return self._shares is not None or self._label is not None

    @property
    def tensors(self) -> list[str]:
        """The outputs that are read: one, or none when the model does not classify."""
        read = self._shares or self._label
        return [read.name] if read is not None else []

    def top1(self, outputs: Mapping[str, Array]) -> Integers:
        """The class of each row as an index into the labels, ``UNKNOWN_CLASS`` without one.

        Raises:
            KeyError: The output is missing.
            ValueError: The model does not classify.
        """
        return self.classes(outputs, self.shares(outputs))

    def places(self, outputs: Mapping[str, Array]) -> list[int]:
        """Like :meth:`top1`, as a list; of few values without the cost of an array.

        Raises:
            KeyError: The output is missing.
            ValueError: The model does not classify.
        """
        read = self._shares
        if read is not None and read.kind == "probabilities":
            values = outputs[read.name]
            if values.ndim == 2 and values.shape[1] > 1 and values.size <= _FEW_VALUES:
                return [
                    row.index(max(row)) if all(map(math.isfinite, row)) else UNKNOWN_CLASS
                    for row in values.tolist()
                ]
        places: list[int] = self.top1(outputs).tolist()
        return places

    def classes(self, outputs: Mapping[str, Array], shares: Floats | None) -> Integers:
        """Like :meth:`top1`, with the ``shares`` that were already read."""
        if shares is not None:
            best: Integers = shares.argmax(axis=1)
            if np.isfinite(shares).all():
                return best
            return np.where(np.isfinite(shares).all(axis=1), best, UNKNOWN_CLASS)
        if self._label is None:
            raise ValueError("the model has no output of a class")
        cells = flatten(outputs[self._label.name])[:, 0].tolist()
        return np.array(
            [self._places.get(as_text(cell), UNKNOWN_CLASS) for cell in cells], np.int64
        )

    def shares(self, outputs: Mapping[str, Array]) -> Floats | None:
        """Probabilities of shape (rows, classes), None when the model gives only labels.

        Raises:
            KeyError: The output is missing.
        """
        if self._shares is None:
            return None
        values = flatten(outputs[self._shares.name]).astype(np.float64)
        if self._shares.kind == "probabilities":
            return np.column_stack([1.0 - values, values]) if values.shape[1] == 1 else values
        if values.shape[1] == 1:
            values = np.column_stack([np.zeros(len(values)), values[:, 0]])
        return _softmax(values)


@dataclass(frozen=True, slots=True)
class OutputTally:
    """What was counted so far; arrays of no columns where the model has no such output."""

    classes: Integers
    score: Integers
    margin: Integers
    entropy: Integers
    values: Tally

    def add(self, other: OutputTally) -> OutputTally:
        """Both together."""
        return OutputTally(
            classes=self.classes + other.classes,
            score=self.score + other.score,
            margin=self.margin + other.margin,
            entropy=self.entropy + other.entropy,
            values=self.values.add(other.values),
        )


class OutputCounter:
    """Counts the answers of a model over the columns of its output reference."""

    def __init__(self, outputs: Sequence[TensorSpec], reference: OutputReference) -> None:
        self._reader = ClassReader(outputs)
        self._reference = reference
        self._values = InputCounter(reference.values)
        self._edges = {
            name: None if histogram is None else np.array(histogram.edges)
            for name, histogram in (
                ("score", reference.score),
                ("margin", reference.margin),
                ("entropy", reference.entropy),
            )
        }

        self._binned = any(edges is not None for edges in self._edges.values())

    @property
    def reader(self) -> ClassReader:
        """What reads the classes."""
        return self._reader

    @property
    def tensors(self) -> list[str]:
        """The names of the outputs that are counted."""
        return sorted({*self._reader.tensors, *self._values.tensors})

    @property
    def width(self) -> int:
        """About how many numbers of each row are looked at."""
        return len(self._reference.class_counts) + len(self._reference.values)

    def empty(self) -> OutputTally:
        """A tally of no answers."""
        sizes = {name: 0 if e is None else len(e) + 1 for name, e in self._edges.items()}
        return OutputTally(
            classes=np.zeros(len(self._reference.class_counts), np.int64),
            score=np.zeros(sizes["score"], np.int64),
            margin=np.zeros(sizes["margin"], np.int64),
            entropy=np.zeros(sizes["entropy"], np.int64),
            values=self._values.empty(),
        )

    def count(self, outputs: Mapping[str, Array]) -> OutputTally:
        """Count a block of answers. Rows that are not finite are ``other``, and in no histogram.

        Raises:
            KeyError: An output is missing.
        """
        shares = self._reader.shares(outputs)
        figures = None
        if shares is not None and self._binned:
            finite = np.isfinite(shares)
            figures = confidence(shares if finite.all() else shares[finite.all(axis=1)])
        values = self._values
        return OutputTally(
            classes=self._classes(outputs, shares),
            score=self._histogram("score", figures),
            margin=self._histogram("margin", figures),
            entropy=self._histogram("entropy", figures),
            values=values.count(outputs) if self._reference.values else values.empty(),
        )

    def columns(self, tally: OutputTally) -> OutputColumns:
        """The wire form of a tally."""
        return OutputColumns(
            classes=tally.classes.tolist(),
            score=tally.score.tolist(),
            margin=tally.margin.tolist(),
            entropy=tally.entropy.tolist(),
            values=self._values.columns(tally.values),
        )

    def _classes(self, outputs: Mapping[str, Array], shares: Floats | None) -> Integers:
        size = len(self._reference.class_counts)
        if not size or not self._reader.classifies:
            return np.zeros(size, np.int64)
        top1 = self._reader.classes(outputs, shares)
        known = np.where((top1 >= 0) & (top1 < size - 1), top1, size - 1)
        return np.bincount(known, minlength=size)

    def _histogram(self, name: str, figures: dict[str, Floats] | None) -> Integers:
        edges = self._edges[name]
        if edges is None:
            return np.zeros(0, np.int64)
        values = np.zeros(0) if figures is None else figures[name]
        return np.bincount(edges.searchsorted(values, side="right"), minlength=len(edges) + 1)


def confidence(shares: Floats) -> dict[str, Floats]:
    """Top-1 ``score``, ``margin`` to the second, and ``entropy`` as a share of ln(classes).

    Args:
        shares: Probabilities of shape (rows, classes), at least two classes.
    """
    best = np.partition(shares, -2, axis=1)[:, -2:]
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1)
    return {
        "score": best[:, 1],
        "margin": best[:, 1] - best[:, 0],
        "entropy": entropy / math.log(shares.shape[1]),
    }


def empty_output_reference(outputs: Sequence[TensorSpec]) -> OutputReference:
    """The columns to count over when a bundle carries no reference: classes and fixed bins."""
    reader = ClassReader(outputs)
    if not reader.classifies:
        return OutputReference()
    shares = any(spec.kind in ("probabilities", "scores") for spec in outputs)
    return OutputReference(
        classes=reader.labels,
        class_counts=[0] * (len(reader.labels) + 1 if reader.labels is not None else 0),
        score=_fixed(SHARE_EDGES) if shares else None,
        margin=_fixed(SHARE_EDGES) if shares else None,
        entropy=_fixed(ENTROPY_EDGES) if shares else None,
    )


def _fixed(edges: tuple[float, ...]) -> OutputHistogram:
    return OutputHistogram(edges=list(edges), counts=[0] * (len(edges) + 1))


def _labels(shares: TensorSpec | None, label: TensorSpec | None) -> list[str] | None:
    named = [spec.labels for spec in (shares, label) if spec is not None and spec.labels]
    if named:
        return named[0]
    last = shares.shape[-1] if shares is not None and shares.shape else None
    return [str(place) for place in range(max(2, last))] if isinstance(last, int) else None


def _places(labels: list[str]) -> dict[str, int]:
    """Where each text of a label output belongs; a bare number may stand for its place."""
    places = {str(place): place for place in range(len(labels))}
    return places | {label: place for place, label in enumerate(labels)}


def _softmax(values: Floats) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):
        powers = np.exp(values - values.max(axis=1, keepdims=True, initial=-np.inf))
        shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares

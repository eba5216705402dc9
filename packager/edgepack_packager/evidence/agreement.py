"""Outputs that are neither labels nor judged by a truth: how like the source model's they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.evidence.exam import Exam
from edgepack_packager.evidence.intervals import Estimate
from edgepack_packager.evidence.losses import Losses
from edgepack_packager.evidence.metrics import squared_errors
from edgepack_packager.evidence.statistic import Proof, Statistic, Units, mean_of

LOOKED_AT = 16
"""Rows by which it is seen whether an output holds shares of classes."""


@dataclass(frozen=True, slots=True, eq=False)
class Likeness:
    """How like one output is.

    Attributes:
        name: Of the output.
        kind: ``agreement`` of classes or whole values, or relative ``difference`` of numbers.
        figure: The agreement or the difference.
        loss: The agreement lost, or the difference.
        proof: What decides how many rows would prove it.
        losses: The same for slices.
        ours: The values, in which rows are compared.
        theirs: The same of the source model.
    """

    name: str
    kind: str
    figure: Estimate
    loss: Estimate
    proof: Proof
    losses: Losses
    ours: Array
    theirs: Array

    def label(self, *, several: bool) -> str:
        """The name of the figure; with several outputs it says which."""
        return f"{self.kind} of {self.name}" if several else self.kind


def compare_outputs(exam: Exam, outputs: Feeds) -> list[Likeness]:
    """Every output that the source model answers with too."""
    answer = exam.decisions.answer
    theirs = exam.source_outputs or {answer: exam.source}
    if not exam.source_outputs:
        outputs = {answer: exam.decisions.answers(outputs)}
    return [
        _compare(name, outputs[name], values, exam)
        for name, values in theirs.items()
        if name in outputs and name not in exam.decisions.carried
    ]


def _compare(name: str, ours: Array, theirs: Array, exam: Exam) -> Likeness:
    if theirs.dtype.kind != "f":
        return _alike(name, ours, theirs, exam.units)
    axis = class_axis(theirs, exam.truth)
    if axis is not None:
        return _alike(name, ours.argmax(axis=axis), theirs.argmax(axis=axis), exam.units)
    return _apart(name, ours, theirs, exam.units)


def class_axis(values: Array, truth: Array | None) -> int | None:
    """Along which dimension each place of an image has one number per class, if along any.

    That is the case where these numbers are shares of one, or where the truth is a whole number
    for each place.
    """
    if values.ndim < 3:
        return None
    few = values[:LOOKED_AT].astype(np.float64)
    for axis in (1, values.ndim - 1):
        if values.shape[axis] < 2:
            continue
        rest = values.shape[:axis] + values.shape[axis + 1 :]
        if truth is not None and truth.dtype.kind in "iu" and truth.shape == rest:
            return axis
        if np.all(few >= 0) and np.allclose(few.sum(axis=axis), 1.0, atol=1e-3):
            return axis
    return None


def mask_scores(exam: Exam, outputs: Feeds) -> tuple[Array, Array] | None:
    """The share of places with the true class in each image, of candidate and source model.

    None unless the truth is a mask and an output fits it.
    """
    truth = exam.truth
    if truth is None or truth.ndim < 3 or truth.dtype.kind not in "biu":
        return None
    for name, theirs in exam.source_outputs.items():
        masks = [_mask(values, truth) for values in (outputs[name], theirs)]
        if masks[0] is not None and masks[1] is not None:
            return _per_row(masks[0] == truth), _per_row(masks[1] == truth)
    return None


def _mask(values: Array, truth: Array) -> Array | None:
    if values.dtype.kind in "biu" and values.shape == truth.shape:
        return values
    axis = class_axis(values, truth) if values.dtype.kind == "f" else None
    if axis is None:
        return None
    mask = values.argmax(axis=axis)
    return mask if mask.shape == truth.shape else None


def _per_row(same: Array) -> Array:
    return np.asarray(same.reshape(len(same), -1).mean(axis=1))


def _alike(name: str, ours: Array, theirs: Array, units: Units | None) -> Likeness:
    same = mean_of(_per_row(ours == theirs), share=True)
    losses = Losses(same, Statistic(1.0, np.zeros(same.n), share=True))
    loss, proof = losses.loss(units)
    low, high = max(loss.low, 0.0), min(loss.high, 1.0)
    loss = Estimate(loss.value, low, high, loss.n, loss.units)
    figure = Estimate(1 - loss.value, 1 - high, 1 - low, loss.n, loss.units)
    return Likeness(name, "agreement", figure, loss, proof, losses, ours, theirs)


def _apart(name: str, ours: Array, theirs: Array, units: Units | None) -> Likeness:
    """The root of the mean squared difference relative to the spread of the source's answers."""
    ours, theirs = (values.reshape(len(values), -1).astype(np.float64) for values in (ours, theirs))
    spread = float(np.mean(squared_errors(theirs, np.mean(theirs, axis=0))))
    scale = spread or float(np.mean(np.sum(np.square(theirs), axis=1))) or 1.0
    losses = Losses(square := mean_of(squared_errors(theirs, ours) / scale), square, "apart")
    share, proof = losses.loss(units)
    return Likeness(name, "difference", share, share, proof, losses, ours, theirs)

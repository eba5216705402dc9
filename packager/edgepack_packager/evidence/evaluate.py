"""How good a candidate is: its figures on the evaluation rows, against the truth and the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgepack_contract.description import Metric, Task
from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.errors import DataError
from edgepack_packager.evidence.decisions import Decisions
from edgepack_packager.evidence.intervals import (
    CONFIDENCE,
    Estimate,
    mean,
    paired_difference,
    proportion,
    rmse_growth,
    rows_to_prove,
)
from edgepack_packager.quantities import Drop

SOURCE = "source"

METRICS_BY_TASK: Mapping[Task, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "regression": ("r2",),
    "other": (),
}
"""The metrics that may have a minimum; for each of them more is better."""


@dataclass(frozen=True, slots=True)
class Exam:
    """The rows that candidates are judged on.

    Attributes:
        decisions: How to read the outputs.
        feeds: The rows, cast to the types that the model takes.
        truth: Labels (rows,) or values (rows, columns); None when there are none.
        source: The source model's own answers to the same rows.
        source_outputs: All its outputs to them, by name.
        dataset: The digest of the rows' file.
        slices: By column, the value of each row.
        units: The number of the sequence that each row belongs to; None when each is its own.
    """

    decisions: Decisions
    feeds: Feeds
    truth: Array | None
    source: Array
    dataset: str
    source_outputs: Feeds = field(default_factory=dict)
    slices: Mapping[str, Array] = field(default_factory=dict)
    units: Array | None = None

    @property
    def n(self) -> int:
        """The number of rows."""
        return len(self.source)


@dataclass(frozen=True, slots=True)
class SliceFigure:
    """The figures of the rows with one value in a slice's column; ``loss`` as in Figures."""

    column: str
    value: str
    n: int
    metric: str
    estimate: Estimate | None
    loss: Estimate | None


@dataclass(frozen=True, slots=True)
class WorstRow:
    """A row on which a candidate is furthest from the source model.

    ``row`` counts the evaluation rows from 0; ``distance`` is a margin lost or a difference.
    """

    row: int
    truth: str | None
    source: str
    candidate: str
    distance: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many rows the source model gives ``source`` and the candidate ``candidate``."""

    source: str
    candidate: str
    n: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What an exam says of one candidate.

    Attributes:
        estimates: Absolute figures by name, such as ``accuracy``.
        relative: Figures against the source model by name, such as ``agreement``.
        loss_metric: What the loss is a loss of.
        loss: The share lost against the source model; None without rows.
        losses: Rows that the source model had right, or as it had them, and the candidate has not.
        gains: Rows the other way round.
        slices: Figures by the values of the slices' columns.
        worst: The rows that are furthest off, the worst first.
        confusions: Pairs of different labels by number of rows, the most frequent first.
    """

    estimates: dict[str, Estimate] = field(default_factory=dict)
    relative: dict[str, Estimate] = field(default_factory=dict)
    loss_metric: str = "agreement"
    loss: Estimate | None = None
    losses: int = 0
    gains: int = 0
    slices: tuple[SliceFigure, ...] = ()
    worst: tuple[WorstRow, ...] = ()
    confusions: tuple[Confusion, ...] = ()

    def metrics(self, dataset: str) -> list[Metric]:
        """The figures as the bundle states them."""
        named: list[tuple[str, Estimate, str | None]] = [
            *((name, value, None) for name, value in sorted(self.estimates.items())),
            *((name, value, SOURCE) for name, value in sorted(self.relative.items())),
        ]
        return [
            Metric(
                name=name,
                value=value.value,
                n=value.n,
                low=value.low,
                high=value.high,
                confidence=CONFIDENCE,
                dataset=dataset,
                reference=reference,
            )
            for name, value, reference in named
            if np.isfinite([value.value, value.low, value.high]).all()
        ]

    def text(self) -> str:
        """The headline, with its interval and number of rows."""
        if self.loss is None:
            return "accuracy: not measured (no rows)"
        parts = [f"{name} {_spell(value)}" for name, value in self.estimates.items()]
        if not parts:
            parts.append("accuracy: not measured")
            parts += [f"{name} {_spell(value)}" for name, value in self.relative.items()]
        return "; ".join(parts)


def examine(exam: Exam, outputs: Feeds) -> Figures:
    """Compare a candidate's outputs with the truth and with the source model's answers."""
    answers = exam.decisions.answers(outputs)
    if exam.decisions.task == "classification":
        return _classification(exam, answers)
    if exam.truth is not None:
        return _regression(exam.truth, exam.source, answers)
    return _difference(exam.source, answers)


def check_truth(exam: Exam) -> None:
    """Refuse a truth that cannot be this model's: every figure against it would be noise.

    Raises:
        DataError: No label is one of the model's answers, or numbers of another width.
    """
    truth, decisions = exam.truth, exam.decisions
    if truth is None:
        return
    if decisions.task != "classification":
        if truth.shape != exam.source.shape:
            raise DataError(
                f"the truth has {truth.shape[1]} columns, the model gives {exam.source.shape[1]}",
                code="bad-label",
            )
        return
    known = exam.source if decisions.classes is None else decisions.classes
    if truth.dtype.kind != known.dtype.kind or not np.isin(truth, known).any():
        raise DataError(
            f"labels such as {truth[0]!r} are none of the model's classes, such as {known[0]!r}",
            code="bad-label",
        )


def allowed_loss(drop: Drop, exam: Exam | None) -> float:
    """The share that may be lost.

    For accuracy, per cent are relative to the source model's own accuracy. For errors of numbers,
    which have no scale of points, both forms are relative.
    """
    if exam is None or exam.truth is None or not drop.relative:
        return drop.value
    if exam.decisions.task != "classification":
        return drop.value
    return drop.value * float(np.mean(exam.source == exam.truth))


def rows_needed(figures: Figures, allowed: float) -> int | None:
    """Rows that would prove a loss within ``allowed``, at the rates seen; None when unknown."""
    if figures.loss is None or figures.loss_metric not in {"accuracy", "agreement"}:
        return None
    return rows_to_prove(figures.losses, figures.gains, figures.loss.n, allowed)


def _classification(exam: Exam, answers: Array) -> Figures:
    n = exam.n
    differ = int(np.count_nonzero(answers != exam.source))
    agreement = proportion(n - differ, n)
    if exam.truth is None:
        loss = Estimate(1 - agreement.value, 1 - agreement.high, 1 - agreement.low, n)
        return Figures(relative={"agreement": agreement}, loss=loss, losses=differ)
    right, source_right = answers == exam.truth, exam.source == exam.truth
    losses = int(np.count_nonzero(source_right & ~right))
    gains = int(np.count_nonzero(right & ~source_right))
    low, high = paired_difference(losses, gains, n)
    drop = Estimate((losses - gains) / n, low, high, n)
    return Figures(
        estimates={"accuracy": proportion(int(np.count_nonzero(right)), n)},
        relative={"agreement": agreement, "accuracy-drop": drop},
        loss_metric="accuracy",
        loss=drop,
        losses=losses,
        gains=gains,
    )


def _regression(truth: Array, source: Array, answers: Array) -> Figures:
    ours, theirs = _row_errors(truth, answers), _row_errors(truth, source)
    growth = rmse_growth(theirs, ours)
    squared = mean(np.square(ours))
    spread = float(np.mean(np.square(_row_errors(truth, np.mean(truth, axis=0)))))
    estimates = {"rmse": _root(squared)}
    if spread > 0:
        estimates["r2"] = Estimate(
            1 - squared.value / spread, 1 - squared.high / spread, 1 - squared.low / spread,
            squared.n,
        )  # fmt: skip
    return Figures(
        estimates=estimates, relative={"rmse-growth": growth}, loss_metric="rmse", loss=growth
    )


def _difference(source: Array, answers: Array) -> Figures:
    """The size of the difference relative to the spread of the source model's own answers."""
    spread = float(np.mean(np.square(_row_errors(source, np.mean(source, axis=0)))))
    squared = mean(np.square(_row_errors(source, answers)))
    scale = spread or float(np.mean(np.square(source))) or 1.0
    share = _root(
        Estimate(squared.value / scale, squared.low / scale, squared.high / scale, squared.n)
    )
    return Figures(relative={"difference": share}, loss_metric="difference", loss=share)


def _row_errors(truth: Array, answers: Array) -> Array:
    """The length of the error of each row."""
    return np.asarray(np.sqrt(np.sum(np.square(truth - answers), axis=1)))


def _root(estimate: Estimate) -> Estimate:
    low = max(estimate.low, 0.0)
    return Estimate(estimate.value**0.5, low**0.5, max(estimate.high, low) ** 0.5, estimate.n)


def _spell(value: Estimate) -> str:
    return f"{value.value:.4f} ({value.low:.4f}..{value.high:.4f}, n={value.n})"

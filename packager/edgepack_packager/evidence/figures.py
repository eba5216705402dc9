"""What an exam says of one candidate."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgepack_contract.description import Metric
from edgepack_packager.evidence.intervals import CONFIDENCE, Estimate
from edgepack_packager.evidence.statistic import Proof

SOURCE = "source"
DIGITS = 9
"""Significant digits of a figure in a bundle: processors differ in the last ones."""


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

    ``row`` is its place in the data, counted from 0; ``distance`` is a margin lost or a difference.
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
        proof: What decides how many rows would prove the loss.
        incumbent: The share lost against the bundle that it must not be worse than.
        incumbent_proof: As ``proof``, for that loss.
        failure: Why the answers are no answers, in words; then there are no figures.
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
    proof: Proof | None = None
    incumbent: Estimate | None = None
    incumbent_proof: Proof | None = None
    failure: str | None = None

    def metrics(self, dataset: str) -> list[Metric]:
        """The figures as the bundle states them."""
        named: list[tuple[str, Estimate, str | None]] = [
            *((name, value, None) for name, value in sorted(self.estimates.items())),
            *((name, value, SOURCE) for name, value in sorted(self.relative.items())),
        ]
        return [
            Metric(
                name=name,
                value=_round(value.value),
                n=value.n,
                low=_round(value.low),
                high=_round(value.high),
                confidence=CONFIDENCE,
                dataset=dataset,
                reference=reference,
            )
            for name, value, reference in named
            if np.isfinite([value.value, value.low, value.high]).all()
        ]

    def text(self) -> str:
        """The headline, with its interval and number of rows."""
        if self.failure is not None:
            return f"failed: {self.failure}"
        if self.loss is None:
            return "accuracy: not measured (no rows)"
        if self.loss_metric in self.estimates:
            return f"{self.loss_metric} {self.estimates[self.loss_metric]}"
        parts = [f"{name} {value}" for name, value in self.relative.items()]
        return "; ".join(("accuracy: not measured", *parts))


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")

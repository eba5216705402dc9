"""The loss that gates judge: of a mean, of an error that grew, or of a difference as such."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgepack_packager.data.rows import Array
from edgepack_packager.evidence.intervals import Estimate, t_quantile
from edgepack_packager.evidence.statistic import (
    Proof,
    Statistic,
    Units,
    difference,
    estimate,
    growth,
)

Kind = Literal["drop", "growth", "apart"]


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """Means of what each row adds, of a candidate and of what it is held against.

    Attributes:
        ours: Of the candidate.
        theirs: Of what it is held against.
        kind: ``drop`` of a mean of which more is better; ``growth`` of the root of a mean square;
            ``apart`` is the root of a mean square itself, of ``ours``, held against nothing.
    """

    ours: Statistic
    theirs: Statistic
    kind: Kind = "drop"

    def loss(self, units: Units | None) -> tuple[Estimate, Proof]:
        """The loss, positive when the candidate is worse, and what proves it."""
        if self.kind == "drop":
            return difference(self.theirs, self.ours, units)
        if self.kind == "growth":
            return growth(self.ours, self.theirs, units, power=0.5)
        square = estimate(self.ours, units)
        n, k = square.n, square.units or square.n
        spread = (square.high - square.value) / t_quantile(k - 1) * k**0.5 if k > 1 else math.inf
        return root(square), Proof(square.value, n, k, spread, scale="square")

    def figure(self, units: Units | None) -> Estimate | None:
        """The candidate's own figure, where it has one besides the loss."""
        if self.kind == "apart":
            return None
        own = estimate(self.ours, units)
        return root(own) if self.kind == "growth" else own

    def of(self, rows: Array) -> Losses:
        """The same of some rows."""
        return Losses(_part(self.ours, rows), _part(self.theirs, rows), self.kind)


def root(square: Estimate) -> Estimate:
    """The root of a mean square, and of the ends of its interval."""
    low = max(square.low, 0.0)
    high = max(square.high, low)
    return Estimate(square.value**0.5, low**0.5, high**0.5, square.n, square.units)


def _part(found: Statistic, rows: Array) -> Statistic:
    raw = found.influence[rows] + found.value
    value = float(np.mean(raw))
    hits = None if found.hits is None else found.hits[rows]
    return Statistic(value, raw - value, found.reach, found.share, hits, found.graded)

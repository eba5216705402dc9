"""Figures with what each row adds to them, from which every paired interval is computed.

A figure that is a smooth function of means (accuracy, F1, AUC, RMSE, a mean score) has an influence
of each row: by how much that row, times the number of rows, moves the figure. The standard error of
the figure is that of the mean of the influences (the infinitesimal jackknife; Efron, JASA 76,
1981), that of a difference of two figures on the same rows is that of the mean of the differences
of influences, and when whole sequences were drawn, influences are added up sequence by sequence
first. For AUC this is the method of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988), with
sequences that of Obuchowski (Biometrics 53, 1997). No random numbers are needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack_packager.evidence.intervals import (
    Estimate,
    Floats,
    paired_difference,
    proportion,
    rows_to_prove,
    share_interval,
    smallest,
    t_quantile,
)

Units = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Statistic:
    """A figure of some rows.

    Attributes:
        value: The figure.
        influence: What each row adds, shape (rows,); its mean is 0.
        reach: The most that the influence of one row can change; says what rows that were not seen
            could do when all that were seen agree.
        share: Whether the figure lies between 0 and 1.
        hits: Whether each row is a success, when the figure is a share of rows.
        graded: Whether it is the mean of a value of each row, which can vary less than yes and no.
    """

    value: float
    influence: Floats
    reach: float = 1.0
    share: bool = False
    hits: npt.NDArray[np.bool_] | None = None
    graded: bool = False

    @property
    def n(self) -> int:
        """The number of rows."""
        return len(self.influence)


@dataclass(frozen=True, slots=True)
class Proof:
    """What decides how many rows would prove a loss to be within a limit.

    Attributes:
        value: The loss seen.
        n: Rows.
        units: Sequences; as many as rows when each row is its own.
        spread: The standard deviation of what a unit adds.
        reach: What the made-up units of :func:`difference` add; 0 without such.
        counts: Rows lost and gained, when the loss is one of shares of rows.
        scale: From a limit on the loss to a limit on ``value``: ``plain``, ``log`` or ``square``.
    """

    value: float
    n: int
    units: int
    spread: float
    reach: float = 0.0
    counts: tuple[int, int] | None = None
    scale: str = field(default="plain")

    def rows(self, allowed: float) -> int | None:
        """The rows that would prove a loss of at most ``allowed``; None when none would."""
        if self.counts is not None:
            return rows_to_prove(*self.counts, self.n, allowed)
        limit = {"plain": allowed, "log": math.log1p(allowed), "square": allowed**2}[self.scale]
        if not self.value < limit or not math.isfinite(self.spread):
            return None

        def proven(units: int) -> bool:
            if units < 2:
                return False
            added = math.sqrt(units * self.spread**2 + 2 * self.reach**2) / units
            return self.value + t_quantile(units - 1) * added <= limit

        units = smallest(proven, start=max(self.units, 2))
        return None if units is None else math.ceil(units * self.n / self.units)


def mean_of(values: Floats, *, reach: float | None = None, share: bool = False) -> Statistic:
    """The mean of a value per row; by default its reach is the spread of the values."""
    values = values.astype(np.float64)
    center = float(np.mean(values))
    if reach is None:
        reach = 1.0 if share else float(np.ptp(values))
    return Statistic(center, values - center, reach, share, graded=True)


def share_of(hits: npt.NDArray[np.bool_]) -> Statistic:
    """The share of rows that are a success."""
    value = float(np.mean(hits))
    return Statistic(value, hits - value, 1.0, share=True, hits=hits)


def estimate(found: Statistic, units: Units | None) -> Estimate:
    """A figure and its interval.

    Shares of independent rows have the interval of Clopper and Pearson; other figures between 0
    and 1 have the same with the number of rows that would give their standard error (Korn and
    Graubard, Survey Methodology 24, 1998), everything else has Student's.
    """
    if found.hits is not None and units is None:
        return proportion(int(np.count_nonzero(found.hits)), found.n)
    parts = _by_unit(found.influence, units)
    k = len(parts)
    count = None if units is None else k
    if k < 2:
        low, high = (0.0, 1.0) if found.share else (-math.inf, math.inf)
        return Estimate(found.value, low, high, found.n, count)
    error = float(np.std(parts, ddof=1)) / math.sqrt(k)
    if found.share:
        low, high = share_interval(found.value, _effective(found, error, k))
        return Estimate(found.value, low, high, found.n, count)
    half = t_quantile(k - 1) * error
    return Estimate(found.value, found.value - half, found.value + half, found.n, count)


def _effective(found: Statistic, error: float, units: int) -> float:
    """The number of independent rows whose share would be known as well."""
    spread = found.value * (1 - found.value)
    if spread <= 0 or error <= 0:
        return units / max(found.reach, 1.0)
    wider = (t_quantile(found.n - 1) / t_quantile(units - 1)) ** 2 if units < found.n else 1.0
    rows = spread / error**2 * wider
    return rows if found.graded else min(rows, float(found.n))


def difference(more: Statistic, less: Statistic, units: Units | None) -> tuple[Estimate, Proof]:
    """The figure of ``more`` minus that of ``less`` on the same rows, and what proves it.

    For shares of independent rows the interval of Tango. Else Student's, over the units and two
    made-up ones that differ to either side, as Bonett and Price (British Journal of Mathematical
    and Statistical Psychology 65, 2012) do for shares, so that the interval does not vanish where
    no difference was seen. These differ by as much as any unit does, and where under half of the
    units differ at all, so that differences are rare events, at least by as much as one row could.
    """
    if more.hits is not None and less.hits is not None and units is None:
        return _share_difference(more.hits, less.hits)
    value = more.value - less.value
    parts = _by_unit(more.influence - less.influence, units) + value
    k, n = len(parts), more.n
    count = None if units is None else k
    bounded = more.share and less.share
    if k < 2:
        most = 1.0 if bounded else math.inf
        return Estimate(value, -most, most, n, count), Proof(value, n, k, math.inf)
    reach = float(np.max(np.abs(parts)))
    if 2 * np.count_nonzero(parts) < k:
        reach = max(reach, *(_unit_reach(found, units, k) for found in (more, less)))
    padded = np.concatenate([parts, [reach, -reach]])
    center, m = float(np.mean(padded)), k + 2
    half = t_quantile(k - 1) * float(np.std(padded, ddof=1)) / math.sqrt(m)
    low, high = min(center - half, value), max(center + half, value)
    if bounded:
        low, high = max(low, -1.0), min(high, 1.0)
    proof = Proof(value, n, k, float(np.std(parts, ddof=1)), reach)
    return Estimate(value, low, high, n, count), proof


def _unit_reach(found: Statistic, units: Units | None, k: int) -> float:
    """What one row could add, times as many as share their fate in a sequence."""
    if units is None or not found.share:
        return found.reach
    error = float(np.std(_by_unit(found.influence, units), ddof=1)) / math.sqrt(k)
    return min(found.reach, found.reach * k / _effective(found, error, k))


def _share_difference(
    more: npt.NDArray[np.bool_], less: npt.NDArray[np.bool_]
) -> tuple[Estimate, Proof]:
    n = len(more)
    losses, gains = int(np.count_nonzero(more & ~less)), int(np.count_nonzero(less & ~more))
    low, high = paired_difference(losses, gains, n)
    value = (losses - gains) / n
    return Estimate(value, low, high, n), Proof(value, n, n, 0.0, counts=(losses, gains))


def growth(
    more: Statistic, less: Statistic, units: Units | None, *, power: float = 1.0
) -> tuple[Estimate, Proof]:
    """By what share ``more`` is above ``less`` on the same rows, and what proves it.

    The delta method on the logarithm of the ratio.

    Args:
        more: A mean that is not negative, such as the squared errors of a candidate.
        less: The same of what it is held against.
        units: The sequence of each row.
        power: What the ratio is raised to: 0.5 turns means of squares into their roots.
    """
    n, k = more.n, more.n if units is None else int(units.max()) + 1
    count = None if units is None else k
    if less.value <= 0:
        worst = math.inf if more.value > 0 else 0.0
        return Estimate(worst, min(worst, 0.0), worst, n, count), Proof(worst, n, k, 0.0)
    if more.value <= 0:
        return Estimate(-1.0, -1.0, -1.0, n, count), Proof(-1.0, n, k, 0.0)
    parts = power * _by_unit(more.influence / more.value - less.influence / less.value, units)
    spread = float(np.std(parts, ddof=1)) if k > 1 else math.inf
    half = t_quantile(k - 1) * spread / math.sqrt(k) if k > 1 else math.inf
    ratio = power * math.log(more.value / less.value)
    low, value, high = (_expm1(ratio + step) for step in (-half, 0.0, half))
    return Estimate(value, low, high, n, count), Proof(ratio, n, k, spread, scale="log")


def _expm1(value: float) -> float:
    return math.expm1(value) if value < 700 else math.inf


def _by_unit(influence: npt.NDArray[Any], units: Units | None) -> Floats:
    """What each unit adds, so that the mean over units is the mean over rows."""
    if units is None:
        return influence.astype(np.float64)
    sums = np.bincount(units, weights=influence)
    return sums * (len(sums) / len(influence))


def number(names: npt.NDArray[Any]) -> Units:
    """The number of each row's sequence, counted from 0 in the order of their names."""
    return np.unique(names, return_inverse=True)[1].astype(np.intp)

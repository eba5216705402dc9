"""Did the inputs change? Tests on counts, with p-values that hold also far in the tail.

Plain Python, so that device, fleet and packager run the same few lines. The statistic is the
population stability index over B columns, PSI = sum (p - q) ln(p / q), with half a count added to
each column. For unchanged inputs PSI / (1/n + 1/m) is distributed as sum(l_i * chi2_1), where the
l_i are 1 for independent rows (Yurdakul, "Statistical properties of the population stability
index", 2018) and the eigenvalues of the long-run covariance of the column indicators otherwise.
The sum is matched by a scaled chi2 in mean and variance (Satterthwaite 1946), which leaves the
regularised incomplete gamma function as the only special function. Normal approximations are wrong
by orders of magnitude at the levels that a fleet needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from math import exp, inf, isqrt, lgamma, log, log1p, pi, sqrt

from edgepack_contract.reference import Calibration, FeatureReference
from edgepack_contract.window import DriftVerdict

MATERIAL = 0.1
"""The PSI under which a change is too small to matter, however certain it is: 0.32 standard
deviations of a normal's mean."""

EXPECTED = 5.0
"""Columns are pooled until this many rows are expected in each; under it chi2 does not hold."""

POWER = 0.8
POWER_AT = 2.5
"""A window is large enough when a PSI of 2.5 times the material size is found with power 0.8."""

_LARGEST_N = 10**9


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """What the counts of one feature say.

    Attributes:
        n: Rows in the window, nulls included.
        n_min: Rows that it takes for a verdict, None when the reference is too small for any.
        psi: The index, over pooled columns.
        divergence: Jensen-Shannon divergence in nats, as a figure only.
        shifted_p: Chance of such a PSI, or larger, when nothing changed.
        drift_p: The same when the true PSI is of the material size.
        unseen_p: Chance of so many rows in a column that the reference never saw.
    """

    verdict: DriftVerdict
    n: int
    n_min: int | None
    psi: float
    divergence: float
    shifted_p: float
    drift_p: float
    unseen_p: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The PSI of two samples and how it is distributed; ``columns`` counts pooled columns."""

    psi: float
    n: int
    m: int
    columns: int
    spread: Calibration

    def p_above(self, size: float) -> float:
        """Chance of this PSI, or a larger one, when the true PSI is ``size``.

        Small: the true PSI is significantly above ``size``. 1 when there is nothing to compare.
        """
        if self.columns < 2:
            return 1.0
        return p_above(self.psi, size, 1.0 / self.n + 1.0 / self.m, self.spread)


def judge(
    reference: FeatureReference,
    counts: Sequence[int],
    null: int,
    *,
    alpha: float,
    material: float = MATERIAL,
) -> FeatureDrift:
    """Judge the counts of one feature against its reference at level ``alpha``.

    ``shifted``: something changed. ``drift``: it also changed by more than the material size.
    A column that the reference never saw is judged at once; all else waits for ``n_min`` rows.

    Raises:
        ValueError: ``counts`` are not over the reference's edges.
    """
    if len(counts) != reference.columns:
        raise ValueError(f"{len(counts)} counts for {reference.columns} columns")
    new, old = [*counts, null], [*reference.counts, reference.null]
    compared = _compare(new, old, reference.calibration, adjacent=reference.kind == "numeric")
    needed = n_min(reference.calibration, compared.m, alpha, material)
    unseen = _unseen(reference, new, old)
    shifted, drift = compared.p_above(0.0), compared.p_above(material)
    enough = needed is not None and compared.n >= needed
    return FeatureDrift(
        verdict=_verdict(alpha, unseen, shifted, drift, enough=enough),
        n=compared.n,
        n_min=needed,
        psi=compared.psi,
        divergence=jensen_shannon(new, old),
        shifted_p=shifted,
        drift_p=drift,
        unseen_p=unseen,
    )


def _verdict(
    alpha: float, unseen: float, shifted: float, drift: float, *, enough: bool
) -> DriftVerdict:
    # two tests share the level
    if enough and max(shifted, drift) < alpha / 2:
        return "drift"
    if unseen < alpha / 2 or (enough and shifted < alpha / 2):
        return "shifted"
    return "ok" if enough else "no-data"


def two_sample_psi(
    one: Sequence[int], two: Sequence[int], inflation: float = 1.0, *, adjacent: bool = True
) -> Comparison:
    """Compare two counts over the same columns.

    Args:
        one: Counts of the first sample.
        two: Counts of the second.
        inflation: How many times larger than that of independent rows the variance is (the design
            effect of clusters or of time); at least 1.
        adjacent: Columns are in order, so that neighbours are pooled; else the rarest are.

    Raises:
        ValueError: Different numbers of columns, or an inflation under 1.
    """
    if len(one) != len(two) or inflation < 1.0:
        raise ValueError("two samples need the same columns, and an inflation of at least 1")
    n, m = sum(one), sum(two)
    total = [first + second for first, second in zip(one, two, strict=True)]
    groups = _pool(total, _needed(n + m, min(n, m)), adjacent=adjacent)
    free = float(len(groups) - 1)
    spread = Calibration(
        sum_l=free * inflation, sum_l2=free * inflation**2, max_l=inflation if free > 0 else 0.0
    )
    return _grouped(one, two, groups, spread)


def independent(columns: int) -> Calibration:
    """The calibration of independent rows over ``columns`` occupied columns."""
    free = float(max(0, columns - 1))
    return Calibration(sum_l=free, sum_l2=free, max_l=1.0 if free else 0.0)


def jensen_shannon(one: Sequence[int], two: Sequence[int]) -> float:
    """The Jensen-Shannon divergence of two counts in nats: 0 equal, ln 2 disjoint, 0 without data.

    Raises:
        ValueError: Different numbers of columns.
    """
    n, m = sum(one), sum(two)
    if not n or not m:
        return 0.0
    pairs = [(first / n, second / m) for first, second in zip(one, two, strict=True)]
    parts = (p * log(2 * p / (p + q)) if p else 0.0 for p, q in pairs)
    other = (q * log(2 * q / (p + q)) if q else 0.0 for p, q in pairs)
    return max(0.0, 0.5 * (sum(parts) + sum(other)))


def unseen_p(k: int, n: int, m: int) -> float:
    """Chance that all of ``k`` rows fall into the sample of ``n`` and none into that of ``m``.

    Hypergeometric, exact: C(n, k) / C(n + m, k).

    Raises:
        ValueError: ``k`` is not within 0 and ``n``.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} rows")
    ways = lgamma(n + 1) - lgamma(n - k + 1) - lgamma(n + m + 1) + lgamma(n + m - k + 1)
    return exp(min(0.0, ways))


def p_above(psi: float, size: float, scale: float, spread: Calibration) -> float:
    """Chance of ``psi`` or more when the true PSI is ``size`` and ``scale`` is 1/n + 1/m.

    PSI / scale has mean sum(l) + size/scale and variance 2 sum(l^2) + 4 max(l) size/scale (at
    most), and is matched by a scaled chi2.
    """
    mean = spread.sum_l + size / scale
    variance = 2.0 * spread.sum_l2 + 4.0 * spread.max_l * size / scale
    if mean <= 0.0 or variance <= 0.0:
        return 1.0
    return gamma_q(mean * mean / variance, psi * mean / (scale * variance))


@lru_cache(maxsize=4096)
def n_min(spread: Calibration, m: int, alpha: float, material: float = MATERIAL) -> int | None:
    """The rows from which on a window can tell a drift, against a reference of ``m`` rows.

    The smallest n (to 1 %) for which a true PSI of 2.5 times the material size is called ``drift``
    at level ``alpha`` with power 0.8; None when no n does, since the reference is too small.
    """
    if spread.sum_l <= 0.0 or _power(_LARGEST_N, m, alpha, material, spread) < POWER:
        return None
    low, high = 1, _LARGEST_N
    while high > low + 1 + low // 100:
        middle = isqrt(low * high)
        if _power(middle, m, alpha, material, spread) < POWER:
            low = middle
        else:
            high = middle
    return high


def _power(n: int, m: int, alpha: float, material: float, spread: Calibration) -> float:
    scale = 1.0 / n + 1.0 / m
    return p_above(
        _critical(alpha / 2, material, scale, spread), POWER_AT * material, scale, spread
    )


def _critical(alpha: float, size: float, scale: float, spread: Calibration) -> float:
    """The PSI whose p-value is ``alpha``, by bisection."""
    low, high = 0.0, 1.0
    while p_above(high, size, scale, spread) > alpha:
        low, high = high, 2.0 * high
    for _ in range(30):
        middle = (low + high) / 2
        if p_above(middle, size, scale, spread) > alpha:
            low = middle
        else:
            high = middle
    return high


def _compare(
    new: Sequence[int], old: Sequence[int], spread: Calibration, *, adjacent: bool
) -> Comparison:
    """Compare with a reference: pooled by its counts alone, so that the level holds."""
    n, m = sum(new), sum(old)
    groups = _pool(old, _needed(m, min(n, m)), adjacent=adjacent)
    occupied = sum(1 for value in old if value)
    # the calibration is over all occupied columns; a pooled test keeps its share of the variance
    share = (len(groups) - 1) / (occupied - 1) if occupied > 1 else 0.0
    pooled = Calibration(
        sum_l=spread.sum_l * share, sum_l2=spread.sum_l2 * share, max_l=spread.max_l
    )
    return _grouped(new, old, groups, pooled)


def _grouped(
    one: Sequence[int], two: Sequence[int], groups: list[list[int]], spread: Calibration
) -> Comparison:
    first = [sum(one[index] for index in group) for group in groups]
    second = [sum(two[index] for index in group) for group in groups]
    return Comparison(
        psi=_psi(first, second), n=sum(one), m=sum(two), columns=len(groups), spread=spread
    )


def _psi(one: Sequence[int], two: Sequence[int]) -> float:
    n, m = sum(one) + 0.5 * len(one), sum(two) + 0.5 * len(two)
    shares = [((a + 0.5) / n, (b + 0.5) / m) for a, b in zip(one, two, strict=True)]
    return sum((p - q) * log(p / q) for p, q in shares)


def _needed(total: int, smaller: int) -> float:
    """The weight of a group, out of ``total``, for which the smaller sample expects five rows."""
    return total * EXPECTED / smaller if smaller else inf


def _pool(weights: Sequence[int], needed: float, *, adjacent: bool) -> list[list[int]]:
    """Group columns so that each group weighs at least ``needed``; none when all do not."""
    order = (
        range(len(weights)) if adjacent else sorted(range(len(weights)), key=weights.__getitem__)
    )
    groups: list[list[int]] = []
    current: list[int] = []
    weight = 0
    for index in order:
        current.append(index)
        weight += weights[index]
        if weight >= needed:
            groups.append(current)
            current, weight = [], 0
    if groups:
        groups[-1].extend(current)
    return groups


def _unseen(reference: FeatureReference, new: Sequence[int], old: Sequence[int]) -> float:
    """The smallest p-value of the columns that the reference never saw, times their number."""
    columns = [index for index, value in enumerate(old) if not value]
    if reference.kind == "category" and 1 in reference.counts:
        # a category seen once tells that others exist which were not seen (Good 1953): "other" is
        # then expected to fill without any change
        other = reference.columns - 1
        columns = [index for index in columns if index != other]
    # rows that follow each other come in runs; a run counts once
    run = max(1.0, reference.calibration.max_l)
    n, m = int(sum(new) / run), int(sum(old) / run)
    chances = [unseen_p(min(n, int(new[index] / run)), n, m) for index in columns]
    return min(1.0, len(chances) * min(chances, default=1.0))


def gamma_q(a: float, x: float) -> float:
    """The regularised upper incomplete gamma function Q(a, x), to 1e-10 relative in both tails.

    Series and continued fraction of Abramowitz and Stegun 6.5.29 and 6.5.31.

    Raises:
        ValueError: ``a`` is not positive or ``x`` is negative.
    """
    if not (a > 0.0 and x >= 0.0):
        raise ValueError(f"Q({a}, {x}) is not defined")
    if x == 0.0:
        return 1.0
    if x < a + 1.0:
        return 1.0 - _density(a, x) * _series(a, x)
    return _density(a, x) * _fraction(a, x)


def _density(a: float, x: float) -> float:
    """x**a * exp(-x) / gamma(a), by Stirling's series where the plain form loses digits."""
    if a < 20.0 or x < 0.1 * a:
        return exp(a * log(x) - x - lgamma(a))
    off = (x - a) / a
    stirling = 1 / (12 * a) - 1 / (360 * a**3) + 1 / (1260 * a**5) - 1 / (1680 * a**7)
    return exp(a * (log1p(off) - off) - stirling) * sqrt(a / (2 * pi))


def _series(a: float, x: float) -> float:
    term = total = 1.0 / a
    for step in count(1):
        term *= x / (a + step)
        total += term
        if term < total * 1e-17:
            break
    return total


def _fraction(a: float, x: float) -> float:
    """Lentz's method, as in Numerical Recipes 6.2; b grows, so that no divisor is 0."""
    b = x + 1.0 - a
    c = 1e300
    d = result = 1.0 / b
    for step in count(1):
        numerator = -step * (step - a)
        b += 2.0
        d = 1.0 / (numerator * d + b)
        c = b + numerator / c
        factor = d * c
        result *= factor
        if abs(factor - 1.0) < 1e-15:
            break
    return result

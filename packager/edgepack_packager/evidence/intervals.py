"""Confidence intervals for the figures of a build, all two-sided at ``CONFIDENCE``.

A figure is only worth as much as the rows behind it, and a candidate is compared with the source
model on the *same* rows, so that the intervals of differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

CONFIDENCE = 0.95
Z = float(special.ndtri(0.5 + CONFIDENCE / 2))

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, its interval, and the number of rows it was computed from."""

    value: float
    low: float
    high: float
    n: int


def proportion(successes: int, n: int) -> Estimate:
    """A share and its exact interval (Clopper and Pearson 1934).

    Raises:
        ValueError: ``n`` is not positive, or ``successes`` is not between 0 and ``n``.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is not a share")
    tail = (1 - CONFIDENCE) / 2
    low = special.betaincinv(successes, n - successes + 1, tail) if successes else 0.0
    high = special.betaincinv(successes + 1, n - successes, 1 - tail) if successes < n else 1.0
    return Estimate(value=successes / n, low=float(low), high=float(high), n=n)


def paired_difference(losses: float, gains: float, n: float) -> tuple[float, float]:
    """The interval of ``(losses - gains) / n`` for paired yes-no outcomes.

    The score interval of Tango (Statistics in Medicine 17, 1998), which keeps its level when no
    pair differs: then it is ``z^2 / (n + z^2)`` to either side.

    Args:
        losses: Rows that the source model had right and the candidate has wrong.
        gains: Rows the other way round.
        n: All rows.

    Raises:
        ValueError: The counts do not fit into ``n``.
    """
    if n <= 0 or losses < 0 or gains < 0 or losses + gains > n:
        raise ValueError(f"{losses} losses and {gains} gains do not fit into {n} rows")
    middle = (losses - gains) / n
    low = _bisect(lambda x: _tango_score(losses, gains, n, x) - Z, -1.0, middle)
    high = _bisect(lambda x: _tango_score(losses, gains, n, x) + Z, middle, 1.0)
    return low, high


def _tango_score(losses: float, gains: float, n: float, difference: float) -> float:
    """The standardised distance of the data from a true ``difference``."""
    a = 2 * n
    b = (2 * n - losses + gains) * difference - losses - gains
    c = -gains * difference * (1 - difference)
    nuisance = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * nuisance + difference * (1 - difference))
    distance = losses - gains - n * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _bisect(decreasing: Callable[[float], float], low: float, high: float) -> float:
    """Where a decreasing function crosses zero."""
    for _ in range(60):
        middle = (low + high) / 2
        if decreasing(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def mean(values: Floats) -> Estimate:
    """A mean and its normal interval.

    Raises:
        ValueError: There is no value.
    """
    if not len(values):
        raise ValueError("no rows, no mean")
    center = float(np.mean(values))
    half = Z * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(value=center, low=center - half, high=center + half, n=len(values))


def rmse_growth(source: Floats, candidate: Floats) -> Estimate:
    """By what share the candidate's RMSE is above the source model's, paired.

    The delta method on ``0.5 * ln(mean(c^2) / mean(s^2))``.

    Args:
        source: Errors of the source model, one per row.
        candidate: Errors of the candidate on the same rows.
    """
    s2, c2 = np.square(source), np.square(candidate)
    n = len(s2)
    if not np.any(s2):
        worst = math.inf if np.any(c2) else 0.0
        return Estimate(value=worst, low=min(worst, 0.0), high=worst, n=n)
    ms, mc = float(np.mean(s2)), float(np.mean(c2))
    if mc == 0:
        return Estimate(value=-1.0, low=-1.0, high=-1.0, n=n)
    influence = c2 / mc - s2 / ms
    half = Z * 0.5 * float(np.std(influence, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    log_ratio = 0.5 * math.log(mc / ms)
    low, high = math.expm1(log_ratio - half), _expm1(log_ratio + half)
    return Estimate(value=math.expm1(log_ratio), low=low, high=high, n=n)


def _expm1(value: float) -> float:
    return math.expm1(value) if value < 700 else math.inf


def rows_to_prove(losses: int, gains: int, n: int, allowed: float) -> int | None:
    """Rows it would take to prove a drop of at most ``allowed``, at the rates seen so far.

    Returns:
        The smallest such number, or None when the rates themselves are outside.
    """
    if (losses - gains) / n >= allowed:
        return None

    def proven(rows: int) -> bool:
        scale = rows / n
        return paired_difference(losses * scale, gains * scale, rows)[1] <= allowed

    high = n
    while not proven(high):
        high *= 2
        if high > 10**12:
            return None
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proven(middle) else (middle, high)
    return high

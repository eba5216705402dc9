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
MOST_ROWS = 10**12

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, its interval, and the number of rows it was computed from.

    ``units`` is the number of sequences that the rows belong to, when these and not the rows are
    what was drawn independently.
    """

    value: float
    low: float
    high: float
    n: int
    units: int | None = None

    def __str__(self) -> str:
        """The figure as it stands in tables and verdicts."""
        behind = f"n={self.n}" if self.units is None else f"n={self.n} in {self.units} sequences"
        return f"{self.value:z.4f} ({self.low:z.4f}..{self.high:z.4f}, {behind})"


def proportion(successes: int, n: int) -> Estimate:
    """A share and its exact interval (Clopper and Pearson 1934).

    Raises:
        ValueError: ``n`` is not positive, or ``successes`` is not between 0 and ``n``.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is not a share")
    low, high = share_interval(successes / n, n)
    return Estimate(value=successes / n, low=low, high=high, n=n)


def share_interval(share: float, n: float) -> tuple[float, float]:
    """The exact interval of ``share`` of ``n`` rows, which need not be a whole number."""
    tail, hits = (1 - CONFIDENCE) / 2, share * n
    low = special.betaincinv(hits, n - hits + 1, tail) if hits > 0 else 0.0
    high = special.betaincinv(hits + 1, n - hits, 1 - tail) if hits < n else 1.0
    return float(low), float(high)


def t_quantile(freedom: int) -> float:
    """The quantile of Student's t that a two-sided interval reaches to."""
    return float(special.stdtrit(freedom, 0.5 + CONFIDENCE / 2))


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

    return smallest(proven, start=n)


def smallest(proven: Callable[[int], bool], *, start: int) -> int | None:
    """The smallest number of rows that proves something; None when not even 10^12 do."""
    high = start
    while not proven(high):
        high *= 2
        if high > MOST_ROWS:
            return None
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proven(middle) else (middle, high)
    return high

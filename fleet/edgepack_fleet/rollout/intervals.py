"""Bounds for shares that hold for few, clustered and rare events. Plain Python.

All levels are one-sided. Nothing here is a normal approximation: the levels that many looks and
gates leave to each test are far out in the tail, where those are wrong by orders of magnitude.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

_MOST_STEPS = 400


@dataclass(frozen=True, slots=True)
class Proportion:
    """``hits`` of ``n``, with as much information as ``n / effect`` independent draws.

    Attributes:
        effect: The design effect: how many times larger the variance is than that of independent
            draws (Kish 1965); at least 1.
        freedom: Degrees of freedom with which the effect was estimated; infinite when known.
    """

    hits: int
    n: int
    effect: float = 1.0
    freedom: float = math.inf

    @property
    def share(self) -> float:
        """The estimate."""
        return self.hits / self.n

    def lower(self, alpha: float) -> float:
        """The lower bound at level ``alpha``: Clopper-Pearson on the effective sample size."""
        size = self._size(alpha)
        hits = size * self.share
        return beta_quantile(alpha, hits, size - hits + 1.0) if hits > 0.0 else 0.0

    def upper(self, alpha: float) -> float:
        """The upper bound at level ``alpha``."""
        size = self._size(alpha)
        misses = size * (self.n - self.hits) / self.n
        return 1.0 - beta_quantile(alpha, misses, size - misses + 1.0) if misses > 0.0 else 1.0

    def _size(self, alpha: float) -> float:
        """The effective sample size of Korn and Graubard (Survey Methodology 24, 1998).

        n / effect, times the squared ratio of the t quantiles with n - 1 and ``freedom`` degrees:
        an effect that few clusters told is trusted less.
        """
        return self.n / max(1.0, self.effect) / student_penalty(alpha, self.n - 1.0, self.freedom)


def difference_lower(new: Proportion, old: Proportion, alpha: float) -> float:
    """The lower bound of new - old at level ``alpha``.

    From the bounds of each (MOVER: Newcombe, Statistics in Medicine 17, 1998, method 10; Zou and
    Donner 2008), which keeps its level for rare events, where the usual interval has length 0.
    """
    below = new.share - new.lower(alpha)
    above = old.upper(alpha) - old.share
    return new.share - old.share - math.hypot(below, above)


def student_penalty(alpha: float, plenty: float, freedom: float) -> float:
    """How much wider, squared, an interval is with ``freedom`` degrees than with ``plenty``."""
    if freedom >= plenty:
        return 1.0
    return (student_quantile(alpha, freedom) / student_quantile(alpha, plenty)) ** 2


@lru_cache(maxsize=65536)
def student_quantile(alpha: float, freedom: float) -> float:
    """The value that Student's t exceeds with probability ``alpha`` under 1/2.

    Raises:
        ValueError: ``alpha`` is not within 0 and 1/2, or ``freedom`` not positive.
    """
    if not (0.0 < alpha < 0.5 and freedom > 0.0):
        raise ValueError(f"no t quantile for alpha {alpha} and {freedom} degrees of freedom")
    # P(|T| > t) is the regularised incomplete beta function at x = freedom / (freedom + t^2)
    x = beta_quantile(2.0 * alpha, freedom / 2.0, 0.5)
    return math.sqrt(freedom * (1.0 - x) / x)


@lru_cache(maxsize=65536)
def beta_quantile(p: float, a: float, b: float) -> float:
    """The x at which the beta distribution reaches ``p``.

    Newton's method on the logarithm of the distribution function, within a bracket that bisection
    takes over where Newton leaves it.

    Raises:
        ValueError: ``p`` is not within 0 and 1, or a parameter not positive.
    """
    if not (0.0 < p < 1.0 and a > 0.0 and b > 0.0):
        raise ValueError(f"no beta quantile for p {p}, a {a}, b {b}")
    low, high = 0.0, 1.0
    x = a / (a + b)
    for _ in range(_MOST_STEPS):
        reached = beta_cdf(x, a, b)
        low, high = (x, high) if reached < p else (low, x)
        ahead = _newton(x, reached, p, a, b)
        after = ahead if low < ahead < high else (low + high) / 2.0
        if abs(after - x) <= 1e-13 * after or after in (low, high):
            return after
        x = after
    return x


def _newton(x: float, reached: float, p: float, a: float, b: float) -> float:
    """The next x, or one outside every bracket where the density vanishes."""
    log_density = (a - 1.0) * math.log(x) + (b - 1.0) * math.log1p(-x) - _log_beta(a, b)
    if reached <= 0.0 or not -600.0 < log_density < 600.0:
        return -1.0
    return x - reached * math.log(reached / p) / math.exp(log_density)


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), to 1e-10 relative in both tails.

    Continued fraction 8.17.22 of the NIST Digital Library of Mathematical Functions.
    """
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    front = a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b)
    if x < (a + 1.0) / (a + b + 2.0):
        return math.exp(front) * _fraction(x, a, b) / a
    return 1.0 - math.exp(front) * _fraction(1.0 - x, b, a) / b


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _fraction(x: float, a: float, b: float) -> float:
    """Lentz's method, as in Numerical Recipes 6.4."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    result = d
    for m in count(1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 + term * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + term / c
            c = c if abs(c) > tiny else tiny
            result *= d * c
        if abs(d * c - 1.0) < 1e-15 or m > 10_000:
            break
    return result

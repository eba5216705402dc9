"""Mean and spread that merge: n, mean, M2, min and max of values relative to the reference.

A value x enters as z = (x - reference mean) / reference unit, so that numbers stay near zero and
lose no digits. Merging is Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances" (1979); it is associative and commutative to about 1e-9.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of ``n`` finite values; without values the mean is 0 and the ends are None.

    ``m2`` is the sum of squared distances from the mean.
    """

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0
    low: float | None = None
    high: float | None = None

    @property
    def variance(self) -> float | None:
        """The unbiased variance, None under two values."""
        return self.m2 / (self.n - 1) if self.n > 1 else None

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of values together."""
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = (self.n * self.mean + other.n * other.mean) / n
        m2 = self.m2 + other.m2 + delta * delta * (self.n * other.n / n)
        return Moments(n, mean, m2, _least(self.low, other.low), _most(self.high, other.high))


def _least(one: float | None, two: float | None) -> float | None:
    known = [value for value in (one, two) if value is not None]
    return min(known, default=None)


def _most(one: float | None, two: float | None) -> float | None:
    known = [value for value in (one, two) if value is not None]
    return max(known, default=None)

"""Token buckets: how often something may happen, decided from counts and times alone.

A bucket holds ``burst`` tokens, each event takes one, and ``per_minute`` come back each minute. One
bucket per key; of at most ``max_keys``, the one longest unused is forgotten, and is full again when
its key comes back. Whoever commands many keys can therefore have more than one bucket's worth,
which is why a limit that must hold against everybody has a second bucket for all together.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MAX_KEYS = 16_384


@dataclass(frozen=True, slots=True)
class Rate:
    """How many events a minute, and how many at once."""

    per_minute: float
    burst: float


class Buckets:
    """The buckets of one rate, by key. Not safe for threads: the caller holds a lock.

    Args:
        rate: How fast each bucket fills, and how much it holds.
        max_keys: How many are remembered.
    """

    def __init__(self, rate: Rate, max_keys: int = MAX_KEYS) -> None:
        self._rate = rate
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now_ms: int) -> float:
        """Take one token.

        Args:
            key: Whose.
            now_ms: The time. A clock that was set back fills no bucket, and empties none.

        Returns:
            0 when there was one; else the seconds until there is, and nothing is taken.
        """
        left, then_ms = self._buckets.pop(key, (self._rate.burst, now_ms))
        earned = max(0, now_ms - then_ms) / 60_000 * self._rate.per_minute
        left = min(self._rate.burst, left + earned)
        enough = left >= 1
        self._buckets[key] = (left - 1 if enough else left, now_ms)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return 0.0 if enough else (1 - left) / self._rate.per_minute * 60

"""Latency as a base-2 exponential histogram: mergeable, with a bounded relative error.

The form of OpenTelemetry's exponential histogram (data model, "ExponentialHistogram"): at scale s
the base is 2**(2**-s) and bucket i counts base**i < seconds <= base**(i + 1). The scale is 4, so a
bucket is 4.4 % wide and a quantile is off by at most 2.2 %. The boundaries are those of Prometheus'
native histograms with schema 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp2, log2
from typing import Annotated, Literal, Self

import msgspec

SCALE: Literal[4] = 4
PER_OCTAVE = 2**SCALE
BASE = exp2(1.0 / PER_OCTAVE)

SHORTEST = 1e-9
LONGEST = 1e5
"""Seconds; what is shorter or longer is counted at these ends, which bounds the buckets to 746."""

LOWEST_INDEX = ceil(log2(SHORTEST) * PER_OCTAVE) - 1
HIGHEST_INDEX = ceil(log2(LONGEST) * PER_OCTAVE) - 1
MAX_BUCKETS = HIGHEST_INDEX - LOWEST_INDEX + 1

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class LatencyColumns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The wire form: ``counts[k]`` belongs to bucket ``offset + k``.

    Neither the first nor the last count is 0; without any the offset is 0. ``sum_ns`` is the sum of
    all latencies in nanoseconds, an integer so that it adds exactly.
    """

    scale: Literal[4] = SCALE
    offset: Annotated[int, msgspec.Meta(ge=LOWEST_INDEX, le=HIGHEST_INDEX)] = 0
    counts: Annotated[list[Count], msgspec.Meta(max_length=MAX_BUCKETS)] = []
    sum_ns: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0

    def __post_init__(self) -> None:
        """Refuse a second spelling of the same histogram, and buckets out of range."""
        if self.counts and not (self.counts[0] and self.counts[-1]):
            raise ValueError("latency counts must not begin or end with 0")
        if self.offset + len(self.counts) - 1 > HIGHEST_INDEX or (self.offset and not self.counts):
            raise ValueError("latency buckets are out of range")


class LatencyHistogram:
    """A histogram that is being filled. Not thread-safe."""

    __slots__ = ("_counts", "_sum_ns")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._sum_ns = 0

    @classmethod
    def of(cls, columns: LatencyColumns) -> Self:
        """The histogram that ``columns`` describe."""
        histogram = cls()
        histogram.merge(columns)
        return histogram

    def add(self, seconds: float) -> None:
        """Count one latency.

        Raises:
            ValueError: It is not a number.
        """
        if not SHORTEST <= seconds <= LONGEST:
            seconds = min(max(seconds, SHORTEST), LONGEST)
        index = ceil(log2(seconds) * PER_OCTAVE) - 1
        counts = self._counts
        counts[index] = counts.get(index, 0) + 1
        self._sum_ns += int(seconds * 1e9)

    def add_all(self, latencies: Sequence[float]) -> None:
        """Count some latencies; as :meth:`add` of each.

        Raises:
            ValueError: One is not a number.
        """
        if not latencies:
            return
        if min(latencies) < SHORTEST or not max(latencies) <= LONGEST:
            for seconds in latencies:
                self.add(seconds)
            return
        counts = self._counts
        for index in [ceil(log2(seconds) * PER_OCTAVE) - 1 for seconds in latencies]:
            counts[index] = counts.get(index, 0) + 1
        self._sum_ns += sum([int(seconds * 1e9) for seconds in latencies])

    def merge(self, columns: LatencyColumns) -> None:
        """Add the counts of another histogram; exact, in any order."""
        for index, count in enumerate(columns.counts, columns.offset):
            if count:
                self._counts[index] = self._counts.get(index, 0) + count
        self._sum_ns += columns.sum_ns

    @property
    def n(self) -> int:
        """How many latencies were counted."""
        return sum(self._counts.values())

    def columns(self) -> LatencyColumns:
        """The wire form of what was counted so far."""
        if not self._counts:
            return LatencyColumns()
        first, last = min(self._counts), max(self._counts)
        counts = [self._counts.get(index, 0) for index in range(first, last + 1)]
        return LatencyColumns(offset=first, counts=counts, sum_ns=self._sum_ns)

    def quantile(self, q: float) -> float | None:
        """The latency in seconds that a share ``q`` of requests did not exceed, None without any.

        The value returned lies within (BASE - 1) / (BASE + 1) = 2.2 % of the exact order statistic.

        Raises:
            ValueError: ``q`` is not within 0 and 1.
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile is within 0 and 1, not {q}")
        rank, seen = max(1, ceil(q * self.n)), 0
        for index in sorted(self._counts):
            seen += self._counts[index]
            if seen >= rank:
                return 2.0 * exp2((index + 1) / PER_OCTAVE) / (1.0 + BASE)
        return None

    def count_over(self, seconds: float) -> int:
        """How many latencies lie in buckets above the one that holds ``seconds``.

        Two histograms asked for the same threshold leave out the same bucket, so their shares can
        be compared exactly although the threshold is not a boundary.
        """
        seconds = min(max(seconds, SHORTEST), LONGEST)
        index = ceil(log2(seconds) * PER_OCTAVE) - 1
        return sum(count for key, count in self._counts.items() if key > index)

    def share_over(self, seconds: float) -> float | None:
        """``count_over`` as a share of all latencies, None without any."""
        n = self.n
        return self.count_over(seconds) / n if n else None

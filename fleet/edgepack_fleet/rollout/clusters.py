"""How much less a thousand requests tell than a thousand independent draws.

Requests of one device, or of one minute, resemble each other. The unit of evidence is therefore
the device; with fewer than five devices it is the telemetry window. From how much units differ
follows the design effect, by which every sample size is divided before anything is concluded.

Sources: Kish, "Survey Sampling" (1965), for the design effect; the linearised variance of a ratio
of sums over clusters, Cochran, "Sampling Techniques" (1977) 6.4; Rao and Scott, JASA 76 (1981), for
the mean of the cells' effects as the correction of a chi-squared statistic. Effects below 1 (for
instance of devices that walk a permutation without replacement) are taken as 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import add, mul

DEVICES_AS_UNITS = 5
"""From so many devices on, the device is the unit; with fewer there is no telling a device's
peculiarity from a model's, and only a device's own past is compared."""

FEWEST_UNITS = 3
"""Fewer units say nothing of how much units differ."""

FEWEST_BATCHES = 4
"""Windows are joined into longer batches, to see dependence over time, while so many are left."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Counts over the same cells for one device, or one window of it; ``n`` is their sum."""

    device: str
    start_ms: int
    cells: tuple[int, ...]
    n: int


@dataclass(frozen=True, slots=True)
class Effect:
    """A design effect, at least 1, and the degrees of freedom behind it."""

    size: float
    freedom: float


def make_unit(device: str, start_ms: int, cells: Sequence[int]) -> Unit:
    """A unit of these counts."""
    return Unit(device, start_ms, tuple(cells), sum(cells))


def total(units: Sequence[Unit]) -> tuple[int, ...]:
    """The counts of all units together."""
    return tuple(map(sum, zip(*_cells(units), strict=True)))


def by_device(units: Sequence[Unit]) -> list[Unit]:
    """One unit for each device."""
    parts: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        parts[unit.device].append(unit)
    return [_together(parts[device]) for device in sorted(parts)]


def effect_of_one(units: Sequence[Unit]) -> Effect | None:
    """The design effect of the shares of one sample; None when there are too few units."""
    counts = total(units)
    n = sum(counts)
    if _by_device(units):
        clusters: Sequence[Unit] = by_device(units)
        variances = _variances(clusters)
    else:
        clusters = units
        variances = _batched(clusters)
    if len(clusters) < FEWEST_UNITS:
        return None
    shares = [value / n for value in counts]
    return Effect(_mean_effect(variances, shares, 1.0 / n), len(clusters) - 1.0)


def effect_of_two(new: Sequence[Unit], old: Sequence[Unit]) -> Effect | None:
    """The design effect of the difference of two samples' shares; both of the same devices.

    With devices as units, what is peculiar to a device is in both samples and cancels. With windows
    as units the variances of the two samples add.
    """
    if _by_device(new):
        new, old = by_device(new), by_device(old)
        variances = _paired_variances(new, old)
    else:
        variances = [one + two for one, two in zip(_batched(new), _batched(old), strict=True)]
    clusters = min(len(new), len(old))
    if clusters < FEWEST_UNITS:
        return None
    one, two = total(new), total(old)
    n, m = sum(one), sum(two)
    shares = [(first + second) / (n + m) for first, second in zip(one, two, strict=True)]
    return Effect(_mean_effect(variances, shares, 1.0 / n + 1.0 / m), clusters - 1.0)


def _by_device(units: Sequence[Unit]) -> bool:
    return len({unit.device for unit in units}) >= DEVICES_AS_UNITS


def _mean_effect(variances: Sequence[float], shares: Sequence[float], scale: float) -> float:
    """Rao and Scott's mean of the cells' effects: sum of (1 - p) d over cells, by cells - 1."""
    cells = [(v, p) for v, p in zip(variances, shares, strict=True) if p > 0.0]
    if len(cells) < 2:
        return 1.0
    return max(1.0, sum(v / (p * scale) for v, p in cells) / (len(cells) - 1))


def _batched(units: Sequence[Unit]) -> list[float]:
    """The cells' variances for windows, the largest over batches of 1, 2, 4, ... windows.

    Windows that follow each other may be alike; batches longer than the likeness are not, and show
    it (non-overlapping batch means). The largest over all lengths errs on the side of doubt.
    """
    ordered = sorted(units, key=lambda unit: (unit.device, unit.start_ms))
    sizes = [unit.n for unit in ordered]
    columns: list[list[int]] = [list(column) for column in zip(*_cells(ordered), strict=True)]
    best = _column_variances(columns, sizes)
    while len(sizes) // 2 >= FEWEST_BATCHES:
        sizes, columns = _joined(sizes), [_joined(column) for column in columns]
        longer = _column_variances(columns, sizes)
        best = [max(one, two) for one, two in zip(best, longer, strict=True)]
    return best


def _cells(units: Sequence[Unit]) -> list[tuple[int, ...]]:
    return [unit.cells for unit in units]


def _joined(column: list[int]) -> list[int]:
    """Neighbours added in pairs; an odd one is added to the last pair."""
    pairs = list(map(add, column[::2], column[1::2]))
    if len(column) % 2:
        pairs[-1] += column[-1]
    return pairs


def _together(units: Sequence[Unit]) -> Unit:
    return make_unit(units[0].device, units[0].start_ms, total(units))


def _variances(units: Sequence[Unit]) -> list[float]:
    columns = [list(column) for column in zip(*_cells(units), strict=True)]
    return _column_variances(columns, [unit.n for unit in units])


def _column_variances(columns: list[list[int]], sizes: list[int]) -> list[float]:
    """The variance of each cell's share: that of a ratio of sums over units, linearised.

    sum over units of (x - p n)^2, by N^2, times units / (units - 1); spelled out in sums of
    products, which are exact integers.
    """
    units, n = len(sizes), sum(sizes)
    if units < 2:
        return [0.0] * len(columns)
    squares = sum(map(mul, sizes, sizes))
    correction = units / (units - 1) / n**2
    variances = []
    for column in columns:
        p = sum(column) / n
        spread = sum(map(mul, column, column)) - 2.0 * p * sum(map(mul, column, sizes))
        variances.append(max(0.0, spread + p * p * squares) * correction)
    return variances


def _paired_variances(new: Sequence[Unit], old: Sequence[Unit]) -> list[float]:
    """The variance of each cell's difference in share; unit by unit, both samples together."""
    parts = [
        [one - two for one, two in zip(first, second, strict=True)]
        for first, second in zip(_parts(new), _parts(old), strict=True)
    ]
    correction = len(parts) / (len(parts) - 1)
    columns = zip(*parts, strict=True)
    return [correction * sum(value * value for value in column) for column in columns]


def _parts(units: Sequence[Unit]) -> list[list[float]]:
    """Each unit's part in the error of each share: (x - p n) / N."""
    counts = total(units)
    n = sum(counts)
    shares = [value / n for value in counts]
    return [
        [(x - p * unit.n) / n for x, p in zip(unit.cells, shares, strict=True)] for unit in units
    ]

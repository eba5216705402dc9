"""Is the new model fit to stay? A pure judgement over counters, taken while it answers requests.

Time and latency count only while the machine is not throttled: a hot box is not the model's fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MIN_ERROR_REQUESTS = 20
MAX_ERROR_SHARE = 0.05
MIN_NONFINITE = 3
MAX_NONFINITE_SHARE = 0.01
IDENTICAL_INPUTS = 50
MIN_LATENCY_REQUESTS = 300
MAX_OVER_BUDGET_SHARE = 0.05
MIN_EXERCISED_REQUESTS = 20
MEMORY_STREAK = 3
_Z_99 = 2.576
"""The two-sided 99 % point of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What the slot has counted of its active model since that was loaded; all only grow.

    ``errors`` are failures of the model itself, not of what callers sent. ``nonfinite`` are answers
    that hold NaN or an infinity. ``identical_inputs`` is the number of distinct inputs since the
    output last differed. ``over_budget`` are answers slower than the bundle's latency budget.
    ``memory_bytes`` is what the process holds now; it alone may shrink.
    """

    requests: int = 0
    errors: int = 0
    nonfinite: int = 0
    identical_inputs: int = 0
    over_budget: int = 0
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """How long a probation lasts, in seconds, and the memory budget of the bundle in bytes.

    The budget holds all that the model may take: loading and asking it must not have let the
    process grow by more.
    """

    seconds: float
    max_seconds: float
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Watching:
    """A probation so far.

    ``elapsed`` and ``calm`` are seconds, all of them and those without throttling. ``judged`` and
    ``over_budget`` count the requests that came in calm seconds, and the slow ones among them.
    ``memory_base`` is what the process held before it loaded the model, or else at the first look.
    """

    last: Counters = Counters()
    elapsed: float = 0.0
    calm: float = 0.0
    judged: int = 0
    over_budget: int = 0
    memory_base: int | None = None
    memory_streak: int = 0


@dataclass(frozen=True, slots=True)
class Continue:
    """Too early to say."""


@dataclass(frozen=True, slots=True)
class Passed:
    """Watched long enough; without ``exercised`` its golden inputs have yet to be answered."""

    exercised: bool


@dataclass(frozen=True, slots=True)
class Tripped:
    """The model must not stay, and why."""

    code: str
    words: str


Judgement = Continue | Passed | Tripped


def observe(
    watching: Watching, counters: Counters, *, seconds: float, throttled: bool, limits: GuardLimits
) -> Watching:
    """Add what happened in the last ``seconds``.

    Args:
        watching: The probation so far.
        counters: The slot's counters now.
        seconds: Since the last observation.
        throttled: Whether the machine runs slower than it should, because of heat or supply.
        limits: The limits of this probation.
    """
    base = counters.memory_bytes if watching.memory_base is None else watching.memory_base
    over = _over(counters.memory_bytes, base, limits.memory_bytes)
    calm = not throttled
    return Watching(
        last=counters,
        elapsed=watching.elapsed + seconds,
        calm=watching.calm + seconds * calm,
        judged=watching.judged + (counters.requests - watching.last.requests) * calm,
        over_budget=watching.over_budget
        + (counters.over_budget - watching.last.over_budget) * calm,
        memory_base=base,
        memory_streak=watching.memory_streak + 1 if over else 0,
    )


def judge(watching: Watching, limits: GuardLimits) -> Judgement:
    """Say whether the model trips, passes, or is to be watched on."""
    tripped = _trip(watching, limits)
    if tripped:
        return tripped
    if watching.calm >= limits.seconds or watching.elapsed >= limits.max_seconds:
        return Passed(exercised=watching.last.requests >= MIN_EXERCISED_REQUESTS)
    return Continue()


def share_lower_bound(hits: int, n: int) -> float:
    """The lower end of the 99 % Wilson interval of a share (Wilson 1927, eq. 1)."""
    p, z2 = hits / n, _Z_99 * _Z_99
    spread = _Z_99 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (p + z2 / (2 * n) - spread) / (1 + z2 / n)


def _trip(watching: Watching, limits: GuardLimits) -> Tripped | None:
    counters = watching.last
    checks = (_errors(counters), _nonfinite(counters), _identical(counters))
    late = (_latency(watching), _memory(watching, limits))
    return next((found for found in (*checks, *late) if found), None)


def _errors(counters: Counters) -> Tripped | None:
    n, errors = counters.requests, counters.errors
    if n < MIN_ERROR_REQUESTS or errors <= n * MAX_ERROR_SHARE:
        return None
    return Tripped("errors", f"{errors} of {n} requests failed, at most 5 % may")


def _nonfinite(counters: Counters) -> Tripped | None:
    n, bad = counters.requests, counters.nonfinite
    if bad < MIN_NONFINITE or bad <= n * MAX_NONFINITE_SHARE:
        return None
    return Tripped("nonfinite-outputs", f"{bad} of {n} answers hold NaN or an infinity")


def _identical(counters: Counters) -> Tripped | None:
    if counters.identical_inputs < IDENTICAL_INPUTS:
        return None
    return Tripped(
        "identical-outputs",
        f"the output was the same to the bit for {counters.identical_inputs} distinct inputs",
    )


def _latency(watching: Watching) -> Tripped | None:
    # the two are counted one after the other, so a look in between may find one more
    n, slow = watching.judged, min(watching.over_budget, watching.judged)
    if n < MIN_LATENCY_REQUESTS or share_lower_bound(slow, n) <= MAX_OVER_BUDGET_SHARE:
        return None
    return Tripped(
        "latency-budget",
        f"{slow} of {n} answers were slower than the latency budget, 5 % may be",
    )


def _memory(watching: Watching, limits: GuardLimits) -> Tripped | None:
    if watching.memory_streak < MEMORY_STREAK:
        return None
    now, base = watching.last.memory_bytes or 0, watching.memory_base or 0
    return Tripped(
        "memory",
        f"the process grew from {base} to {now} bytes, by more than the model's budget of "
        f"{limits.memory_bytes}",
    )


def _over(used: int | None, base: int | None, allowed: int | None) -> bool:
    if used is None or base is None or allowed is None:
        return False
    return used - base > allowed

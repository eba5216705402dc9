"""The judgement over a new model: what trips it, what passes it, and what says nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_runtime.activation.guard import (
    Continue,
    Counters,
    GuardLimits,
    Passed,
    Tripped,
    Watching,
    judge,
    observe,
    share_lower_bound,
)

LIMITS = GuardLimits(seconds=10.0, max_seconds=60.0, memory_bytes=1000)


def after(counters: Counters, *, seconds: float = 1.0, throttled: bool = False, times: int = 1):
    watching = Watching()
    for _ in range(times):
        watching = observe(watching, counters, seconds=seconds, throttled=throttled, limits=LIMITS)
    return judge(watching, LIMITS)


@pytest.mark.parametrize(
    ("counters", "code"),
    [
        (Counters(requests=20, errors=2), "errors"),
        (Counters(requests=1000, errors=51), "errors"),
        (Counters(requests=10, nonfinite=3), "nonfinite-outputs"),
        (Counters(requests=1000, nonfinite=11), "nonfinite-outputs"),
        (Counters(requests=50, identical_inputs=50), "identical-outputs"),
        (Counters(requests=300, over_budget=60), "latency-budget"),
    ],
)
def test_what_trips(counters, code):
    judgement = after(counters)
    assert isinstance(judgement, Tripped)
    assert judgement.code == code
    assert any(figure.isdigit() for figure in judgement.words)


@pytest.mark.parametrize(
    "counters",
    [
        Counters(),
        Counters(requests=19, errors=19),
        Counters(requests=1000, errors=50),
        Counters(requests=2, nonfinite=2),
        Counters(requests=1000, nonfinite=10),
        Counters(requests=49, identical_inputs=49),
        Counters(requests=299, over_budget=299),
        Counters(requests=300, over_budget=15),
        Counters(requests=100, memory_bytes=10**9),
    ],
)
def test_what_does_not_trip(counters):
    assert after(counters) == Continue()


def growing(*sizes: int):
    watching = Watching()
    for size in sizes:
        counters = Counters(requests=1, memory_bytes=size)
        watching = observe(watching, counters, seconds=0.1, throttled=False, limits=LIMITS)
    return judge(watching, LIMITS)


def test_memory_trips_when_the_process_grows_by_the_budget_and_stays_there():
    assert growing(90_000, 91_001, 91_001) == Continue()
    tripped = growing(90_000, 91_001, 91_001, 91_001)
    assert isinstance(tripped, Tripped)
    assert tripped.code == "memory"
    assert growing(90_000, 91_001, 91_001, 91_000, 91_001, 91_001) == Continue()
    assert growing(90_000, 90_500, 91_000, 91_000, 91_000) == Continue()


def test_it_passes_after_its_time_and_says_whether_it_was_exercised():
    assert after(Counters(requests=20), seconds=9.9) == Continue()
    assert after(Counters(requests=20), seconds=10.0) == Passed(exercised=True)
    assert after(Counters(requests=19), seconds=10.0) == Passed(exercised=False)


def test_throttled_time_does_not_count_but_ends():
    busy = Counters(requests=100)
    assert after(busy, seconds=59.0, throttled=True) == Continue()
    assert after(busy, seconds=60.0, throttled=True) == Passed(exercised=True)


def test_slow_answers_of_a_hot_machine_are_not_held_against_the_model():
    slow = Counters(requests=1000, over_budget=1000)
    assert after(slow, throttled=True) == Continue()
    assert isinstance(after(slow, throttled=False), Tripped)


def test_errors_count_however_hot_it_is():
    assert isinstance(after(Counters(requests=100, errors=100), throttled=True), Tripped)


def test_the_lower_bound_is_that_of_wilson():
    # scipy.stats.binomtest(60, 300).proportion_ci(0.99, "wilson").low
    assert share_lower_bound(60, 300) == pytest.approx(0.147295, abs=1e-5)
    assert share_lower_bound(0, 300) == pytest.approx(0.0, abs=1e-12)


def test_a_model_on_its_budget_rarely_trips():
    # 5 % over the budget is allowed: at exactly that share the bound stays below it
    for n in (300, 1_000, 100_000):
        assert share_lower_bound(round(n * 0.05), n) < 0.05


COUNTERS = st.builds(
    Counters,
    requests=st.integers(0, 10_000),
    errors=st.integers(0, 10_000),
    nonfinite=st.integers(0, 10_000),
    identical_inputs=st.integers(0, 100),
    over_budget=st.integers(0, 10_000),
    memory_bytes=st.none() | st.integers(0, 2000),
)
STEPS = st.lists(st.tuples(COUNTERS, st.floats(0.1, 30.0), st.booleans()), min_size=1, max_size=8)


@given(STEPS)
def test_it_ends_at_the_latest_after_the_longest_time(steps):
    watching, total = Watching(), Counters()
    for counters, seconds, throttled in steps:
        total = Counters(
            requests=total.requests + counters.requests,
            errors=total.errors + counters.errors,
            nonfinite=total.nonfinite + counters.nonfinite,
            identical_inputs=counters.identical_inputs,
            over_budget=total.over_budget + counters.over_budget,
            memory_bytes=counters.memory_bytes,
        )
        watching = observe(watching, total, seconds=seconds, throttled=throttled, limits=LIMITS)
    assert watching.calm <= watching.elapsed
    if watching.elapsed >= LIMITS.max_seconds:
        assert judge(watching, LIMITS) != Continue()


@given(COUNTERS, st.integers(1, 1000))
def test_more_errors_never_make_it_better(counters, more):
    from dataclasses import replace

    before = after(counters, seconds=20.0)
    worse = after(replace(counters, errors=counters.errors + more), seconds=20.0)
    assert not (isinstance(before, Tripped) and isinstance(worse, Passed))

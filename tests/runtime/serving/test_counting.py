from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_runtime.serving.counting import (
    MOST_REMEMBERED,
    SECONDS_BUCKETS,
    Durations,
    ModelCounts,
    Sameness,
    SlotTotals,
)


def feeds(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array([values], np.float32)}


def test_one_answer_to_many_distinct_inputs_is_noticed():
    sameness = Sameness()
    for value in range(60):
        sameness.see(feeds(value), b"same")
        sameness.see(feeds(value), b"same")
    assert sameness.distinct_inputs == 60


def test_another_answer_starts_anew():
    sameness = Sameness()
    for value in range(60):
        sameness.see(feeds(value), b"same")
    sameness.see(feeds(99), b"other")
    assert sameness.distinct_inputs == 1


def test_decisions_alone_say_nothing():
    sameness = Sameness()
    for value in range(60):
        sameness.see(feeds(value), b"")
    assert sameness.distinct_inputs == 0


def test_memory_of_inputs_is_bounded():
    sameness = Sameness()
    for value in range(MOST_REMEMBERED + 10):
        sameness.see(feeds(value), b"same")
    assert sameness.distinct_inputs == MOST_REMEMBERED


def test_texts_can_be_inputs():
    sameness = Sameness()
    for text in ("a", "b", "a"):
        sameness.see({"x": np.array([[text]], object)}, b"same")
    assert sameness.distinct_inputs == 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_sameness_is_the_distinct_inputs_of_the_last_run_of_equal_outputs(answers):
    sameness = Sameness()
    for value, output in answers:
        sameness.see(feeds(value), bytes([output]))
    last: set[int] = set()
    for value, output in reversed(answers):
        if output != answers[-1][1]:
            break
        last.add(value)
    assert sameness.distinct_inputs == len(last)


@pytest.mark.parametrize(
    ("kind", "errors", "nonfinite"), [("backend", 1, 0), ("nonfinite_output", 0, 1)]
)
def test_failures_by_blame(kind, errors, nonfinite):
    counts = ModelCounts()
    counts.failed(kind, 10)
    seen = counts.snapshot()
    assert (seen.requests, seen.errors, seen.nonfinite) == (1, errors, nonfinite)


def test_answers_add_up():
    counts = ModelCounts()
    for slow in (True, False, False):
        counts.answered(feeds(1), b"o", 2, Durations(1, 2, 3, 4), over_budget=slow, finite=not slow)
    seen = counts.snapshot()
    assert (seen.requests, seen.errors, seen.over_budget, seen.nonfinite) == (3, 0, 1, 1)
    assert counts.spent == Durations(3, 6, 9, 12)
    assert counts.spent.seconds == pytest.approx(30e-9)
    assert counts.rows == 6


def test_buckets_are_upper_bounds_included():
    totals = SlotTotals()
    totals.count(1, SECONDS_BUCKETS[0])
    totals.count(1, SECONDS_BUCKETS[0] * 1.01)
    totals.count(1, 1e9)
    assert totals.buckets[0] == totals.buckets[1] == totals.buckets[-1] == 1
    assert totals.answered == 3

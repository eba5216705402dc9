"""Moments merge like the values they stand for."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.moments import Moments

VALUES = st.lists(st.floats(-1e6, 1e6, allow_nan=False), max_size=30)


def moments_of(values: list[float]) -> Moments:
    total = Moments()
    for value in values:
        total = total.merge(Moments(1, value, 0.0, value, value))
    return total


def close(one: Moments, two: Moments) -> bool:
    return (
        (one.n, one.low, one.high) == (two.n, two.low, two.high)
        and math.isclose(one.mean, two.mean, rel_tol=1e-9, abs_tol=1e-6)
        and math.isclose(one.m2, two.m2, rel_tol=1e-9, abs_tol=1e-3)
    )


@given(VALUES, VALUES, VALUES)
def test_merging_is_associative_and_commutative(first, second, third):
    a, b, c = map(moments_of, (first, second, third))
    assert close(a.merge(b), b.merge(a))
    assert close(a.merge(b).merge(c), a.merge(b.merge(c)))


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50))
def test_moments_are_those_of_the_values(values):
    found = moments_of(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert found.variance == pytest.approx(statistics.variance(values), rel=1e-9, abs=1e-9)
    assert (found.low, found.high) == (min(values), max(values))


def test_nothing_is_neutral():
    some = moments_of([1.0, 2.0])
    assert some.merge(Moments()) == some
    assert Moments().merge(some) == some
    assert Moments().variance is None

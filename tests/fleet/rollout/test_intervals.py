from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgepack_fleet.rollout.intervals import (
    Proportion,
    beta_cdf,
    beta_quantile,
    difference_lower,
    student_penalty,
    student_quantile,
)

ALPHAS = st.sampled_from([0.3, 0.01, 1e-3, 1e-6, 1e-9])


@given(st.floats(0.01, 5000), st.floats(0.01, 5000), st.floats(0.0, 1.0))
def test_the_beta_distribution_is_scipys(a: float, b: float, x: float):
    expected = stats.beta.cdf(x, a, b)
    if expected > 1e-290:
        assert beta_cdf(x, a, b) == pytest.approx(expected, rel=1e-9, abs=1e-290)


@given(ALPHAS, st.floats(0.5, 5000), st.floats(0.5, 5000))
def test_quantiles_undo_the_distribution(p: float, a: float, b: float):
    assert beta_cdf(beta_quantile(p, a, b), a, b) == pytest.approx(p, rel=1e-8)


@given(ALPHAS, st.floats(1.0, 1e6))
def test_student_is_scipys(alpha: float, freedom: float):
    expected = stats.t.isf(alpha, freedom)
    assert student_quantile(alpha, freedom) == pytest.approx(expected, rel=1e-7)


@given(st.integers(1, 3000), st.data(), ALPHAS)
def test_independent_draws_have_clopper_and_pearsons_bounds(
    n: int, data: st.DataObject, alpha: float
):
    hits = data.draw(st.integers(0, n))
    share = Proportion(hits, n)
    lower = stats.beta.ppf(alpha, hits, n - hits + 1) if hits else 0.0
    upper = stats.beta.isf(alpha, hits + 1, n - hits) if hits < n else 1.0
    assert share.lower(alpha) == pytest.approx(lower, rel=1e-6, abs=1e-12)
    assert share.upper(alpha) == pytest.approx(upper, rel=1e-6, abs=1e-12)


@given(st.integers(2, 500), st.data(), ALPHAS, st.floats(1.0, 20.0), st.floats(2.0, 100.0))
def test_clusters_only_widen(
    n: int, data: st.DataObject, alpha: float, effect: float, freedom: float
):
    hits = data.draw(st.integers(0, n))
    plain, clustered = Proportion(hits, n), Proportion(hits, n, effect, freedom)
    assert clustered.lower(alpha) <= plain.lower(alpha) + 1e-12
    assert clustered.upper(alpha) >= plain.upper(alpha) - 1e-12
    assert clustered.lower(alpha) <= plain.share + 1e-12
    assert plain.share <= clustered.upper(alpha) + 1e-12


@given(st.integers(1, 400), st.data())
def test_a_stricter_level_is_a_wider_bound(n: int, data: st.DataObject):
    share = Proportion(data.draw(st.integers(0, n)), n, 1.5, 7.0)
    lowers = [share.lower(alpha) for alpha in (0.1, 0.01, 1e-4, 1e-8)]
    assert lowers == sorted(lowers, reverse=True)


def test_few_clusters_are_trusted_less():
    penalties = [student_penalty(1e-3, 200.0, freedom) for freedom in (2.0, 4.0, 20.0, 199.0)]
    assert penalties == sorted(penalties, reverse=True)
    assert student_penalty(1e-3, 10.0, math.inf) == 1.0


def test_the_bound_of_a_difference_holds_its_level():
    """1 % of errors in both arms: how often is the lower bound over 0? Nominal: 1 %."""
    rng = random.Random(5)
    wrong = 0
    for _ in range(2000):
        new, old = (sum(rng.random() < 0.01 for _ in range(500)) for _ in range(2))
        wrong += difference_lower(Proportion(new, 500), Proportion(old, 500), 0.01) > 0.0
    assert wrong <= 20


def test_a_difference_is_found():
    assert difference_lower(Proportion(50, 500), Proportion(0, 500), 1e-5) > 0.03
    assert difference_lower(Proportion(0, 500), Proportion(0, 500), 0.01) < 0.0


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, math.nan])
def test_a_level_out_of_range_is_refused(alpha: float):
    with pytest.raises(ValueError, match="no t quantile"):
        student_quantile(alpha, 5.0)


def test_a_beta_quantile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no beta quantile"):
        beta_quantile(0.5, 0.0, 1.0)

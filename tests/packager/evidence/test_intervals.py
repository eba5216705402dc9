"""Intervals keep their promises: exact cases, laws, and coverage by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from edgepack_packager.evidence.intervals import (
    Estimate,
    Z,
    paired_difference,
    proportion,
    rows_to_prove,
    share_interval,
    t_quantile,
)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_proportion_is_clopper_pearson(case):
    k, n = case
    found = proportion(k, n)
    wanted = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@pytest.mark.parametrize("n", [1, 10, 381, 5000])
def test_no_differing_pair_still_leaves_doubt(n):
    low, high = paired_difference(0, 0, n)
    bound = Z**2 / (n + Z**2)
    assert (low, high) == pytest.approx((-bound, bound), abs=1e-9)


def restricted_score(losses, gains, n, difference):
    """Tango's statistic with its restricted maximum likelihood found by search, not by formula."""

    def cost(q):
        cells = ((losses, q + difference), (gains, q), (n - losses - gains, 1 - 2 * q - difference))
        if any(share < 0 for _, share in cells):
            return 1e18
        return -sum(k * math.log(share) if share > 0 else -1e9 for k, share in cells if k)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    q = optimize.minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    spread = n * (2 * q + difference * (1 - difference))
    return (losses - gains - n * difference) / math.sqrt(spread)


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (5, 1, 200), (3, 9, 77)])
def test_paired_difference_inverts_the_score_test(b, c, n):
    middle = (b - c) / n
    low = optimize.brentq(lambda x: restricted_score(b, c, n, x) - Z, -0.99, middle)
    high = optimize.brentq(lambda x: restricted_score(b, c, n, x) + Z, middle, 0.99)
    assert paired_difference(b, c, n) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 400))
def test_paired_difference_is_antisymmetric_and_holds_its_point(b, c, rest):
    n = b + c + rest
    if n == 0:
        return
    low, high = paired_difference(b, c, n)
    assert -1 <= low <= (b - c) / n + 1e-12
    assert (b - c) / n - 1e-12 <= high <= 1
    assert paired_difference(c, b, n) == pytest.approx((-high, -low), abs=1e-9)


def test_paired_difference_covers_the_truth():
    random = np.random.default_rng(1)
    hits = 0
    draws = random.multinomial(400, [0.02, 0.01, 0.97], size=1000)
    for b, c, _ in draws:
        low, high = paired_difference(int(b), int(c), 400)
        hits += low <= 0.01 <= high
    assert hits >= 930


@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 0), (-1, 0, 5), (4, 4, 7)])
def test_impossible_counts_are_refused(b, c, n):
    with pytest.raises(ValueError, match="do not fit"):
        paired_difference(b, c, n)
    with pytest.raises(ValueError, match="not a share"):
        proportion(n + 1, n)


def test_shares_of_parts_of_rows_lie_between_those_of_whole_rows():
    low, high = share_interval(0.9, 55.5)
    assert share_interval(0.9, 50)[0] < low < share_interval(0.9, 60)[0]
    assert share_interval(0.9, 60)[1] < high < share_interval(0.9, 50)[1]
    assert share_interval(1.0, 10.0)[1] == 1.0


@pytest.mark.parametrize("freedom", [1, 5, 400])
def test_the_quantile_is_students(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom))


def test_a_figure_says_what_is_behind_it():
    assert str(Estimate(0.5, 0.25, 0.75, 40)) == "0.5000 (0.2500..0.7500, n=40)"
    assert str(Estimate(-1e-6, -0.25, 0.75, 40)) == "0.0000 (-0.2500..0.7500, n=40)"
    assert str(Estimate(0.5, 0.25, 0.75, 40, 6)).endswith("n=40 in 6 sequences)")


def test_rows_to_prove_is_the_smallest_number_that_proves():
    needed = rows_to_prove(0, 0, 100, 0.01)
    assert needed is not None
    assert paired_difference(0, 0, needed)[1] <= 0.01 < paired_difference(0, 0, needed - 1)[1]
    assert rows_to_prove(2, 0, 100, 0.01) is None

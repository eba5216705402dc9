"""The tests of drift hold their level and have their power, and their tails are exact."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from scipy.signal import lfilter

from edgepack_contract.drift import (
    MATERIAL,
    gamma_q,
    independent,
    jensen_shannon,
    judge,
    n_min,
    p_above,
    two_sample_psi,
    unseen_p,
)
from edgepack_contract.reference import FeatureReference
from edgepack_contract.statistics import InputCounter, build_feature_reference

ALPHA = 0.01


@pytest.mark.parametrize("a", [0.5, 1.0, 7.5, 15.0, 19.99, 20.0, 100.0, 1234.5, 1e5, 1e6])
def test_the_gamma_function_is_exact_into_the_far_tail(a):
    for deviations in np.linspace(-8, 37, 91):
        for x in (a + deviations * math.sqrt(a), 3 * a + deviations):
            if x < 0:
                continue
            expected = special.gammaincc(a, x)
            if expected > 1e-300:
                assert gamma_q(a, x) == pytest.approx(expected, rel=1e-10)


@given(st.floats(0.1, 1e3), st.floats(0, 1e4), st.floats(0, 10))
def test_the_gamma_function_falls(a, x, step):
    assert 0.0 <= gamma_q(a, x + step) <= gamma_q(a, x) + 1e-12 <= 1.0 + 1e-12


@pytest.mark.parametrize(("a", "x"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -0.1), (math.nan, 1.0)])
def test_the_gamma_function_is_not_defined_there(a, x):
    with pytest.raises(ValueError, match="not defined"):
        gamma_q(a, x)


@given(st.integers(1, 500), st.integers(1, 500), st.data())
def test_unseen_is_the_hypergeometric_probability(n, m, data):
    k = data.draw(st.integers(0, n))
    assert unseen_p(k, n, m) == pytest.approx(stats.hypergeom.pmf(k, n + m, k, n), rel=1e-6)


def test_one_chi_square_is_left_without_a_material_size():
    spread = independent(16)
    psi, n, m = 0.05, 500, 2000
    expected = stats.chi2.sf(psi / (1 / n + 1 / m), 15)
    assert p_above(psi, 0.0, 1 / n + 1 / m, spread) == pytest.approx(expected, rel=1e-10)


def test_jensen_shannon_is_bounded_and_symmetric():
    assert jensen_shannon([5, 0], [0, 9]) == pytest.approx(math.log(2))
    assert jensen_shannon([2, 4], [1, 2]) == pytest.approx(0.0, abs=1e-15)
    assert jensen_shannon([3, 1], [1, 3]) == jensen_shannon([1, 3], [3, 1])
    assert jensen_shannon([0, 0], [1, 3]) == 0.0


def reference_of(rows: np.ndarray, *, ordered: bool = False) -> FeatureReference:
    return build_feature_reference(rows, tensor="x", feature="f", ordered=ordered)


def judged(item: FeatureReference, rows: np.ndarray, alpha: float = ALPHA):
    counter = InputCounter([item])
    columns = counter.columns(counter.count({"x": rows}))
    return judge(item, columns.counts[0], columns.null[0], alpha=alpha)


def shares(rng, *, n: int, m: int, shift: float, runs: int, ties: bool = False):
    """How often normal rows moved by ``shift`` are found shifted, and drifted."""
    shifted = drifted = 0
    for _ in range(runs):
        old, new = rng.normal(size=m), rng.normal(size=n) + shift
        if ties:
            old, new = np.round(old, 1) + 0.05, np.round(new, 1) + 0.05
        found = judged(reference_of(old), new)
        shifted += found.shifted_p < ALPHA
        drifted += found.drift_p < ALPHA
    return shifted / runs, drifted / runs


def at_most(nominal: float, runs: int) -> float:
    """Exceeded by chance once in a thousand such tests."""
    return float(stats.binom.ppf(0.999, runs, nominal)) / runs


@pytest.mark.parametrize(
    ("n", "m", "ties"), [(200, 1000, False), (500, 10_000, False), (5000, 5000, False),
                         (500, 3000, True), (60, 3000, False)],
)  # fmt: skip
def test_false_alarms_stay_at_their_level(n, m, ties):
    rng = np.random.default_rng(n + m)
    shifted, drifted = shares(rng, n=n, m=m, shift=0.0, runs=400, ties=ties)
    assert shifted <= at_most(ALPHA, 400)
    assert drifted == 0.0


def test_a_change_of_the_material_size_is_no_drift():
    # 0.32 standard deviations are a PSI of 0.1
    shifted, drifted = shares(np.random.default_rng(1), n=1000, m=10_000, shift=0.32, runs=150)
    assert shifted > 0.99
    assert drifted <= at_most(ALPHA, 150)


@pytest.mark.parametrize(("n", "power"), [(200, 0.35), (500, 0.85), (1000, 0.99)])
def test_a_large_change_is_found(n, power):
    # 0.51 standard deviations are a PSI of 0.25
    _, drifted = shares(np.random.default_rng(n), n=n, m=10_000, shift=0.51, runs=150)
    assert drifted >= power


@pytest.mark.parametrize(("phi", "limit"), [(0.5, 0.05), (0.9, 0.07)])
def test_calibration_holds_the_level_for_rows_that_follow_each_other(phi, limit):
    rng = np.random.default_rng(int(phi * 100))
    runs, plain, calibrated = 100, 0, 0
    for _ in range(runs):
        old, new = autoregressive(rng, phi, 10_000), autoregressive(rng, phi, 1000)
        item = reference_of(old, ordered=True)
        calibrated += judged(item, new).shifted_p < ALPHA
        naive = msgspec.structs.replace(item, calibration=independent(16))
        plain += judged(naive, new).shifted_p < ALPHA
    assert calibrated / runs <= limit
    if phi == 0.9:
        assert plain / runs > 0.4


def autoregressive(rng, phi: float, rows: int) -> np.ndarray:
    noise = rng.normal(size=rows + 500) * math.sqrt(1 - phi**2)
    return lfilter([1.0], [1.0, -phi], noise)[500:]


def test_the_smallest_window_has_the_stated_power():
    assert n_min(independent(16), 10_000, ALPHA) == pytest.approx(413, rel=0.02)
    assert n_min(independent(16), 10_000, 1e-6) > 1000


def test_a_reference_that_is_too_small_gives_no_verdict():
    assert n_min(independent(16), 50, ALPHA) is None
    rows = np.random.default_rng(2).normal(size=50)
    assert judged(reference_of(rows), rows).verdict == "no-data"


def test_verdicts_go_from_no_data_to_drift():
    rng = np.random.default_rng(33)
    item = reference_of(rng.normal(size=10_000))
    within = np.clip(rng.normal(size=2000), -2, 2)
    assert judged(item, within[:100]).verdict == "no-data"
    assert judged(item, rng.normal(size=2000)).verdict == "ok"
    assert judged(item, rng.normal(size=2000) + 0.25).verdict == "shifted"
    assert judged(item, rng.normal(size=2000) + 1.0).verdict == "drift"


def test_a_column_that_was_never_seen_is_judged_at_once():
    item = reference_of(np.random.default_rng(4).normal(size=10_000))
    few = np.array([0.0] * 17 + [99.0] * 3)
    found = judged(item, few)
    assert (found.verdict, found.n) == ("shifted", 20)
    assert found.unseen_p < 1e-6
    nulls = judged(item, np.array([0.0] * 17 + [math.nan] * 3))
    assert nulls.verdict == "shifted"


def test_new_categories_are_expected_where_rare_ones_were_seen():
    often = build_feature_reference(np.repeat([0, 1], 500), tensor="x", feature="f")
    rare = build_feature_reference(np.array([0] * 999 + [1]), tensor="x", feature="f")
    new = np.array([0] * 40 + [7])
    assert judged(often, np.array([0] * 20 + [1] * 20 + [7] * 5)).unseen_p < ALPHA
    assert judged(rare, new).unseen_p == 1.0


def test_counts_over_other_edges_are_refused():
    item = reference_of(np.random.default_rng(5).normal(size=1000))
    with pytest.raises(ValueError, match="columns"):
        judge(item, [1, 2, 3], 0, alpha=ALPHA)


COUNTS = st.lists(st.integers(0, 400), min_size=2, max_size=12)


@given(COUNTS, st.data())
def test_comparing_two_samples_is_symmetric_and_never_sure_without_data(one, data):
    two = data.draw(st.lists(st.integers(0, 400), min_size=len(one), max_size=len(one)))
    there, back = two_sample_psi(one, two), two_sample_psi(two, one)
    assert there.psi == pytest.approx(back.psi, abs=1e-12)
    assert 0.0 <= there.p_above(0.25) <= 1.0
    assert there.p_above(0.25) >= there.p_above(0.0) - 1e-12
    assert there.p_above(0.0) <= two_sample_psi(one, two, 4.0).p_above(0.0) + 1e-12 or (
        there.p_above(0.0) > 0.3
    )
    assert two_sample_psi(one, [0] * len(one)).p_above(0.0) == 1.0


def test_comparing_two_samples_holds_its_level():
    rng = np.random.default_rng(9)
    mix = [0.5, 0.3, 0.1, 0.06, 0.03, 0.01]
    runs, plain, rarest = 2000, 0, 0
    for _ in range(runs):
        one, two = rng.multinomial(300, mix).tolist(), rng.multinomial(900, mix).tolist()
        plain += two_sample_psi(one, two).p_above(0.0) < ALPHA
        rarest += two_sample_psi(one, two, adjacent=False).p_above(0.0) < ALPHA
    assert plain / runs <= at_most(ALPHA, runs)
    assert rarest / runs <= at_most(ALPHA, runs)


def test_clusters_are_paid_for_by_inflation():
    rng = np.random.default_rng(10)
    runs, plain, inflated = 500, 0, 0
    for _ in range(runs):
        # every row comes five times
        one = (5 * rng.multinomial(60, [0.25] * 4)).tolist()
        two = (5 * rng.multinomial(200, [0.25] * 4)).tolist()
        plain += two_sample_psi(one, two).p_above(0.0) < ALPHA
        inflated += two_sample_psi(one, two, 5.0).p_above(0.0) < ALPHA
    assert plain / runs > 0.2
    assert inflated / runs <= at_most(ALPHA, runs)


def test_a_collapsed_class_mix_is_significantly_above_a_quarter():
    found = two_sample_psi([200] + [0] * 9, [20] * 10)
    assert found.p_above(0.25) < 1e-9
    assert two_sample_psi([20] * 10, [21] * 10).p_above(0.25) > 0.99


@pytest.mark.parametrize(("two", "inflation"), [([1], 1.0), ([1, 2], 0.5)])
def test_samples_that_do_not_compare_are_refused(two, inflation):
    with pytest.raises(ValueError, match="same columns"):
        two_sample_psi([1, 2], two, inflation)


def test_the_material_size_is_a_third_of_a_standard_deviation():
    grid = (np.arange(200_000) + 0.5) / 200_000
    normal = stats.norm.ppf(grid)
    item = reference_of(normal)
    found = judged(item, normal + 0.32)
    assert found.psi == pytest.approx(MATERIAL, rel=0.1)

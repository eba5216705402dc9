"""Influences against brute force, known formulas, and coverage by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_packager.evidence.intervals import paired_difference, proportion
from edgepack_packager.evidence.metrics import macro_auc, macro_f1
from edgepack_packager.evidence.statistic import (
    Proof,
    Statistic,
    difference,
    estimate,
    growth,
    mean_of,
    number,
    share_of,
)


def test_shares_have_the_exact_intervals():
    ours, theirs = np.arange(100) >= 10, np.arange(100) >= 7
    found = estimate(share_of(ours), None)
    assert found == proportion(90, 100)
    loss, proof = difference(share_of(theirs), share_of(ours), None)
    assert (loss.low, loss.high) == paired_difference(3, 0, 100)
    assert proof.counts == (3, 0)


def test_a_mean_has_students_interval_and_its_difference_is_paired():
    random = np.random.default_rng(0)
    theirs = 10 * random.standard_normal(200)
    ours = theirs - 0.5 + 0.1 * random.standard_normal(200)
    assert estimate(mean_of(ours), None).high - estimate(mean_of(ours), None).low > 2
    loss, _ = difference(mean_of(theirs), mean_of(ours), None)
    assert loss.value == pytest.approx(np.mean(theirs - ours))
    assert 0.45 < loss.low < loss.value < loss.high < 0.55


def test_where_nothing_differs_doubt_is_left_that_shrinks_with_the_rows():
    halves = []
    for n in (50, 500):
        scores = mean_of(np.random.default_rng(n).random(n), share=True)
        loss, _ = difference(scores, scores, None)
        assert loss.value == 0.0
        assert loss.low == -loss.high
        halves.append(loss.high)
    assert halves[0] > 9 * halves[1] > 0
    assert halves[1] == pytest.approx(2.77 / 502, rel=0.01)


@given(st.integers(2, 60), st.integers(0, 30))
def test_yes_or_no_scores_are_about_as_uncertain_as_shares(n, lost):
    """Bonett and Price against Tango: never much narrower, and of the same order."""
    lost = min(lost, n)
    ones, right = np.ones(n), np.arange(n) >= lost
    whole = Statistic(1.0, ones - 1, share=True)
    loss, _ = difference(whole, mean_of(right.astype(float), share=True), None)
    low, high = paired_difference(lost, 0, n)
    assert loss.high - loss.low > 0.6 * (min(high, 1) - max(low, -1))


def test_rows_of_one_sequence_count_as_one():
    random = np.random.default_rng(0)
    units = np.repeat(np.arange(20), 50)
    values = random.standard_normal(20)[units]
    together = estimate(mean_of(values), units)
    apart = estimate(mean_of(values), None)
    assert (together.n, together.units) == (1000, 20)
    assert together.value == apart.value
    assert together.high - together.low > 5 * (apart.high - apart.low)


def test_one_sequence_proves_nothing():
    units = np.zeros(40, dtype=np.intp)
    assert estimate(mean_of(np.arange(40.0)), units).high == math.inf
    share = share_of(np.arange(40) > 2)
    assert (estimate(share, units).low, estimate(share, units).high) == (0.0, 1.0)
    loss, proof = difference(share, share, units)
    assert (loss.low, loss.high) == (-1.0, 1.0)
    assert proof.rows(0.01) is None


def test_where_nothing_differs_rows_count_that_do_not_share_their_fate():
    """An equal candidate must not be less proven than one that differs here and there."""
    random = np.random.default_rng(0)
    units = np.repeat(np.arange(40), 20)
    alone = random.random(800) < 0.9
    shared = (random.random(40) < 0.9)[units]
    highs = [difference(share_of(hits), share_of(hits), units)[0].high for hits in (alone, shared)]
    assert highs[0] < 0.01
    assert highs[1] > 0.05
    one = alone.copy()
    one[0] = not one[0]
    assert difference(share_of(alone), share_of(one), units)[0].high > highs[0] - 0.003


def test_where_most_rows_differ_a_little_only_what_was_seen_counts():
    random = np.random.default_rng(0)
    theirs = 1 - 0.01 * random.random(60)
    ours = theirs - 0.001 * random.random(60)
    loss, _ = difference(mean_of(theirs, share=True), mean_of(ours, share=True), None)
    assert loss.high < 0.0008


def test_growth_of_scaled_errors_is_known_exactly():
    errors = np.square(np.random.default_rng(0).standard_normal(500))
    found, _ = growth(mean_of(errors * 1.21), mean_of(errors), None, power=0.5)
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low < 1e-6
    assert growth(mean_of(errors), mean_of(errors), None)[0].high == pytest.approx(0, abs=1e-12)


def test_growth_over_nothing_is_infinite():
    zeros, ones = mean_of(np.zeros(5)), mean_of(np.ones(5))
    assert growth(ones, zeros, None)[0].high == math.inf
    assert growth(zeros, zeros, None)[0].high == 0.0
    assert growth(zeros, ones, None)[0].value == -1.0


@pytest.mark.parametrize(("scale", "allowed"), [("plain", 0.005), ("log", 0.012)])
def test_the_rows_asked_for_would_prove_it(scale, allowed):
    random = np.random.default_rng(1)
    theirs = random.random(50)
    ours = theirs - 0.002 + 0.02 * random.standard_normal(50)

    def loss(times):
        a, b = (mean_of(np.tile(values, times)) for values in (ours, theirs))
        return growth(b, a, None) if scale == "log" else difference(b, a, None)

    found, proof = loss(1)
    assert found.high > allowed
    rows = proof.rows(allowed)
    assert rows is not None
    assert loss(math.ceil(rows / 50))[0].high <= 1.02 * allowed
    assert loss(max(rows // 2 // 50, 1))[0].high > allowed


def test_no_number_of_rows_proves_what_is_not_so():
    assert Proof(0.02, 100, 100, 0.1).rows(0.01) is None


def coverage(draw, measure, truth, *, runs=300, seed=0):
    """The share of simulated exams whose interval holds the truth."""
    random = np.random.default_rng(seed)
    hits = 0
    for _ in range(runs):
        found = measure(*draw(random))
        hits += found.low <= truth <= found.high
    return hits / runs


def scored(random, n=150):
    truth = random.integers(0, 2, n)
    good = truth + random.standard_normal(n)
    return truth, good, good + 0.7 * random.standard_normal(n)


def auc_drop(truth, one, two):
    curves = [macro_auc(truth, np.stack([-s, s], axis=1)) for s in (one, two)]
    return difference(curves[0], curves[1], None)[0]


def f1_drop(truth, one, two):
    return difference(macro_f1(truth, one > 0.5), macro_f1(truth, two > 0.5), None)[0]


@pytest.mark.parametrize("measure", [auc_drop, f1_drop])
def test_differences_of_auc_and_f1_cover_the_truth(measure):
    truth = measure(*scored(np.random.default_rng(9), n=400_000)).value
    assert 0.92 <= coverage(scored, measure, truth) <= 0.98


def test_absolute_figures_near_one_cover_the_truth():
    def draw(random):
        truth = random.random(200) < 0.3
        return truth, 2.6 * truth + random.standard_normal(200)

    def auc(truth, score):
        return macro_auc(truth.astype(int), np.stack([-score, score], axis=1))

    area = 0.96701  # of two normals 2.6 apart: Phi(2.6 / sqrt(2))
    assert coverage(draw, lambda *rows: estimate(auc(*rows), None), area) >= 0.93

    def images(random):
        return (random.beta(9, 1, 80),)

    def score(values):
        return estimate(mean_of(values, share=True), None)

    assert 0.92 <= coverage(images, score, 0.9) <= 0.98
    assert estimate(mean_of(np.full(80, 1.0), share=True), None).low < 0.96


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_figures_over_sequences_cover_the_truth(spread):
    def draw(random):
        units = np.repeat(np.arange(30), 20)
        lean = spread * random.standard_normal(30)[units]
        return random.standard_normal(600) + lean > 0, units

    found = coverage(draw, lambda hits, units: estimate(share_of(hits), units), 0.5)
    assert 0.92 <= found <= 0.99
    naive = coverage(draw, lambda hits, units: estimate(share_of(hits), None), 0.5)
    assert naive < 0.8


def test_rare_and_large_losses_are_not_missed_more_often_than_said():
    """Scores that nearly always agree: the case in which the plain t interval fails."""

    def draw(random):
        return (random.random(300) < 0.01,)

    def loss(lost):
        theirs, ours = mean_of(np.ones(300), share=True), mean_of(1.0 - lost, share=True)
        return difference(theirs, ours, None)[0]

    assert coverage(draw, loss, 0.01) >= 0.94


def test_sequences_are_numbered_without_gaps():
    assert number(np.array([7, 3, 7, 9])).tolist() == [1, 0, 1, 2]

"""Splits: disjoint, the latest judged, sequences and equal times whole, the same for a seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_packager.data.rows import Rows
from edgepack_packager.data.splitting import split_rows
from edgepack_packager.errors import DataError


def split(n, *, seed=0, times=None, sequences=None):
    parts = split_rows(
        Rows({"x": np.arange(n)}, None, ""), seed=seed, times=times, sequences=sequences
    )
    return [part.columns["x"] for part in (parts.calibration, parts.evaluation, parts.reference)]


def whole(pieces, n):
    return sorted(np.concatenate(pieces).tolist()) == list(range(n))


@given(st.integers(8, 800), st.integers(0, 9), st.integers(2, 50))
def test_the_latest_are_judged_and_equal_times_stay_together(n, seed, ties):
    times = np.random.default_rng(seed).integers(0, ties, n)
    times[:2], times[-1] = -1, ties  # two that are older, and one that is later
    calibration, evaluation, reference = split(n, seed=seed, times=times)
    assert whole([calibration, evaluation, reference], n)
    assert min(len(calibration), len(evaluation), len(reference)) >= 1
    assert times[evaluation].min() > max(times[calibration].max(), times[reference].max())
    assert np.all(np.diff(times[evaluation]) >= 0)
    assert np.all(np.diff(times[reference]) >= 0)


def test_about_sixty_per_cent_are_judged_by_time():
    times = np.arange("2026-01-01", "2026-04-11", dtype="datetime64[D]")
    calibration, evaluation, reference = split(100, times=times)
    assert evaluation.tolist() == list(range(40, 100))
    assert (len(calibration), len(reference)) == (15, 25)
    assert not np.array_equal(np.sort(calibration), np.arange(15))  # dealt, not the oldest
    again = split(100, times=times)
    assert calibration.tolist() == again[0].tolist()
    assert calibration.tolist() != split(100, seed=1, times=times)[0].tolist()


@given(st.integers(3, 40), st.integers(0, 5), st.booleans())
def test_sequences_stay_whole(count, seed, timed):
    random = np.random.default_rng(seed)
    names = np.repeat(np.arange(count), random.integers(3, 9, count)).astype(str)
    times = None
    if timed:
        times = random.permutation(count)[names.astype(int)] + np.linspace(0, 0.5, len(names))
    pieces = split(len(names), seed=seed, times=times, sequences=names)
    assert whole(pieces, len(names))
    sets = [set(names[piece]) for piece in pieces]
    assert all(sets)
    assert sum(len(names) for names in sets) == count
    if timed:
        assert np.all(np.diff(times[pieces[1]]) >= 0)
    else:
        assert np.all(np.diff(pieces[1]) > 0)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (np.array(["3/4/24"] * 10), "texts such as '3/4/24'"),
        (np.array([1.0] * 4 + [np.nan] + [2.0] * 5), "row 4 has no time"),
        (np.full(10, 5), "all but the first are the same"),
        (np.zeros((10, 2)), "time column"),
    ],
)
def test_times_that_are_none_are_refused(times, words):
    with pytest.raises(DataError, match=words) as caught:
        split(10, times=times)
    assert caught.value.code == "bad-time"


def test_two_sequences_are_not_split():
    with pytest.raises(DataError, match="2 sequences are too few"):
        split(10, sequences=np.repeat([1, 2], 5))

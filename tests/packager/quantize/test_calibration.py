"""Ranges: counts that add, so that neither memory nor result depends on the pieces."""

import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.packager.models import mlp, rows
from tests.packager.quantize.made import STATIC, clean, ready

from edgepack_packager.quantize.calibration import (
    HALF_BINS,
    Histogram,
    find_range,
    measure_histograms,
    rounded,
)

VALUES = arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
)


def counted(*pieces):
    histogram = Histogram()
    for piece in pieces:
        histogram.add(np.asarray(piece, np.float32))
    return histogram


@given(VALUES, st.lists(st.integers(0, 60), max_size=4))
def test_pieces_do_not_change_the_counts(values, cuts):
    whole, pieces = counted(values), counted(*np.split(values, sorted(cuts)))
    assert whole.exponent == pieces.exponent
    assert (whole.low, whole.high) == (pieces.low, pieces.high)
    assert np.array_equal(whole.counts, pieces.counts)


@given(VALUES)
def test_every_finite_value_is_counted_once_and_in_its_bin(values):
    histogram = counted(values)
    finite = values[np.isfinite(values)].astype(np.float64)
    assert histogram.counts.sum() == finite.size
    if finite.size:
        used = np.flatnonzero(histogram.counts) - HALF_BINS
        assert used.min() * histogram.width <= finite.min()
        assert finite.max() < (used.max() + 1) * histogram.width


def test_the_range_grows_by_doubling_and_keeps_what_was_counted():
    histogram = counted([0.5, -0.25], [1000.0])
    assert histogram.counts.sum() == 3
    assert histogram.width == 2.0**-1  # 2048 bins up to 1024
    assert histogram.counts[HALF_BINS - 1] == 1
    assert histogram.counts[HALF_BINS + 1] == 1


@pytest.mark.parametrize("method", ["percentile-99.9", "percentile-99.99", "entropy", "min-max"])
@pytest.mark.parametrize("values", [[0.0] * 8, [3.0] * 8, [-2.0] * 8, [np.nan, np.inf, 1.0], []])
def test_constant_and_odd_tensors_have_a_range(method, values):
    low, high = find_range(counted(values), method)
    assert np.isfinite([low, high]).all()
    assert low <= 0 <= high
    finite = [item for item in values if np.isfinite(item)]
    assert high <= max([*finite, 0.0]) * 1.001


def test_percentiles_cut_outliers_and_min_max_does_not():
    values = np.r_[np.random.default_rng(0).standard_normal(100_000), 1000.0]
    histogram = counted(values)
    assert find_range(histogram, "min-max")[1] == 1000
    assert find_range(histogram, "percentile-99.9")[1] < 10
    assert find_range(histogram, "percentile-99.9")[0] < -2


def test_entropy_cuts_a_long_tail_and_keeps_a_flat_distribution():
    random = np.random.default_rng(0)
    tailed = counted(np.r_[random.standard_normal(200_000), 60.0])
    assert 3 < find_range(tailed, "entropy")[1] < 30
    flat = counted(random.uniform(-1, 1, 200_000))
    assert find_range(flat, "entropy")[1] > 0.9


def test_ranges_are_rounded_outwards_so_that_last_bits_do_not_show():
    low, high = rounded(-1.00001, 2.00001)
    assert (low, high) == rounded(-1.00002, 2.00002)
    assert low <= -1.00002
    assert high >= 2.00002


def test_ranges_hold_every_value_and_hide_the_last_bits():
    feeds = rows()
    ranges = ready(mlp(), {"x": feeds}).ranges(STATIC)
    low, high = ranges["x"]
    assert low <= feeds.min() < feeds.max() <= high
    assert ready(mlp(), {"x": feeds * np.float32(1 + 1e-7)}).ranges(STATIC) == ranges


@pytest.mark.parametrize("method", ["min-max", "percentile-99.99", "entropy"])
def test_calibration_ignores_what_is_not_finite(method):
    feeds = rows()
    feeds[3, 2] = np.nan
    feeds[4, 1] = np.inf
    ranges = ready(mlp(), {"x": feeds}).ranges(msgspec.structs.replace(STATIC, calibration=method))
    assert np.isfinite(list(ranges.values())).all()


def test_memory_does_not_grow_with_the_rows():
    model = clean(mlp())

    def held(n):
        feeds = {"x": rows(n=n)}
        tracemalloc.start()
        histograms = measure_histograms(model, ["x", "r"], feeds)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert histograms["x"].counts.sum() == feeds["x"].size
        return peak

    held(16)  # what is imported and cached on first use
    few, many = held(1024), held(16 * 1024)
    assert many < few + 100_000  # their activations are 1.4 MB more

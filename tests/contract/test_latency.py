"""The exponential histogram: boundaries as OpenTelemetry has them, exact merges, bounded error."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.latency import (
    BASE,
    LONGEST,
    MAX_BUCKETS,
    SHORTEST,
    LatencyColumns,
    LatencyHistogram,
)

SECONDS = st.lists(st.floats(1e-7, 1e3), max_size=60)
ERROR = (BASE - 1) / (BASE + 1)


def histogram_of(values: list[float]) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(value)
    return histogram


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(1.0, -1), (1.0000001, 0), (2.0, 15), (0.5, -17), (2.0 ** (1 / 16) * 1.0001, 1)],
)
def test_a_bucket_includes_its_upper_boundary(seconds, bucket):
    assert histogram_of([seconds]).columns().offset == bucket


@given(SECONDS, SECONDS, SECONDS)
def test_merging_is_exact_in_any_order(first, second, third):
    whole = histogram_of([*first, *second, *third]).columns()
    merged = histogram_of(third)
    merged.merge(histogram_of(first).columns())
    merged.merge(histogram_of(second).columns())
    assert merged.columns() == whole
    assert LatencyHistogram.of(whole).columns() == whole
    assert merged.n == len(first) + len(second) + len(third)


@given(st.lists(st.floats(1e-7, 1e3), min_size=1, max_size=60), st.floats(0, 1))
def test_a_quantile_is_within_the_stated_error_of_the_order_statistic(values, q):
    exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    found = histogram_of(values).quantile(q)
    assert abs(found - exact) <= exact * ERROR * (1 + 1e-9)


@given(st.lists(st.floats(-1.0, 1e30) | st.sampled_from([1.0, 0.5, 2.0, 1e-9, 1e5]), max_size=300))
def test_counting_many_is_counting_each(values):
    many = LatencyHistogram()
    many.add_all(values)
    assert many.columns() == histogram_of(values).columns()


def test_without_latencies_there_is_no_quantile():
    empty = LatencyHistogram()
    assert (empty.quantile(0.5), empty.share_over(1.0), empty.columns()) == (
        None, None, LatencyColumns(),
    )  # fmt: skip


@given(st.lists(st.floats(1e-6, 1e2), min_size=1), st.floats(1e-6, 1e2))
def test_share_over_counts_whole_buckets_above_the_threshold(values, threshold):
    found = histogram_of(values).count_over(threshold)
    assert sum(value > threshold * BASE for value in values) <= found
    assert found <= sum(value > threshold for value in values)


def test_extremes_are_counted_at_the_ends():
    histogram = histogram_of([0.0, -1.0, 1e-30, 1e30, math.inf])
    columns = histogram.columns()
    assert len(columns.counts) == MAX_BUCKETS
    assert (columns.counts[0], columns.counts[-1]) == (3, 2)
    assert histogram.quantile(0.0) == pytest.approx(SHORTEST, rel=0.05)
    assert histogram.quantile(1.0) == pytest.approx(LONGEST, rel=0.05)


def test_not_a_number_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        LatencyHistogram().add(math.nan)
    for values in ([math.nan, 1.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="NaN"):
            LatencyHistogram().add_all(values)
    with pytest.raises(ValueError, match="quantile"):
        LatencyHistogram().quantile(1.5)


@pytest.mark.parametrize(
    "plain",
    [
        {"scale": 3, "offset": 0, "counts": [1]},
        {"offset": 0, "counts": [0, 1]},
        {"offset": 0, "counts": [1, 0]},
        {"offset": 5, "counts": []},
        {"offset": 260, "counts": [1] * 20},
        {"offset": -100000, "counts": [1]},
        {"offset": 0, "counts": [-1]},
        {"offset": 0, "counts": [1], "sum_ns": -1},
    ],
)
def test_the_wire_form_has_one_spelling(plain):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(plain, LatencyColumns)

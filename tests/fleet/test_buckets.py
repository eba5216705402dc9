"""Token buckets: exact counts under times that are given, for a bounded number of keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_fleet.buckets import Buckets, Rate

TEN = Rate(per_minute=10, burst=10)


def taken(buckets, key, times):
    return sum(buckets.take(key, now_ms) == 0 for now_ms in times)


def test_a_burst_passes_and_the_next_one_waits():
    buckets = Buckets(TEN)
    assert taken(buckets, "a", [1000] * 15) == 10
    assert buckets.take("a", 1000) == pytest.approx(6.0)
    assert buckets.take("a", 4000) == pytest.approx(3.0)
    assert buckets.take("a", 7000) == 0
    assert buckets.take("a", 7000) > 0


def test_keys_do_not_share_a_bucket():
    buckets = Buckets(TEN)
    assert taken(buckets, "a", [0] * 20) == 10
    assert taken(buckets, "b", [0] * 20) == 10


def test_a_bucket_holds_no_more_than_a_burst_however_long_nobody_came():
    buckets = Buckets(TEN)
    taken(buckets, "a", [0])
    assert taken(buckets, "a", [10**9] * 50) == 10


def test_a_clock_that_was_set_back_fills_nothing_and_stops_nothing():
    buckets = Buckets(TEN)
    assert taken(buckets, "a", [10_000_000] * 10) == 10
    assert buckets.take("a", 0) > 0
    assert buckets.take("a", 6000) == 0


def test_the_key_longest_unused_is_forgotten():
    buckets = Buckets(TEN, max_keys=2)
    for key in ("a", "b"):
        taken(buckets, key, [0] * 10)
    assert buckets.take("a", 0) > 0
    taken(buckets, "c", [0])
    assert len(buckets) == 2
    assert buckets.take("a", 0) > 0
    assert buckets.take("b", 0) == 0


@given(st.lists(st.integers(0, 600_000), min_size=1, max_size=200))
def test_never_more_than_the_burst_and_what_came_back(times):
    span = (max(times) - min(times)) / 60_000
    buckets = Buckets(TEN)
    assert taken(buckets, "a", sorted(times)) <= 10 + span * 10 + 1e-6

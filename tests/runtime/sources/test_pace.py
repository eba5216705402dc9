"""A cap on what comes in: arithmetic alone, with time as an argument."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_runtime.sources.pace import BURST_SECONDS, Pace


def drawn(pace: Pace, seconds: float, *, wanted, rng: random.Random | None = None) -> int:
    """How many bytes come in when somebody always wants some and waits as he is told."""
    now = taken = 0.0
    while now < seconds:
        allowance = pace.allow(wanted(), now)
        pace.spend(allowance.size)
        taken += allowance.size
        now += allowance.wait if not allowance.size else (rng.uniform(0, 0.02) if rng else 0.0)
    return int(taken)


@pytest.mark.parametrize("rate", [1, 7, 1000, 50_000, 3_000_000, 2**30])
def test_over_some_seconds_the_cap_is_kept_within_a_twentieth(rate):
    seconds = 20.0 if rate < 100 else 4.0
    got = drawn(Pace(rate), seconds, wanted=lambda: 65_536)
    assert 0.95 * rate * seconds - 1 <= got <= 1.05 * rate * seconds + 1


@given(rate=st.integers(1, 2**30), seed=st.integers(0, 99), most=st.integers(1, 65_536))
def test_no_way_of_drawing_gets_more_than_the_cap_and_one_burst(rate, seed, most):
    rng = random.Random(seed)
    pace, now, taken = Pace(rate), 0.0, 0
    for _ in range(200):
        size = pace.allow(rng.randint(1, most), now).size
        pace.spend(size)
        taken += size
        now += rng.choice([0.0, 0.001, 0.1, 3.0])
    assert taken <= rate * now + max(1.0, rate * BURST_SECONDS)


def test_without_a_cap_everything_comes_at_once():
    assert Pace().allow(1 << 30, 0.0).size == 1 << 30


def test_what_many_draw_is_one_cap():
    pace = Pace(10_000)
    now = taken = 0.0
    while now < 4.0:
        waits = []
        for _ in range(8):
            allowance = pace.allow(65_536, now)
            pace.spend(allowance.size)
            taken += allowance.size
            waits.append(allowance.wait)
        now += max(waits)
    assert 0.95 * 40_000 <= taken <= 1.05 * 40_000


def test_a_cap_can_change_and_go():
    pace = Pace(1000)
    assert pace.allow(500, 0.0).size == 0
    pace.set_rate(0)
    assert pace.allow(500, 0.0).size == 500
    pace.set_rate(10)
    assert pace.allow(500, 100.0).size <= 3


def test_a_clock_that_steps_back_gives_nothing_away():
    pace = Pace(1000)
    pace.allow(100, 1000.0)
    assert pace.allow(100, 10.0).size == 0
    assert pace.allow(100, 11.0).size == 100

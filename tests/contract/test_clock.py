"""The clock that is believed: a lower bound that only verified dates raise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.clock import BUILT_MS, TrustedClock

YEAR = 365 * 24 * 3600 * 1000
moments = st.integers(0, BUILT_MS + 100 * YEAR)


@pytest.mark.parametrize(
    ("system", "learnt", "now", "behind"),
    [
        (0, 0, BUILT_MS, True),
        (0, BUILT_MS + YEAR, BUILT_MS + YEAR, True),
        (BUILT_MS - 1, 0, BUILT_MS, True),
        (BUILT_MS, 0, BUILT_MS, False),
        (BUILT_MS + YEAR, BUILT_MS, BUILT_MS + YEAR, False),
        (BUILT_MS + 70 * YEAR, BUILT_MS, BUILT_MS + 70 * YEAR, False),
    ],
    ids=["1970", "1970, learnt", "just behind", "just right", "right", "ahead"],
)
def test_what_time_it_is(system, learnt, now, behind):
    clock = TrustedClock(lambda: system, floor_ms=learnt)
    assert (clock.now_ms(), clock.is_behind) == (now, behind)


@given(st.lists(st.tuples(moments, moments)), moments)
def test_the_floor_is_the_latest_verified_date_whatever_the_system_said(history, floor):
    system = 0
    clock = TrustedClock(lambda: system, floor_ms=floor)
    for system, dated in history:
        before = clock.floor_ms
        assert clock.learn(dated) == (clock.floor_ms > before)
        assert clock.floor_ms >= before
        assert clock.now_ms() >= max(system, dated)
    assert clock.floor_ms == max([BUILT_MS, floor, *(dated for _, dated in history)])


def test_a_device_that_was_in_2099_is_well_again():
    system = BUILT_MS + 73 * YEAR
    clock = TrustedClock(lambda: system)
    clock.learn(BUILT_MS + YEAR)
    assert clock.now_ms() == system
    system = BUILT_MS + 2 * YEAR
    assert (clock.now_ms(), clock.is_behind) == (system, False)


def test_a_new_epoch_undoes_a_date_that_a_thief_signed():
    clock = TrustedClock(lambda: BUILT_MS + YEAR)
    clock.learn(BUILT_MS + 64 * YEAR)
    assert clock.is_behind
    clock.forget(BUILT_MS + YEAR - 1)
    assert not clock.is_behind
    assert clock.floor_ms == BUILT_MS + YEAR - 1
    clock.forget(0)
    assert clock.floor_ms == BUILT_MS


def test_certificates_are_judged_by_dates_that_no_online_key_can_move():
    clock = TrustedClock(lambda: 0, owner_ms=BUILT_MS + YEAR)
    assert clock.sure_ms() == clock.now_ms() == BUILT_MS + YEAR
    clock.learn(BUILT_MS + 64 * YEAR)
    assert clock.now_ms() == BUILT_MS + 64 * YEAR
    assert clock.sure_ms() == BUILT_MS + YEAR
    clock.learn_of_owner(BUILT_MS + 2 * YEAR)
    assert clock.sure_ms() == BUILT_MS + 2 * YEAR
    clock.forget(BUILT_MS + 3 * YEAR)
    assert clock.sure_ms() == clock.now_ms() == BUILT_MS + 3 * YEAR

from __future__ import annotations

import pytest

from edgepack_fleet.rollout.spending import look_is_due, look_level


@pytest.mark.parametrize("looks", [1, 2, 60, 1000])
def test_all_looks_together_spend_alpha_and_no_more(looks: int):
    levels = [look_level(0.01, look, looks) for look in range(1, looks + 1)]
    assert 2 * sum(levels) == pytest.approx(0.01)
    assert levels == sorted(levels, reverse=True)


def test_a_thousand_looks_last_for_days():
    now, looked, looks = 0, None, 0
    while looks < 1000:
        if look_is_due(now, 0, looked, 1000):
            looked, looks = now, looks + 1
        now += 1000
    assert now > 2 * 86_400_000


def test_every_tick_is_a_look_at_first():
    assert look_is_due(5000, 0, 4000, 1000)
    assert not look_is_due(4000, 0, 4000, 1000)
    assert not look_is_due(1_001_000, 0, 1_000_000, 1000)

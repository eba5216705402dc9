from __future__ import annotations

import random

from edgepack_fleet.rollout.clusters import (
    Unit,
    by_device,
    effect_of_one,
    effect_of_two,
    make_unit,
    total,
)


def windows(rng: random.Random, count: int, share, *, device: str = "gw-1", n: int = 40):
    made = []
    for second in range(count):
        p = share(second)
        hits = sum(rng.random() < p for _ in range(n))
        made.append(make_unit(device, second * 1000, (hits, n - hits)))
    return made


def mean_effect(make, runs: int = 200) -> float:
    rng = random.Random(7)
    return sum(effect_of_one(make(rng)).size for _ in range(runs)) / runs


def test_independent_draws_have_nearly_no_effect():
    assert 1.0 <= mean_effect(lambda rng: windows(rng, 30, lambda _: 0.2)) < 1.8


def test_windows_that_differ_have_their_effect():
    # Var(p) = 0.04 over windows of 40 with p = 0.5: 1 + 39 * 0.04 / 0.25 = 7.2, and more because
    # the largest over all lengths of batches is taken
    def make(rng: random.Random) -> list[Unit]:
        return windows(rng, 60, lambda _: rng.choice([0.3, 0.7]))

    assert 7.2 <= mean_effect(make) < 1.5 * 7.2


def test_likeness_over_time_shows_in_longer_batches():
    """Twenty windows of one share, then twenty of another: neighbours alone would not tell."""

    def make(rng: random.Random) -> list[Unit]:
        return windows(rng, 64, lambda second: 0.45 if (second // 8) % 2 else 0.55)

    short = mean_effect(lambda rng: windows(rng, 64, lambda _: rng.choice([0.45, 0.55])))
    assert mean_effect(make) > 2 * short


def test_draws_without_replacement_count_as_independent():
    units = [make_unit("gw-1", second, (4, 36)) for second in range(20)]
    assert effect_of_one(units).size == 1.0


def test_from_five_devices_on_the_device_is_the_unit():
    rng = random.Random(1)
    peculiar = [0.1, 0.3, 0.5, 0.7, 0.9]
    units = [
        unit
        for number, p in enumerate(peculiar)
        for unit in windows(rng, 20, lambda _, p=p: p, device=f"gw-{number}")
    ]
    effect = effect_of_one(units)
    assert effect.freedom == 4
    assert effect.size > 100


def test_what_is_peculiar_to_a_device_cancels_in_a_difference():
    rng = random.Random(2)
    peculiar = [0.1, 0.3, 0.5, 0.7, 0.9, 0.4]
    new, old = (
        [
            unit
            for number, p in enumerate(peculiar)
            for unit in windows(rng, 50, lambda _, p=p: p, device=f"gw-{number}")
        ]
        for _ in range(2)
    )
    assert effect_of_two(new, old).size < 3
    assert effect_of_one(new).size > 100


def test_two_windows_say_nothing():
    units = windows(random.Random(0), 2, lambda _: 0.5)
    assert effect_of_one(units) is None
    assert effect_of_two(units, units) is None


def test_units_add():
    units = [
        make_unit("b", 1, (1, 2, 3)),
        make_unit("a", 2, (4, 5, 6)),
        make_unit("b", 3, (1, 1, 1)),
    ]
    assert total(units) == (6, 8, 10)
    assert [(unit.device, unit.cells, unit.n) for unit in by_device(units)] == [
        ("a", (4, 5, 6), 15),
        ("b", (2, 3, 4), 9),
    ]

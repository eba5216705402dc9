from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_fleet.errors import InvalidRequestError
from edgepack_fleet.rollout.cohorts import stage_sizes, stratified_order

DEVICES = st.dictionaries(
    st.from_regex(r"\A[a-z]{1,4}\Z"), st.sampled_from("abc"), min_size=1, max_size=60
)


@given(DEVICES, st.text(max_size=5))
def test_every_prefix_holds_the_classes_in_proportion(classes: dict[str, str], seed: str):
    order = stratified_order(classes, seed)
    sizes = Counter(classes.values())
    for length in range(1, len(order) + 1):
        got = Counter(classes[device] for device in order[:length])
        if length >= len(sizes):
            assert set(got) == set(sizes)
        for name, size in sizes.items():
            fair = length * size / len(order)
            # the leaders of each class are ahead of their turn by less than the classes there are
            assert abs(got[name] - fair) <= len(sizes) + 1


@given(DEVICES, st.text(max_size=5), st.text(max_size=5))
def test_the_order_is_everybody_once_and_belongs_to_the_seed(
    classes: dict[str, str], seed: str, other: str
):
    order = stratified_order(classes, seed)
    assert sorted(order) == sorted(classes)
    shuffled = dict(sorted(classes.items(), reverse=True))
    assert stratified_order(shuffled, seed) == order
    assert sorted(stratified_order(classes, other)) == sorted(order)


def test_another_seed_chooses_another_canary():
    classes = {f"gw-{number}": "pi" for number in range(50)}
    canaries = {stratified_order(classes, str(seed))[0] for seed in range(20)}
    assert len(canaries) > 10


def test_the_largest_class_leads():
    classes = {"a": "jetson", "b": "pi", "c": "pi", "d": "pi"}
    assert classes[stratified_order(classes, "s")[0]] == "pi"


@given(st.integers(1, 500), st.integers(1, 99), st.integers(1, 99))
def test_widening_a_stage_keeps_who_was_inside(devices: int, one: int, two: int):
    low, high = sorted((one, two))
    narrow = stage_sizes([f"{low}%"], devices)[0][1]
    wide = stage_sizes([f"{high}%"], devices)[0][1]
    order = stratified_order({str(number): str(number % 3) for number in range(devices)}, "s")
    assert set(order[:narrow]) <= set(order[:wide])


@given(st.integers(1, 1000), st.lists(st.integers(1, 100), unique=True, min_size=1, max_size=5))
def test_stages_grow_and_end_with_everybody(devices: int, percents: list[int]):
    sizes = [size for _, size in stage_sizes([f"{p}%" for p in sorted(percents)], devices)]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == devices
    assert sizes[0] == math.ceil(devices * min(percents) / 100)


@pytest.mark.parametrize(
    ("targets", "devices", "expected"),
    [
        (["1", "50%", "100%"], 5, [("1", 1), ("50%", 3), ("100%", 5)]),
        (["1", "50%", "100%"], 1, [("1", 1)]),
        (["1", "50%", "100%"], 2, [("1", 1), ("100%", 2)]),
        (["3"], 10, [("3", 3), ("100%", 10)]),
        (["10%"], 10, [("10%", 1), ("100%", 10)]),
        (["0.5%", "100%"], 1000, [("0.5%", 5), ("100%", 1000)]),
        (["20", "100%"], 5, [("20", 5)]),
        (["5", "10%"], 20, [("5", 5), ("100%", 20)]),
    ],
)
def test_sizes(targets: list[str], devices: int, expected: list[tuple[str, int]]):
    assert stage_sizes(targets, devices) == expected


@pytest.mark.parametrize("target", ["0", "0%", "101%", "-1", "abc", "", "1.5", "nan%", "1e3", "%"])
def test_a_target_that_is_no_number_is_refused(target: str):
    with pytest.raises(InvalidRequestError, match="neither a number of devices"):
        stage_sizes([target], 10)


@pytest.mark.parametrize("targets", [["50%", "10%"], ["5", "5"], ["100%", "100%"]])
def test_a_stage_that_does_not_grow_is_refused(targets: list[str]):
    with pytest.raises(InvalidRequestError, match="cumulative"):
        stage_sizes(targets, 10)

"""The strategy against simulated models: what is tried, in which order, and that it ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_packager.quantize.plan import FP32
from edgepack_packager.search.strategy import (
    MOST_PLANS,
    Aim,
    Known,
    Material,
    Rank,
    aim_for,
    next_step,
)
from edgepack_packager.targets import load_target

AIM = Aim(activations="uint8", reduce_range=False)
NODES = tuple(f"n{number}" for number in range(20))


def run(material, standing, aim=AIM):
    """Follow the strategy; ``standing`` says how each plan turns out. Names by step."""
    known, steps, ranking = [], [], None
    while step := next_step(aim, material, known, ranking):
        assert len(steps) < 200
        if isinstance(step, Rank):
            steps.append(["rank " + step.plan.name])
            ranking = NODES[: material.static_nodes]
            continue
        steps.append([plan.name for plan in step.plans])
        for plan in step.plans:
            found = standing(plan)
            known.append(found if isinstance(found, Known) else Known(plan, found, 0.1))
    return steps, known


def all_proven(_plan):
    return "proven"


def static_needs(count):
    """Static int8 that is proven with at least ``count`` nodes in float."""

    def standing(plan):
        if plan.precision == "int8-static":
            return "proven" if len(plan.excluded) >= count else "losing"
        return "proven"

    return standing


@pytest.mark.parametrize(
    ("material", "steps"),
    [
        (Material(judged=False, static_nodes=5, dynamic=True), [["fp32"]]),
        (Material(judged=True), [["fp32"]]),
        (
            Material(judged=True, static_nodes=3, dynamic=True, products=True, stored=True),
            [
                ["fp32", "int8-static", "int8-dynamic", "int8-weights", "int4-weights",
                 "int8-stored"],
            ],
        ),
        (
            Material(judged=True, dynamic=True, convolutions=True),
            [["fp32", "int8-dynamic", "int8-dynamic-unfolded"]],
        ),
        (
            Material(judged=True, static_nodes=3, grown=("Add", "Mul", "Concat", "MaxPool")),
            [["fp32", "int8-static"], ["int8-static-and-4-more"]],
        ),
    ],
)  # fmt: skip
def test_what_is_tried_when_everything_is_proven(material, steps):
    assert run(material, all_proven)[0] == steps


def test_growth_takes_half_of_the_operators_where_all_lose():
    material = Material(judged=True, static_nodes=3, grown=("Add", "Mul", "Concat", "MaxPool"))

    def standing(plan):
        return "losing" if "Concat" in plan.operators else "proven"

    steps, known = run(material, standing)
    assert steps[1:] == [["int8-static-and-4-more"], ["int8-static-and-2-more"]]
    assert known[-1].plan.operators == ("Conv", "Gemm", "MatMul", "Add", "Mul")


def test_where_static_int8_loses_scales_come_before_calibrations_before_nodes():
    steps, known = run(Material(judged=True, static_nodes=20), static_needs(5))
    assert steps == [
        ["fp32", "int8-static"],
        ["int8-static-per-channel"],
        ["int8-static-per-channel-percentile-99.99", "int8-static-per-channel-entropy"],
        ["rank int8-static"],
        ["int8-static-19-of-20", "int8-static-18-of-20"],
        ["int8-static-16-of-20", "int8-static-12-of-20"],
        ["int8-static-14-of-20"],
        ["int8-static-15-of-20"],
    ]
    assert known[-1].plan.excluded == tuple(sorted(NODES[:5]))


@pytest.mark.parametrize("count", range(1, 20))
def test_the_fewest_nodes_in_float_are_found(count):
    _, known = run(Material(judged=True, static_nodes=20), static_needs(count))
    proven = [item for item in known if item.plan.excluded and item.standing == "proven"]
    assert min(len(item.plan.excluded) for item in proven) == count


def test_nodes_are_handed_back_from_the_form_that_lost_least():
    def standing(plan):
        loss = {"int8-static": 0.3, "int8-static-per-channel-entropy": 0.02}.get(plan.name, 0.2)
        known = "proven" if plan.excluded or plan == FP32 else "losing"
        return Known(plan, known, loss)

    steps, _ = run(Material(judged=True, static_nodes=20), standing)
    assert ["rank int8-static-per-channel-entropy"] in steps


@pytest.mark.parametrize(("size", "mended"), [(1000, False), (2000, True)])
def test_static_int8_is_not_mended_where_dynamic_int8_is_as_small_and_proven(size, mended):
    def standing(plan):
        dynamic = plan.precision == "int8-dynamic"
        known = "proven" if dynamic or plan == FP32 else "losing"
        return Known(plan, known, 0.1, size if dynamic else 1000)

    steps, _ = run(Material(judged=True, static_nodes=20, dynamic=True), standing)
    assert (len(steps) > 1) is mended


@pytest.mark.parametrize(
    ("standing", "steps"),
    [
        # nothing is lost, rows are too few: nothing finer would be proven either
        ("unsure", [["fp32", "int8-static"]]),
        # slower by far or larger than float, or not made at all
        ("none", [["fp32", "int8-static"]]),
    ],
)
def test_a_finer_form_is_only_tried_where_something_is_lost(standing, steps):
    def found(plan):
        return "proven" if plan == FP32 else standing

    assert run(Material(judged=True, static_nodes=20), found)[0] == steps


def test_when_float_itself_is_outside_nothing_finer_is_tried():
    steps, _ = run(Material(judged=True, static_nodes=20), lambda _: "losing")
    assert steps == [["fp32", "int8-static"]]


def test_finer_blocks_follow_where_weights_in_few_bits_lose():
    def standing(plan):
        return "losing" if plan.precision == "int4-weights" else "proven"

    steps, known = run(Material(judged=True, products=True), standing)
    assert steps[1:] == [["int4-weights-fine"]]
    assert known[-1].plan.block < next(k.plan.block for k in known if k.plan.block)


def test_where_weights_must_keep_to_seven_bits_full_ones_are_tried_by_exact_kernels():
    aim = Aim(activations="uint8", reduce_range=True)
    material = Material(judged=True, static_nodes=1, convolutions=True)
    _, known = run(material, lambda plan: "proven" if plan == FP32 else "losing", aim)
    full = [item.plan for item in known if item.plan.weights == "uint8"]
    assert [plan.name for plan in full] == [
        "int8-dynamic-unfolded-u8", "int8-static-per-channel-u8",
    ]  # fmt: skip
    assert not any(plan.reduce_range for plan in full)
    assert all(item.plan.reduce_range for item in known[1:] if item.plan not in full)


@pytest.mark.parametrize(("standing", "more"), [("proven", []), ("losing", [["fp16"]])])
def test_halves_are_tried_where_weights_stored_in_int8_lose(standing, more):
    def found(plan):
        return standing if plan.name == "int8-stored" else "proven"

    steps, _ = run(Material(judged=True, stored=True), found)
    assert steps == [["fp32", "int8-stored"], *more]


@given(
    st.builds(
        Material,
        judged=st.just(True),
        static_nodes=st.integers(0, 20),
        dynamic=st.booleans(),
        convolutions=st.booleans(),
        products=st.booleans(),
        stored=st.booleans(),
        grown=st.sampled_from([(), ("Add",), ("Add", "Mul", "Concat")]),
    ),
    st.randoms(use_true_random=False),
)
def test_every_search_ends_and_repeats_nothing(material, random):
    _, known = run(material, lambda _: random.choice(["proven", "losing", "unsure", "none"]))
    plans = [item.plan for item in known]
    assert len(set(plans)) == len(plans) == len({plan.name for plan in plans})
    assert len(plans) <= MOST_PLANS + 5
    assert plans[0] == FP32


@pytest.mark.parametrize(
    ("target", "aim"),
    [
        ("rpi5", Aim(activations="int8", reduce_range=False)),
        ("x86-64-v3", Aim(activations="uint8", reduce_range=True)),
        ("x86-64-v4-vnni", Aim(activations="uint8", reduce_range=False)),
    ],
)
def test_the_processor_decides_the_form_of_int8(target, aim):
    assert aim_for(load_target(target)) == aim


def test_nothing_is_mended_that_is_beaten_whatever_it_loses():
    def standing(plan):
        beaten = plan.precision in {"int8-static", "int8-weights"}
        return "beaten" if beaten else "proven"

    material = Material(judged=True, static_nodes=20, dynamic=True, products=True, stored=True)
    steps, _ = run(material, standing)
    assert len(steps) == 1


@pytest.mark.parametrize("standing", ["losing", "unsure"])
def test_where_float_is_not_proven_nothing_finer_is_tried(standing):
    def same(plan):
        return standing if plan == FP32 else "losing"

    steps, _ = run(Material(judged=True, static_nodes=20, stored=True), same)
    assert steps == [["fp32", "int8-static", "int8-stored"]]

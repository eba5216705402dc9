"""The choice: tables of candidates, and what must never happen as properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_packager.errors import AccuracyGateError, BudgetError
from edgepack_packager.evidence.gates import Gate, Verdict, judge_budget, judge_loss, judge_minimum
from edgepack_packager.evidence.intervals import Estimate
from edgepack_packager.search.choose import Candidate, choose, with_alternatives

DROP = Gate("max-drop", "accuracy", "accuracy", 0.01, "points")
SIZE = Gate("max-size", "budget", "size", 100, "bytes")
PREFERENCE = ("int8-static", "fp32", "int8-dynamic")


def candidate(name, size, us, *verdicts, memory=None):
    precision = "fp32" if name == "fp32" else "int8-static"
    latency = None if us is None else us * 1e-6
    return Candidate(name, precision, size, latency, memory, verdicts)


def verdict(outcome, gate=DROP, excess=0.0):
    return Verdict(gate, outcome, f"{gate.metric} {outcome}", excess)


PASS, FAIL, UNSURE = verdict("pass"), verdict("fail", excess=1.0), verdict("inconclusive")
BLIND = verdict("not_measured")


def pick(*candidates, optimize="latency", require_int8=False, preference=PREFERENCE):
    return choose(candidates, optimize=optimize, preference=preference, require_int8=require_int8)


def test_a_proven_smaller_candidate_as_fast_is_chosen():
    found = pick(candidate("fp32", 1000, 100, PASS), candidate("int8", 300, 120, PASS))
    assert found.chosen == "int8"
    assert "too little to count" in found.reasons["int8"]


def test_words_never_say_more_than_was_measured_and_proven():
    found = pick(candidate("fp32", 1000, 100, PASS), candidate("int8", 300, 120, PASS))
    assert found.reasons["fp32"] == (
        "inside all gates; int8 is smaller, and slower by too little to count"
    )
    unproven = pick(candidate("fp32", 1000, 100, UNSURE), candidate("int8", 1300, 90, PASS))
    assert unproven.reasons["fp32"] == "chosen: no other candidate may ship"
    blind = pick(candidate("fp32", 1000, None, PASS), candidate("int8", 300, None, UNSURE))
    assert "prefers" not in blind.reasons["fp32"]


@pytest.mark.parametrize(
    ("fp32_us", "int8_us", "chosen"),
    [
        (100, 149, "int8"),  # 49 % slower, but only 49 us
        (100, 151, "fp32"),  # over both
        (10_000, 10_400, "int8"),  # 400 us slower, but only 4 %
        (10_000, 10_600, "fp32"),
    ],
)
def test_slower_means_by_five_percent_and_fifty_microseconds(fp32_us, int8_us, chosen):
    found = pick(candidate("fp32", 1000, fp32_us, PASS), candidate("int8", 300, int8_us, PASS))
    assert found.chosen == chosen


@pytest.mark.parametrize(
    ("small_us", "fast_us", "chosen"),
    [
        (85, 61, "fast"),  # 24 us are nothing against float, but something between these two
        (64, 61, "small"),  # 5 %
        (11, 9, "small"),  # 2 us
        (12, 9, "fast"),
    ],
)
def test_the_fastest_of_the_smaller_ones_is_chosen_and_the_smallest_of_equals(
    small_us, fast_us, chosen
):
    found = pick(
        candidate("fp32", 1000, 100, PASS),
        candidate("small", 170, small_us, PASS),
        candidate("fast", 300, fast_us, PASS),
    )
    assert found.ranking == (chosen, *({"small", "fast"} - {chosen}), "fp32")


def test_nothing_is_said_of_proof_where_the_target_prefers_float_to_what_is_proven():
    found = pick(
        candidate("fp32", 1000, None, PASS),
        candidate("proven", 300, None, PASS),
        candidate("unsure", 200, None, UNSURE),
        preference=("fp32", "int8-static"),
    )
    assert found.chosen == "fp32"
    assert not any("not proven" in text for text in found.warnings)


def test_size_accepts_a_slower_one_and_says_so():
    found = pick(
        candidate("fp32", 1000, 100, PASS), candidate("int8", 300, 900, PASS), optimize="size"
    )
    assert found.chosen == "int8"
    assert "slower (900 us against 100 us)" in found.reasons["int8"]


@pytest.mark.parametrize("optimize", ["latency", "size", "memory"])
def test_a_larger_one_is_never_chosen(optimize):
    found = pick(
        candidate("fp32", 1000, 100, PASS, memory=50),
        candidate("int8", 1000, 10, PASS, memory=10),
        optimize=optimize,
    )
    assert found.chosen == "fp32"
    assert "not smaller" in found.reasons["int8"]


@pytest.mark.parametrize("outcome", [UNSURE, BLIND, FAIL])
def test_fp32_ships_when_the_smaller_one_is_not_proven(outcome):
    found = pick(candidate("fp32", 1000, 100, PASS), candidate("int8", 300, 10, outcome))
    assert found.chosen == "fp32"
    assert outcome.words in found.reasons["int8"]


def test_fp32_that_is_not_proven_ships_with_a_warning():
    found = pick(candidate("fp32", 1000, 100, UNSURE), candidate("int8", 300, 10, UNSURE))
    assert found.chosen == "fp32"
    assert any("fp32: " in text for text in found.warnings)
    assert any("int8 is not proven" in text for text in found.warnings)


def test_int8_that_is_required_and_not_proven_is_an_error():
    with pytest.raises(AccuracyGateError, match="int8 is required") as caught:
        pick(
            candidate("fp32", 1000, 100, PASS),
            candidate("int8", 300, 10, UNSURE),
            require_int8=True,
        )
    assert caught.value.code == "int8-required"


def test_all_outside_accuracy_names_the_nearest_miss():
    near, far = verdict("fail", excess=0.2), verdict("fail", excess=3.0)
    with pytest.raises(AccuracyGateError, match="the nearest is fp32"):
        pick(candidate("fp32", 1000, 100, near), candidate("int8", 300, 10, far))


def test_all_outside_the_budget_is_a_budget_error():
    over, far_over = verdict("fail", SIZE, 2.0), verdict("fail", SIZE, 9.0)
    with pytest.raises(BudgetError, match="the nearest is int8"):
        pick(candidate("fp32", 1000, 100, PASS, far_over), candidate("int8", 300, 10, PASS, over))


def test_a_budget_that_only_int8_meets_chooses_it():
    found = pick(
        candidate("fp32", 1000, 100, PASS, verdict("fail", SIZE, 9.0)),
        candidate("int8", 90, 900, PASS, verdict("pass", SIZE)),
    )
    assert found.chosen == "int8"


@pytest.mark.parametrize(
    ("preference", "chosen"), [(PREFERENCE, "int8"), (("fp32", "int8-static"), "fp32")]
)
def test_without_timings_the_target_decides(preference, chosen):
    found = pick(
        candidate("fp32", 1000, None, PASS),
        candidate("int8", 300, None, PASS),
        preference=preference,
    )
    assert found.chosen == chosen


def test_all_that_may_ship_is_ranked_the_best_first():
    found = pick(
        candidate("fp32", 1000, None, PASS),
        candidate("a", 300, None, PASS),
        candidate("b", 200, None, PASS),
        candidate("c", 100, None, FAIL),
    )
    assert found.ranking == ("b", "a", "fp32")


def test_what_was_given_up_early_is_never_chosen_and_keeps_its_reason():
    dropped = Candidate("int8", "int8-static", 300, 1e-6, None, (PASS,), "slower by far")
    found = pick(candidate("fp32", 1000, 100, PASS), dropped)
    assert found.chosen == "fp32"
    assert found.reasons["int8"] == "slower by far"


def test_only_the_one_nearest_to_being_proven_is_warned_of():
    near, far = verdict("inconclusive", excess=0.1), verdict("inconclusive", excess=2.0)
    found = pick(
        candidate("fp32", 1000, 100, PASS),
        candidate("far", 300, 10, far),
        candidate("near", 300, 10, near),
    )
    assert [text for text in found.warnings if "not proven" in text] == [
        "fp32 ships because near is not proven: accuracy inconclusive"
    ]


RANKING = ("s1", "s2", "dynamic", "fp32", "stored")
PRECISIONS = {
    "s1": "int8-static", "s2": "int8-static", "dynamic": "int8-dynamic", "fp32": "fp32",
    "stored": "int8-weights",
}  # fmt: skip


@pytest.mark.parametrize(
    ("count", "carried"),
    [
        (0, ("s1",)),
        (1, ("s1", "fp32")),
        (2, ("s1", "dynamic", "fp32")),
        (3, ("s1", "dynamic", "fp32", "stored")),
        (9, RANKING),
    ],
)
def test_float_is_always_an_alternative_then_other_precisions_in_order(count, carried):
    assert with_alternatives(RANKING, PRECISIONS, count) == carried


def test_where_float_is_best_its_alternatives_are_the_others():
    assert with_alternatives(("fp32", "s1", "s2", "dynamic"), PRECISIONS, 2) == (
        "fp32", "s1", "dynamic",
    )  # fmt: skip


OUTCOMES = st.sampled_from([PASS, FAIL, UNSURE, BLIND])
CANDIDATES = st.tuples(st.integers(1, 2000), st.integers(1, 5000), OUTCOMES)


@given(CANDIDATES, st.lists(CANDIDATES, max_size=4), st.sampled_from(["latency", "size"]))
def test_nothing_unproven_larger_or_slower_is_ever_chosen(fp32, others, optimize):
    field = [candidate("fp32", *fp32)]
    field += [candidate(f"int8-{i}", *other) for i, other in enumerate(others)]
    try:
        found = pick(*field, optimize=optimize)
    except AccuracyGateError:
        assert all(item.verdicts[0] is not PASS for item in field)
        return
    best = next(item for item in field if item.name == found.chosen)
    assert best.verdicts[0] is not FAIL
    assert set(found.reasons) == {item.name for item in field}
    assert all(found.reasons.values())
    if best.name != "fp32":
        assert best.verdicts[0] is PASS
    if best.name != "fp32" and field[0].verdicts[0] is not FAIL:
        assert best.size_bytes < field[0].size_bytes
        gap = best.latency_s - field[0].latency_s
        assert optimize == "size" or gap <= max(50e-6, 0.05 * field[0].latency_s) + 1e-12


@pytest.mark.parametrize(
    ("loss", "outcome"),
    [
        (None, "not_measured"),
        (Estimate(0.0, -0.004, 0.004, 900), "pass"),
        (Estimate(0.0, -0.02, 0.02, 100), "inconclusive"),
        (Estimate(0.02, 0.01, 0.03, 900), "fail"),
        (Estimate(0.01, 0.0, 0.011, 900), "inconclusive"),
    ],
)
def test_a_loss_passes_only_when_its_whole_interval_does(loss, outcome):
    found = judge_loss(DROP, loss, rows=1234)
    assert found.outcome == outcome
    assert loss is None or f"n={loss.n}" in found.words
    assert ("1234" in found.words) == (outcome == "inconclusive")


@pytest.mark.parametrize(
    ("figure", "outcome"),
    [
        (None, "not_measured"),
        (Estimate(0.9, 0.86, 0.94, 200), "pass"),
        (Estimate(0.86, 0.80, 0.92, 50), "inconclusive"),
        (Estimate(0.84, 0.80, 0.92, 50), "fail"),
    ],
)
def test_a_minimum_passes_only_when_the_whole_interval_does(figure, outcome):
    gate = Gate("min-metric", "accuracy", "accuracy", 0.85, "value")
    assert judge_minimum(gate, figure).outcome == outcome


@pytest.mark.parametrize(
    ("value", "outcome"), [(None, "not_measured"), (100, "pass"), (101, "fail")]
)
def test_a_budget_that_was_not_measured_is_not_met(value, outcome):
    assert judge_budget(SIZE, value).outcome == outcome

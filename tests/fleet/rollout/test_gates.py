"""One gate after the other on hand-made telemetry, and laws that hold for all of them."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_simulation import NEW, OLD, T0

from edgepack_contract.states import StageState, UpdateState, Verdict
from edgepack_fleet.rollout import actions
from edgepack_fleet.rollout.eventlog import apply_change
from edgepack_fleet.rollout.evidence import Block, DeviceEvidence, Evidence
from edgepack_fleet.rollout.gates import BundleFacts, evaluate
from edgepack_fleet.rollout.machine import Subject, Target, plan
from edgepack_fleet.rollout.model import (
    Change,
    DeviceUpdate,
    GateAction,
    GateName,
    GateOverride,
    GateResult,
    Rollout,
    RolloutOptions,
    StageChange,
)
from edgepack_fleet.rollout.telemetry_gates import _difference, _mix

OPENED = T0
SOAKING = T0 + 5_000
NOW = T0 + 60_000
EVEN = (4,) * 10
FACTS = BundleFacts(budget_declared=True)


def under_way(
    devices: int = 1,
    *,
    previous: str | None = OLD,
    facts: BundleFacts = FACTS,
    state: UpdateState = UpdateState.SUCCEEDED,
    **options: Any,
) -> Rollout:
    """A rollout of one stage whose soak is over."""
    targets = [Target(device=f"d{n}", running=previous, version="1.0.0") for n in range(devices)]
    subject = Subject(
        id="r", slot="s", group="g", bundle="b", version="1.1.0", digest=NEW, facts=facts
    )
    draft = plan(subject, targets, RolloutOptions(stages=["100%"], **options), T0).rollout
    started = actions.start(draft, T0, actor="ann").rollout
    updates = {
        device: msgspec.structs.replace(update, state=state)
        for device, update in started.updates.items()
    }
    stage = StageChange(
        index=0, state=StageState.GATING, opened_ms=OPENED, soak_started_ms=SOAKING,
        wait_from_ms=SOAKING,
    )  # fmt: skip
    return apply_change(started, 3, Change(stages=[stage], updates=updates))


def arm(start_ms: int, count: int, **fields: Any) -> list[Block]:
    return [
        Block(**({"start_ms": start_ms + 1000 * number, "n": 40} | fields))
        for number in range(count)
    ]


def evidence(
    new: dict[str, Any] | None,
    old: dict[str, Any] | None = None,
    *,
    devices: int = 1,
    count: int = 50,
) -> Evidence:
    blocks = {}
    for number in range(devices):
        mine = {}
        if new is not None:
            mine[NEW] = arm(OPENED, count, **new)
        if old is not None:
            mine[OLD] = arm(OPENED - 100_000, count, **old)
        blocks[f"d{number}"] = mine
    known = {f"d{number}": DeviceEvidence(online=True) for number in range(devices)}
    return Evidence(devices=known, blocks=blocks)


def judge(rollout: Rollout, seen: Evidence, gate: GateName, *, final: bool = True) -> GateResult:
    results = evaluate(rollout, rollout.stages[0], seen, NOW, looking=True, final=final)
    return next(result for result in results if result.gate is gate)


def pairs(agree: int, of: int = 40, against: str = OLD) -> dict[str, Any]:
    return {"pairs_against": against, "pairs_n": of, "pairs_agree": agree}


# agreement


def test_good_agreement_passes_with_its_numbers():
    result = judge(under_way(), evidence(pairs(39)), GateName.AGREEMENT)
    assert result.verdict is Verdict.PASS
    assert result.numbers["pairs"] == 2000
    assert result.numbers["share"] == 0.975
    assert result.words.startswith("agreement with 1.0.0 is 97.5 % of 2000 pairs; 99 % lower bound")


def test_bad_agreement_fails_also_before_the_soak_is_over():
    result = judge(under_way(), evidence(pairs(5), count=6), GateName.AGREEMENT, final=False)
    assert result.verdict is Verdict.FAIL
    assert "is 12.5 % of 240 pairs; 99.9 % upper bound" in result.words
    assert "is below the limit 90 %" in result.words


@pytest.mark.parametrize("agree", [0, 40])
def test_too_few_pairs_decide_nothing(agree: int):
    result = judge(under_way(), evidence(pairs(agree), count=4), GateName.AGREEMENT)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "of 160 pairs so far, 200 are needed" in result.words
    assert result.looks == 0


def test_agreement_at_the_limit_neither_passes_nor_fails():
    result = judge(under_way(), evidence(pairs(36), count=20), GateName.AGREEMENT)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "does not reach the limit 90 %" in result.words


def test_pairs_with_another_bundle_do_not_count():
    other = "sha256:" + "c" * 64
    result = judge(under_way(), evidence(pairs(40, against=other)), GateName.AGREEMENT)
    assert result.verdict is Verdict.INCONCLUSIVE


# class mix and confidence


COLLAPSED = (0, 0, 0, 0, 0, 0, 0, 0, 40, 0)


@pytest.mark.parametrize(
    ("gate", "column"), [(GateName.CLASS_MIX, "classes"), (GateName.CONFIDENCE, "score")]
)
class TestMix:
    def test_the_same_mix_passes(self, gate: GateName, column: str):
        result = judge(under_way(), evidence({column: EVEN}, {column: EVEN}), gate)
        assert result.verdict is Verdict.PASS
        assert "over 2000 new and 2000 old rows" in result.words

    def test_a_collapsed_mix_fails(self, gate: GateName, column: str):
        seen = evidence({column: COLLAPSED}, {column: EVEN}, count=4)
        result = judge(under_way(), seen, gate, final=False)
        assert result.verdict is Verdict.FAIL
        assert result.numbers["psi"] > 0.25

    def test_too_few_rows_decide_nothing(self, gate: GateName, column: str):
        seen = evidence({column: COLLAPSED}, {column: EVEN}, count=3)
        assert judge(under_way(), seen, gate).verdict is Verdict.INCONCLUSIVE

    def test_without_a_past_there_is_nothing_to_compare(self, gate: GateName, column: str):
        result = judge(under_way(), evidence({column: EVEN}), gate)
        assert result.verdict is Verdict.INCONCLUSIVE
        assert "0 old" in result.words

    def test_other_bins_cannot_be_compared(self, gate: GateName, column: str):
        seen = evidence({column: (20, 20)}, {column: EVEN})
        result = judge(under_way(), seen, gate)
        assert result.verdict is Verdict.INCONCLUSIVE
        assert "do not count over the same classes" in result.words

    def test_when_the_previous_model_answers_otherwise_too_the_inputs_changed(
        self, gate: GateName, column: str
    ):
        new = {"classes": COLLAPSED, "score": COLLAPSED, "previous_classes": COLLAPSED}
        old = {"classes": EVEN, "score": EVEN}
        result = judge(under_way(), evidence(new, old), gate)
        assert result.verdict is Verdict.INCONCLUSIVE
        assert "the inputs did" in result.words

    def test_when_the_previous_model_answers_as_before_it_is_the_new_one(
        self, gate: GateName, column: str
    ):
        new = {"classes": COLLAPSED, "score": COLLAPSED, "previous_classes": EVEN}
        old = {"classes": EVEN, "score": EVEN}
        assert judge(under_way(), evidence(new, old), gate).verdict is Verdict.FAIL


# errors, latency, non-finite


def test_as_many_errors_as_before_pass():
    seen = evidence({"errors": 2}, {"errors": 2})
    result = judge(under_way(), seen, GateName.ERRORS)
    assert result.verdict is Verdict.PASS
    assert "5.0 % of 2000 now, 5.0 % of 2000 before" in result.words


def test_more_errors_than_before_fail():
    seen = evidence({"errors": 4}, {"errors": 0}, count=20)
    result = judge(under_way(), seen, GateName.ERRORS, final=False)
    assert result.verdict is Verdict.FAIL
    assert "above the limit of 0.5 points" in result.words


def test_fewer_errors_than_before_are_no_failure():
    seen = evidence({"errors": 0}, {"errors": 10})
    assert judge(under_way(), seen, GateName.ERRORS).verdict is Verdict.PASS


def test_errors_wait_for_five_hundred_requests_of_each_arm():
    seen = evidence({"errors": 40}, {"errors": 0}, count=12)
    result = judge(under_way(), seen, GateName.ERRORS)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.words == "480 new and 480 old of 500 requests each so far"


def test_latency_counts_what_is_over_the_budget():
    slow = evidence({"over_budget": 10}, {"over_budget": 1})
    assert judge(under_way(), slow, GateName.LATENCY).verdict is Verdict.FAIL
    same = evidence({"over_budget": 1}, {"over_budget": 1})
    assert judge(under_way(), same, GateName.LATENCY).verdict is Verdict.PASS
    few = evidence({"over_budget": 40}, {"over_budget": 0}, count=47)
    assert judge(under_way(), few, GateName.LATENCY).verdict is Verdict.INCONCLUSIVE


def test_one_output_that_is_not_finite_fails_at_once():
    seen = evidence({"nonfinite": 1}, count=1)
    result = judge(under_way(), seen, GateName.NON_FINITE, final=False)
    assert result.verdict is Verdict.FAIL
    assert result.words == "1 of 40 requests gave outputs that are not finite"


def test_none_passes_after_five_hundred():
    assert judge(under_way(), evidence({}, count=12), GateName.NON_FINITE).verdict is (
        Verdict.INCONCLUSIVE
    )
    assert judge(under_way(), evidence({}, count=13), GateName.NON_FINITE).verdict is Verdict.PASS


def test_input_drift_is_reported_and_decides_nothing():
    result = judge(under_way(), evidence({"drifted": True}), GateName.INPUT_DRIFT)
    assert result.verdict is Verdict.NOT_APPLICABLE
    assert result.words == "reported only: 50 of 50 windows say that the inputs changed"


# what cannot apply


def test_a_first_install_has_nothing_to_compare_with():
    rollout = under_way(previous=None)
    compared = [
        GateName.AGREEMENT, GateName.CLASS_MIX, GateName.CONFIDENCE, GateName.ERRORS,
        GateName.LATENCY,
    ]  # fmt: skip
    for gate in compared:
        result = judge(rollout, evidence({"errors": 40}), gate)
        assert result.verdict is Verdict.NOT_APPLICABLE
        assert "first install" in result.words


@pytest.mark.parametrize(
    ("facts", "gate", "words"),
    [
        (BundleFacts(budget_declared=False), GateName.LATENCY, "declares no latency budget"),
        (BundleFacts(classifies=False), GateName.CLASS_MIX, "does not classify"),
        (BundleFacts(classifies=False), GateName.AGREEMENT, "does not classify"),
        (BundleFacts(has_scores=False), GateName.CONFIDENCE, "gives no class scores"),
        (BundleFacts(), GateName.ACCURACY, "no ground truth"),
    ],
)
def test_what_cannot_apply_is_said_at_the_plan(facts: BundleFacts, gate: GateName, words: str):
    stage = under_way(facts=facts).stages[0]
    result = next(result for result in stage.gates if result.gate is gate)
    assert result.verdict is Verdict.NOT_APPLICABLE
    assert words in result.words


# install and fallback


def with_states(states: list[UpdateState], **options: Any) -> Rollout:
    rollout = under_way(len(states), **options)
    updates = {
        device: DeviceUpdate(state=state, stage=0, from_digest=OLD)
        for device, state in zip(rollout.updates, states, strict=True)
    }
    return msgspec.structs.replace(rollout, updates=updates)


OK, BAD_, GONE = UpdateState.SUCCEEDED, UpdateState.FAILED, UpdateState.UNREACHABLE
BACK = UpdateState.FELL_BACK
WAY = UpdateState.DOWNLOADING


@pytest.mark.parametrize(
    ("states", "options", "verdict", "words"),
    [
        ([OK] * 5, {}, Verdict.PASS, "0 of 5 devices could not install"),
        ([OK] * 4 + [BAD_], {}, Verdict.FAIL, "1 of 5 devices could not install (1 failed)"),
        ([OK] * 29 + [BAD_], {}, Verdict.PASS, "1 of 30"),
        ([OK] * 20 + [BAD_] * 10, {}, Verdict.FAIL, "is above the limit 2 %"),
        ([WAY] * 97 + [BAD_] * 3, {}, Verdict.INCONCLUSIVE, "97 still on the way"),
        ([OK] * 4 + [WAY], {}, Verdict.INCONCLUSIVE, "1 still on the way"),
        ([OK] * 4 + [GONE], {}, Verdict.PASS, "0 of 5"),
        ([OK] * 3 + [GONE] * 2, {}, Verdict.INCONCLUSIVE, "only 3 of 5 answered, 80 % must"),
        ([OK] * 4 + [GONE], {"unreachable": "fail"}, Verdict.FAIL, "(1 unreachable)"),
        ([GONE] * 5, {"min_reported": 0.0}, Verdict.INCONCLUSIVE, "none runs the bundle"),
        ([OK, UpdateState.REMOVED], {}, Verdict.PASS, "0 of 1"),
        ([UpdateState.REMOVED] * 2, {}, Verdict.INCONCLUSIVE, "0 of 1 devices were offered"),
        ([OK, UpdateState.TIMED_OUT], {}, Verdict.FAIL, "(1 timed_out)"),
        ([OK, UpdateState.REJECTED], {}, Verdict.FAIL, "(1 rejected)"),
    ],
)
def test_install(states: list[UpdateState], options: dict[str, Any], verdict: Verdict, words: str):
    result = judge(with_states(states, **options), Evidence(), GateName.INSTALL)
    assert (result.verdict, words in result.words) == (verdict, True), result.words


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        ([OK] * 5, Verdict.PASS),
        ([OK] * 4 + [BACK], Verdict.FAIL),
        ([OK] * 4 + [UpdateState.REGRESSED], Verdict.FAIL),
        ([OK] * 99 + [BACK], Verdict.PASS),
        ([OK] * 85 + [BACK] * 15, Verdict.FAIL),
    ],
)
def test_fallback(states: list[UpdateState], verdict: Verdict):
    assert judge(with_states(states), Evidence(), GateName.FALLBACK).verdict is verdict


@pytest.mark.parametrize(
    ("crashes", "verdict"), [(1, Verdict.PASS), (2, Verdict.FAIL), (3, Verdict.FAIL)]
)
def test_crashing_again_is_as_bad_as_a_fallback_and_once_is_not(crashes: int, verdict: Verdict):
    seen = Evidence(devices={"d0": DeviceEvidence(online=True, crashes=crashes)})
    result = judge(with_states([OK]), seen, GateName.FALLBACK)
    assert result.verdict is verdict
    failed = int(verdict is Verdict.FAIL)
    assert f"{failed} of 1 devices fell back or kept crashing" in result.words


def test_a_device_that_came_back_after_a_fallback_still_counts():
    rollout = with_states([OK])
    update = msgspec.structs.replace(rollout.updates["d0"], fallbacks=1)
    rollout = msgspec.structs.replace(rollout, updates={"d0": update})
    assert judge(rollout, Evidence(), GateName.FALLBACK).verdict is Verdict.FAIL


def test_acknowledged_failures_do_not_count_again():
    rollout = with_states([OK, BACK])
    update = msgspec.structs.replace(rollout.updates["d1"], acknowledged=True)
    rollout = msgspec.structs.replace(rollout, updates={**rollout.updates, "d1": update})
    assert judge(rollout, Evidence(), GateName.FALLBACK).verdict is Verdict.PASS


# looks


def test_the_same_evidence_is_the_same_look():
    rollout = under_way()
    seen = evidence(pairs(37), count=20)
    first = evaluate(rollout, rollout.stages[0], seen, NOW, looking=True, final=False)
    stage = msgspec.structs.replace(rollout.stages[0], gates=first)
    again = evaluate(rollout, stage, seen, NOW + 1000, looking=True, final=False)
    assert all(after is before for after, before in zip(again, first, strict=True))
    assert max(result.looks for result in first) == 1


def test_each_look_at_more_evidence_is_stricter():
    rollout = under_way()
    stage = rollout.stages[0]
    for count in range(20, 26):
        seen = evidence(pairs(37), count=count)
        gates = evaluate(rollout, stage, seen, NOW, looking=True, final=False)
        stage = msgspec.structs.replace(stage, gates=gates)
    agreement = next(result for result in stage.gates if result.gate is GateName.AGREEMENT)
    assert agreement.looks == 6


def test_the_end_of_the_soak_is_a_look_of_its_own():
    rollout = under_way()
    stage = rollout.stages[0]
    seen = evidence(pairs(37), count=25)
    for final in (False, True, True):
        gates = evaluate(rollout, stage, seen, NOW, looking=True, final=final)
        stage = msgspec.structs.replace(stage, gates=gates)
    agreement = next(result for result in stage.gates if result.gate is GateName.AGREEMENT)
    assert (agreement.looks, agreement.final_looks) == (1, 1)


def test_when_the_looks_are_spent_nothing_passes_or_fails():
    rollout = under_way(looks=1)
    seen = evidence(pairs(37), count=20)
    gates = evaluate(rollout, rollout.stages[0], seen, NOW, looking=True, final=False)
    stage = msgspec.structs.replace(rollout.stages[0], gates=gates)
    worse = evidence(pairs(2), count=30)
    gates = evaluate(rollout, stage, worse, NOW, looking=True, final=False)
    agreement = next(result for result in gates if result.gate is GateName.AGREEMENT)
    assert agreement.verdict is Verdict.INCONCLUSIVE
    assert "all 1 looks that were planned are spent" in agreement.words


def test_evidence_must_reach_into_the_soak():
    rollout = under_way()
    late = StageChange(index=0, soak_started_ms=NOW)
    rollout = apply_change(rollout, 4, Change(stages=[late]))
    result = judge(rollout, evidence(pairs(39)), GateName.AGREEMENT)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "nothing was heard since the soak began" in result.words


def test_a_gate_made_to_report_shows_its_numbers_and_decides_nothing():
    report = {GateName.AGREEMENT: GateOverride(action=GateAction.REPORT)}
    result = judge(under_way(gates=report), evidence(pairs(2)), GateName.AGREEMENT)
    assert result.verdict is Verdict.NOT_APPLICABLE
    assert "reported only: agreement with 1.0.0 is 5.0 %" in result.words


# laws


def test_what_is_no_number_neither_passes_nor_fails():
    specs = {spec.gate: spec for spec in under_way().gates}
    mix = _mix("", math.nan, math.nan, specs[GateName.CLASS_MIX], 0.01, changed=False)
    errors = _difference("", math.nan, specs[GateName.ERRORS])
    for finding in (mix, errors):
        assert (finding.fails, finding.good) == (False, False)


COUNTS = st.integers(0, 40)
BLOCKS = st.builds(
    Block,
    start_ms=st.integers(OPENED - 50_000, NOW),
    n=st.just(40),
    errors=COUNTS,
    nonfinite=st.sampled_from([0, 0, 0, 1]),
    over_budget=st.just(0),
    classes=st.lists(COUNTS, min_size=3, max_size=3),
    score=st.lists(COUNTS, min_size=3, max_size=3),
    pairs_against=st.sampled_from([OLD, NEW, None]),
    pairs_n=st.just(40),
    pairs_agree=COUNTS,
)
TELEMETRY = [
    gate for gate in GateName
    if gate not in (GateName.INSTALL, GateName.FALLBACK, GateName.INPUT_DRIFT, GateName.ACCURACY)
]  # fmt: skip


@given(st.lists(BLOCKS, max_size=30), st.lists(BLOCKS, max_size=30))
def test_whatever_the_telemetry_no_gate_passes_on_less_than_its_minimum(
    new: list[Block], old: list[Block]
):
    rollout = under_way()
    seen = Evidence(
        devices={"d0": DeviceEvidence(online=True)}, blocks={"d0": {NEW: new, OLD: old}}
    )
    counted = [block for block in new if block.start_ms >= OPENED]
    most = {
        GateName.AGREEMENT: sum(b.pairs_n for b in counted if b.pairs_against == OLD),
        GateName.CLASS_MIX: sum(sum(b.classes) for b in counted),
        GateName.CONFIDENCE: sum(sum(b.score) for b in counted),
    }
    requests = sum(block.n for block in counted)
    specs = {spec.gate: spec for spec in rollout.gates}
    for gate in TELEMETRY:
        result = judge(rollout, seen, gate)
        if most.get(gate, requests) < specs[gate].minimum:
            assert result.verdict is not Verdict.PASS
        assert all(map(math.isfinite, result.numbers.values()))


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("gate", list(GateName))
def test_without_evidence_nothing_passes_or_fails(gate: GateName, final: bool):
    rollout = under_way(3, state=UpdateState.PENDING)
    result = judge(rollout, Evidence(), gate, final=final)
    assert result.verdict in (Verdict.INCONCLUSIVE, Verdict.NOT_APPLICABLE)


@pytest.mark.parametrize("gate", TELEMETRY)
def test_before_the_soak_is_over_nothing_passes(gate: GateName):
    new = {"classes": EVEN, "score": EVEN, **pairs(40)}
    seen = evidence(new, {"classes": EVEN, "score": EVEN})
    assert judge(under_way(), seen, gate, final=False).verdict is Verdict.INCONCLUSIVE
    assert judge(under_way(), seen, gate, final=True).verdict is Verdict.PASS


@given(st.integers(0, 40), st.integers(0, 40))
def test_more_agreement_is_never_worse(one: int, two: int):
    order = [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS]
    low, high = sorted((one, two))
    worse, better = (
        judge(under_way(), evidence(pairs(agree)), GateName.AGREEMENT).verdict
        for agree in (low, high)
    )
    assert order.index(worse) <= order.index(better)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_more_errors_are_never_better(one: int, two: int, before: int):
    order = [Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL]
    low, high = sorted((one, two))
    better, worse = (
        judge(under_way(), evidence({"errors": e}, {"errors": before}), GateName.ERRORS).verdict
        for e in (low, high)
    )
    assert order.index(better) <= order.index(worse)

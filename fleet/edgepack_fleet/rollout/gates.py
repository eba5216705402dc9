"""What the gates of a stage say: pass, fail, inconclusive or not applicable, with their numbers.

A gate fails at any look at which its evidence is strong enough, and passes once, at the end of the
soak, on evidence that reaches into the soak. Without data it does neither. How one gate reads its
evidence is in :mod:`.device_gates`, :mod:`.telemetry_gates`; this module keeps what all share: the
looks, what may not be applicable, and what a failure does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from edgepack_contract.states import Verdict
from edgepack_fleet.rollout.arms import Arms, collect
from edgepack_fleet.rollout.device_gates import read_fallback, read_install
from edgepack_fleet.rollout.evidence import Evidence
from edgepack_fleet.rollout.model import (
    GateAction,
    GateName,
    GateResult,
    GateSpec,
    Rollout,
    Stage,
)
from edgepack_fleet.rollout.reading import Finding, Reading
from edgepack_fleet.rollout.spending import look_level
from edgepack_fleet.rollout.telemetry_gates import (
    read_agreement,
    read_class_mix,
    read_confidence,
    read_errors,
    read_input_drift,
    read_latency,
    read_non_finite,
)

COMPARING = frozenset(
    {
        GateName.AGREEMENT,
        GateName.CLASS_MIX,
        GateName.CONFIDENCE,
        GateName.ERRORS,
        GateName.LATENCY,
    }
)
"""Gates that compare with what ran before."""

REPORTED = "reported only: "
"""How the words of a gate begin that shows its numbers and decides nothing."""

_DEVICE_GATES: dict[GateName, Callable[[Rollout, GateSpec, Evidence], Reading]] = {
    GateName.INSTALL: read_install,
    GateName.FALLBACK: read_fallback,
}
_TELEMETRY_GATES: dict[GateName, Callable[[Arms, GateSpec, str], Reading]] = {
    GateName.AGREEMENT: read_agreement,
    GateName.CLASS_MIX: read_class_mix,
    GateName.CONFIDENCE: read_confidence,
    GateName.ERRORS: read_errors,
    GateName.NON_FINITE: read_non_finite,
    GateName.LATENCY: read_latency,
    GateName.INPUT_DRIFT: read_input_drift,
}


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """What the bundle's description says, as far as it decides which gates apply."""

    classifies: bool = True
    has_scores: bool = True
    budget_declared: bool = False


def initial_results(
    specs: Sequence[GateSpec], facts: BundleFacts, *, has_previous: bool
) -> list[GateResult]:
    """The gates of a stage before there is evidence: what cannot apply is fixed here, and said."""
    results = []
    for spec in specs:
        reason = _not_applicable(spec.gate, facts, has_previous=has_previous)
        results.append(_initial(spec, reason))
    return results


def _initial(spec: GateSpec, reason: str | None) -> GateResult:
    if reason is not None:
        return GateResult(gate=spec.gate, verdict=Verdict.NOT_APPLICABLE, words=reason)
    if spec.action is GateAction.REPORT:
        words = f"{REPORTED}no evidence yet"
        return GateResult(gate=spec.gate, verdict=Verdict.NOT_APPLICABLE, words=words)
    return GateResult(gate=spec.gate, verdict=Verdict.INCONCLUSIVE, words="no evidence yet")


def _not_applicable(gate: GateName, facts: BundleFacts, *, has_previous: bool) -> str | None:
    if gate is GateName.ACCURACY:
        return "no ground truth is posted"
    if gate in COMPARING and not has_previous:
        return "first install: no device of this stage runs a previous bundle to compare with"
    if gate in (GateName.AGREEMENT, GateName.CLASS_MIX) and not facts.classifies:
        return "the bundle does not classify"
    if gate is GateName.CONFIDENCE and not (facts.classifies and facts.has_scores):
        return "the bundle gives no class scores"
    if gate is GateName.LATENCY and not facts.budget_declared:
        return "the bundle declares no latency budget"
    return None


def evaluate(
    rollout: Rollout, stage: Stage, evidence: Evidence, now_ms: int, *, looking: bool, final: bool
) -> list[GateResult]:
    """Look at the gates of an open stage.

    Args:
        rollout: The rollout, with its updates as they are now.
        stage: The stage to judge.
        evidence: What is known.
        now_ms: Now.
        looking: Whether telemetry may be looked at; device states always are.
        final: The soak is over, so that a gate may pass.

    Returns:
        All results of the stage, in their order; the same objects where nothing changed.
    """
    arms = collect(rollout, stage, evidence) if looking else None
    specs = {spec.gate: spec for spec in rollout.gates}
    results = []
    for prior in stage.gates:
        spec = specs[prior.gate]
        reading = None if _is_closed(spec, prior) else _read(rollout, spec, evidence, arms)
        if reading is None:
            results.append(prior)
            continue
        may_pass = final and (
            prior.gate in _DEVICE_GATES or arms is None or _reaches_soak(arms, stage)
        )
        result = _judge(rollout, spec, prior, reading, may_pass=may_pass, final=final)
        results.append(prior if result == prior else msgspec.structs.replace(result, at_ms=now_ms))
    return results


def _is_closed(spec: GateSpec, prior: GateResult) -> bool:
    """Fixed at plan time, acknowledged, or decided: no gate changes its mind."""
    if spec.action is GateAction.REPORT:
        return not prior.words.startswith(REPORTED)
    return prior.acknowledged or prior.verdict is not Verdict.INCONCLUSIVE


def _read(
    rollout: Rollout, spec: GateSpec, evidence: Evidence, arms: Arms | None
) -> Reading | None:
    if spec.gate in _DEVICE_GATES:
        return _DEVICE_GATES[spec.gate](rollout, spec, evidence)
    if arms is None or spec.gate not in _TELEMETRY_GATES:
        return None
    return _TELEMETRY_GATES[spec.gate](arms, spec, _previous_name(rollout, arms))


def _reaches_soak(arms: Arms, stage: Stage) -> bool:
    newest = arms.newest_ms()
    return (
        newest is not None and stage.soak_started_ms is not None and newest >= stage.soak_started_ms
    )


def _judge(
    rollout: Rollout,
    spec: GateSpec,
    prior: GateResult,
    reading: Reading,
    *,
    may_pass: bool,
    final: bool,
) -> GateResult:
    if spec.action is GateAction.REPORT:
        words = reading.missing or reading.test(spec.alpha).words
        return _result(prior, Verdict.NOT_APPLICABLE, f"{REPORTED}{words}", reading)
    if reading.missing is not None:
        return _result(prior, Verdict.INCONCLUSIVE, reading.missing, reading)
    before = prior.final_looks if final else prior.looks
    looks = before + (not _seen(prior, reading, before))
    if looks > rollout.options.looks:
        words = f"all {before} looks that were planned are spent"
        return _result(prior, Verdict.INCONCLUSIVE, words, reading)
    share = spec.alpha / len(rollout.stages)
    finding = reading.test(look_level(share, looks, rollout.options.looks))
    verdict, words = _verdict(finding, may_pass=may_pass, final=final)
    result = _result(prior, verdict, words, reading, finding)
    if final:
        return msgspec.structs.replace(result, final_looks=looks)
    return msgspec.structs.replace(result, looks=looks)


def _seen(prior: GateResult, reading: Reading, looks: int) -> bool:
    """Whether the last of so many looks was at this very evidence."""
    return looks > 0 and all(
        prior.numbers.get(name) == value for name, value in reading.evidence.items()
    )


def _verdict(finding: Finding, *, may_pass: bool, final: bool) -> tuple[Verdict, str]:
    if finding.fails:
        return Verdict.FAIL, finding.words
    if finding.good and may_pass:
        return Verdict.PASS, finding.words
    if finding.good and final:
        return Verdict.INCONCLUSIVE, f"{finding.words}; but nothing was heard since the soak began"
    return Verdict.INCONCLUSIVE, finding.words


def _result(
    prior: GateResult,
    verdict: Verdict,
    words: str,
    reading: Reading,
    finding: Finding | None = None,
) -> GateResult:
    numbers = {**reading.evidence, **reading.figures, **(finding.numbers if finding else {})}
    return msgspec.structs.replace(prior, verdict=verdict, words=words, numbers=numbers)


def _previous_name(rollout: Rollout, arms: Arms) -> str:
    versions = {rollout.updates[device].from_version for device in arms.previous} - {None}
    return str(versions.pop()) if len(versions) == 1 else "the previous bundle"

"""Drive a rollout: ``advance(rollout, evidence, now) -> decision``, and nothing else decides.

Pure: what a tick does depends on its arguments alone, and doing it again on the same changes
nothing. A service that dies between two ticks goes on where it was.

Stages go waiting -> deploying -> soaking -> gating -> passed, one after the other. A gate that
fails, in any of them and also while the rollout is paused, sends every device back.
"""

from __future__ import annotations

import msgspec

from edgepack_contract.states import RolloutState, StageState, UpdateState, Verdict
from edgepack_fleet.rollout.eventlog import Journal
from edgepack_fleet.rollout.evidence import DeviceEvidence, Evidence
from edgepack_fleet.rollout.gates import BundleFacts, evaluate
from edgepack_fleet.rollout.model import (
    DRIVEN_STATES,
    IN_FLIGHT,
    INSTALLED,
    NOT_OURS,
    Change,
    Decision,
    DeviceUpdate,
    GateAction,
    GateResult,
    Rollout,
    Stage,
    StageChange,
)
from edgepack_fleet.rollout.observing import current_report, is_installed_already, moved, observe
from edgepack_fleet.rollout.planning import Subject, Target, plan
from edgepack_fleet.rollout.reverting import begin_rollback, step_rollback
from edgepack_fleet.rollout.spending import look_is_due

__all__ = ["BundleFacts", "Subject", "Target", "advance", "plan"]

_OPEN = frozenset({StageState.DEPLOYING, StageState.SOAKING, StageState.GATING})


def advance(rollout: Rollout, evidence: Evidence, now_ms: int) -> Decision:
    """Decide what follows from the evidence, until nothing more does.

    A rollout that is not in :data:`DRIVEN_STATES` stays as it is.
    """
    journal = Journal(rollout, now_ms)
    written = -1
    while journal.length > written and journal.rollout.state in DRIVEN_STATES:
        written = journal.length
        if journal.rollout.state in (RolloutState.RUNNING, RolloutState.PAUSED):
            _step_forward(journal, evidence)
        else:
            step_rollback(journal, evidence)
    return journal.decision()


def _step_forward(journal: Journal, evidence: Evidence) -> None:
    _observe_devices(journal, evidence)
    for stage in journal.rollout.stages:
        if stage.opened_ms is not None and stage.finished_ms is None:
            _look_at_gates(journal, stage, evidence)
    if journal.rollout.state is RolloutState.RUNNING:
        _move_stage(journal)
    if journal.rollout.state is RolloutState.RUNNING:
        _offer(journal, evidence)
        _complete(journal)


def _observe_devices(journal: Journal, evidence: Evidence) -> None:
    rollout = journal.rollout
    for device, update in rollout.updates.items():
        seen = evidence.device(device)
        after = observe(update, seen, rollout.digest, rollout.options, journal.now_ms)
        if after is not update:
            words = f"{device}: {after.state.value.replace('_', ' ')}"
            words += f" ({after.words or after.code})" if after.words or after.code else ""
            cause = f"device-{after.state.value.replace('_', '-')}"
            journal.write_update(cause, words, device, after)


def _look_at_gates(journal: Journal, stage: Stage, evidence: Evidence) -> None:
    rollout, now_ms = journal.rollout, journal.now_ms
    looking = stage.looked_ms == now_ms or look_is_due(
        now_ms, stage.opened_ms or 0, stage.looked_ms, rollout.options.looks
    )
    final = stage.state is StageState.GATING and rollout.state is RolloutState.RUNNING
    results = evaluate(rollout, stage, evidence, now_ms, looking=looking, final=final)
    changed = [
        after for before, after in zip(stage.gates, results, strict=True) if after is not before
    ]
    if changed:
        looked = StageChange(index=stage.index, gates=changed)
        if looking:
            looked = msgspec.structs.replace(looked, looked_ms=now_ms)
        decided = [result for result in changed if result.verdict in (Verdict.PASS, Verdict.FAIL)]
        words = f"stage {stage.index + 1}: {_verdicts(decided) or 'nothing decided yet'}"
        journal.write_stage("gates-looked", words, looked)
    _act_on_failures(journal, stage, results)


def _act_on_failures(journal: Journal, stage: Stage, results: list[GateResult]) -> None:
    actions = {spec.gate: spec.action for spec in journal.rollout.gates}
    failed = [
        result for result in results if result.verdict is Verdict.FAIL and not result.acknowledged
    ]
    for action in (GateAction.ROLLBACK, GateAction.PAUSE):
        deciding = [result for result in failed if actions[result.gate] is action]
        if deciding:
            reasons = "; ".join(f"{result.gate}: {result.words}" for result in deciding)
            _fail(journal, action, f"stage {stage.index + 1} failed: {reasons}")
            return


def _fail(journal: Journal, action: GateAction, reason: str) -> None:
    if action is GateAction.ROLLBACK:
        begin_rollback(journal, "gate-failed", reason)
    elif journal.rollout.state is RolloutState.RUNNING:
        _pause(journal, "gate-failed", reason)


def _pause(journal: Journal, cause: str, reason: str) -> None:
    journal.write(cause, reason, Change(state=RolloutState.PAUSED, reason=reason))


def _move_stage(journal: Journal) -> None:
    stage = next((part for part in journal.rollout.stages if part.finished_ms is None), None)
    if stage is None:
        return
    match stage.state:
        case StageState.WAITING:
            _open(journal, stage)
        case StageState.DEPLOYING:
            _await_devices(journal, stage)
        case StageState.SOAKING:
            _await_soak(journal, stage)
        case _:
            _await_gates(journal, stage)


def _open(journal: Journal, stage: Stage) -> None:
    opened = StageChange(index=stage.index, state=StageState.DEPLOYING, opened_ms=journal.now_ms)
    words = f"stage {stage.index + 1} ({stage.target}) opens with {len(stage.devices)} devices"
    journal.write_stage("stage-opened", words, opened)


def _await_devices(journal: Journal, stage: Stage) -> None:
    states = [journal.rollout.updates[device].state for device in stage.devices]
    unsettled = IN_FLIGHT | {UpdateState.PENDING}
    if all(state in NOT_OURS for state in states):
        words = f"stage {stage.index + 1} is skipped: all its devices left"
        skipped = StageChange(
            index=stage.index, state=StageState.SKIPPED, finished_ms=journal.now_ms
        )
        journal.write_stage("stage-skipped", words, skipped)
    elif not any(state in unsettled for state in states):
        installed = sum(1 for state in states if state in INSTALLED)
        words = f"stage {stage.index + 1} soaks: {installed} of {len(states)} devices run "
        words += f"{journal.rollout.version}"
        soaking = StageChange(
            index=stage.index, state=StageState.SOAKING, soak_started_ms=journal.now_ms
        )
        journal.write_stage("stage-soaking", words, soaking)


def _await_soak(journal: Journal, stage: Stage) -> None:
    ends_ms = (stage.soak_started_ms or 0) + int(journal.rollout.options.soak_seconds * 1000)
    if journal.now_ms >= ends_ms:
        gating = StageChange(index=stage.index, state=StageState.GATING, wait_from_ms=ends_ms)
        journal.write_stage("stage-gating", f"stage {stage.index + 1} is judged", gating)


def _await_gates(journal: Journal, stage: Stage) -> None:
    undecided = undecided_gates(journal.rollout, stage)
    if not undecided:
        passed = StageChange(index=stage.index, state=StageState.PASSED, finished_ms=journal.now_ms)
        words = f"stage {stage.index + 1} passed: {_verdicts(stage.gates)}"
        journal.write_stage("stage-passed", words, passed)
        return
    max_wait_ms = int(journal.rollout.options.max_wait_seconds * 1000)
    if journal.now_ms < (stage.wait_from_ms or 0) + max_wait_ms:
        return
    if stage.state is not StageState.INCONCLUSIVE:
        _give_up(journal, stage, undecided)


def _give_up(journal: Journal, stage: Stage, undecided: list[GateResult]) -> None:
    reasons = "; ".join(f"{result.gate}: {result.words}" for result in undecided)
    reason = f"stage {stage.index + 1} is inconclusive: {reasons}"
    inconclusive = StageChange(index=stage.index, state=StageState.INCONCLUSIVE)
    journal.write_stage("stage-inconclusive", reason, inconclusive)
    if journal.rollout.options.on_inconclusive == "rollback":
        begin_rollback(journal, "inconclusive", reason)
    else:
        _pause(journal, "inconclusive", reason)


def undecided_gates(rollout: Rollout, stage: Stage) -> list[GateResult]:
    """The gates that keep a stage from passing."""
    reported = {spec.gate for spec in rollout.gates if spec.action is GateAction.REPORT}
    decided = (Verdict.PASS, Verdict.NOT_APPLICABLE)
    return [
        result
        for result in stage.gates
        if result.verdict not in decided and not result.acknowledged and result.gate not in reported
    ]


def _offer(journal: Journal, evidence: Evidence) -> None:
    """Offer the bundle to pending devices, those online first.

    Devices that are offline and have not begun hold no place: they would starve the others.
    """
    rollout = journal.rollout
    busy = sum(
        1
        for device, update in rollout.updates.items()
        if update.state in IN_FLIGHT
        and (update.state is not UpdateState.OFFERED or evidence.device(device).online)
    )
    pending = [
        device
        for stage in rollout.stages
        if stage.opened_ms is not None
        for device in stage.devices
        if rollout.updates[device].state is UpdateState.PENDING
    ]
    for device in sorted(pending, key=lambda name: not evidence.device(name).online):
        online = evidence.device(device).online
        if online and busy >= rollout.options.max_in_flight:
            continue
        busy += online
        _offer_one(journal, device, evidence.device(device))


def _offer_one(journal: Journal, device: str, seen: DeviceEvidence) -> None:
    rollout = journal.rollout
    update = rollout.updates[device]
    if is_installed_already(seen, rollout.digest):
        state, words = UpdateState.ALREADY_INSTALLED, f"{device} runs {rollout.version} already"
    else:
        state, words = UpdateState.OFFERED, f"{device} is offered {rollout.version}"
    after = moved(_with_previous(update, seen, rollout.digest), state, journal.now_ms)
    journal.write_update(f"device-{state.value.replace('_', '-')}", words, device, after)
    journal.command(device, rollout.digest, f"stage {update.stage + 1} of {rollout.id}")


def _with_previous(update: DeviceUpdate, seen: DeviceEvidence, digest: str) -> DeviceUpdate:
    """What the device would go back to: what it runs now, which may not be what was planned."""
    report = current_report(seen)
    if report is None or report.running in (None, update.from_digest):
        return update
    if report.running != digest:
        return msgspec.structs.replace(
            update, from_digest=report.running, from_version=report.version
        )
    if is_installed_already(seen, digest):
        return msgspec.structs.replace(update, from_digest=digest, from_version=report.version)
    # it is trying the very bundle right now, on somebody else's word
    return msgspec.structs.replace(update, from_digest=report.previous, from_version=None)


def _complete(journal: Journal) -> None:
    rollout = journal.rollout
    states = [update.state for update in rollout.updates.values()]
    unsettled = IN_FLIGHT | {UpdateState.PENDING}
    if any(stage.finished_ms is None for stage in rollout.stages):
        return
    if any(state in unsettled for state in states):
        return
    running = sum(1 for state in states if state in INSTALLED)
    failures = sum(1 for state in states if state not in INSTALLED | NOT_OURS)
    state = RolloutState.COMPLETED_WITH_FAILURES if failures else RolloutState.COMPLETED
    words = f"{running} of {len(states)} devices run {rollout.bundle} {rollout.version}"
    words += f"; {failures} do not" if failures else ""
    done = Change(state=state, reason=words, finished_ms=journal.now_ms)
    journal.write(state.value.replace("_", "-"), words, done)


def _verdicts(results: list[GateResult]) -> str:
    return ", ".join(f"{result.gate} {result.verdict.value}" for result in results)

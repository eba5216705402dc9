"""Why a rollout, or a device in it, is where it is: one paragraph, with the deciding numbers."""

from __future__ import annotations

from collections import Counter

from edgepack_contract.states import RolloutState, StageState, UpdateState, Verdict
from edgepack_fleet.errors import NotFoundError
from edgepack_fleet.rollout.machine import undecided_gates
from edgepack_fleet.rollout.model import (
    FINAL_STATES,
    IN_FLIGHT,
    DeviceUpdate,
    Revert,
    Rollout,
    Stage,
)
from edgepack_fleet.rollout.options import deadline_seconds

_REVERTS = {
    Revert.ASKED: "It was told to go back and has not reported that it did.",
    Revert.DONE: "It is back on what it ran before.",
    Revert.LATE: "It was told to go back and did not report in time; it is still being told.",
    Revert.IMPOSSIBLE: "It ran nothing before, so it keeps what it runs.",
}


def why_rollout(rollout: Rollout) -> str:
    """Why the rollout is in its state."""
    sentences = [
        (
            f"Rollout {rollout.id} ({rollout.bundle} {rollout.version} to {rollout.group}) is "
            f"{_plain(rollout.state)}."
        )
    ]
    if rollout.reason:
        sentences.append(f"{_capital(rollout.reason)}.")
    stage = _current_stage(rollout)
    if stage is not None and rollout.state not in FINAL_STATES:
        sentences.append(_stage_words(stage))
        waiting = undecided_gates(rollout, stage)
        if stage.state in (StageState.GATING, StageState.INCONCLUSIVE) and waiting:
            missing = "; ".join(f"{result.gate}: {result.words}" for result in waiting)
            sentences.append(f"It waits for {missing}.")
    sentences.append(_device_counts(rollout))
    return " ".join(sentences)


def why_device(rollout: Rollout, device: str) -> str:
    """Why a device's part is where it is.

    Raises:
        NotFoundError: The device is not part of the rollout.
    """
    update = rollout.updates.get(device)
    if update is None:
        raise NotFoundError(
            f"device {device!r} is not part of rollout {rollout.id}", code="no-such-update"
        )
    sentences = [
        (
            f"{device} is in stage {update.stage + 1} of {len(rollout.stages)} of rollout "
            f"{rollout.id} ({rollout.bundle} {rollout.version}) and is {_plain(update.state)}."
        )
    ]
    if update.words or update.code:
        sentences.append(f"{_capital(update.words or update.code)}.")
    if update.state is UpdateState.PENDING:
        sentences.append(_why_pending(rollout, update))
    elif update.state in IN_FLIGHT:
        seconds = deadline_seconds(rollout.options, update.state)
        sentences.append(f"It is given up after {seconds:g} s without progress.")
    if update.fallbacks:
        sentences.append(f"It left the new bundle on its own {update.fallbacks} times.")
    if update.revert is not None:
        sentences.append(_REVERTS[update.revert])
    return " ".join(sentences)


def next_action(rollout: Rollout, now_ms: int) -> str:
    """What happens next, and when at the latest."""
    match rollout.state:
        case RolloutState.DRAFT | RolloutState.SCHEDULED:
            return "starts when somebody starts it"
        case RolloutState.PAUSED:
            return "waits for resume, promote, abort or rollback; a failing gate still rolls back"
        case RolloutState.ROLLING_BACK:
            ends = (rollout.rollback_started_ms or 0) / 1000
            ends += rollout.options.rollback_deadline_seconds
            return f"ends when all devices are back, in {_left(ends, now_ms)} at the latest"
        case RolloutState.RUNNING:
            return _next_of_stage(rollout, now_ms)
        case _:
            return "nothing; it has ended"


def _next_of_stage(rollout: Rollout, now_ms: int) -> str:
    stage = _current_stage(rollout)
    options = rollout.options
    if stage is None:
        return "ends when the last devices have settled"
    name = f"stage {stage.index + 1}"
    if stage.state is StageState.DEPLOYING:
        return f"{name} soaks for {options.soak_seconds:g} s once its devices have settled"
    if stage.state is StageState.SOAKING:
        ends = (stage.soak_started_ms or 0) / 1000 + options.soak_seconds
        return f"{name} is judged in {_left(ends, now_ms)}"
    if stage.state is StageState.GATING:
        ends = (stage.wait_from_ms or 0) / 1000 + options.max_wait_seconds
        then = "pauses" if options.on_inconclusive == "pause" else "rolls back"
        waiting = ", ".join(result.gate for result in undecided_gates(rollout, stage))
        return f"{name} waits for {waiting}; {then} in {_left(ends, now_ms)}"
    return f"{name} opens"


def _current_stage(rollout: Rollout) -> Stage | None:
    return next((stage for stage in rollout.stages if stage.finished_ms is None), None)


def _stage_words(stage: Stage) -> str:
    failed = [result.gate for result in stage.gates if result.verdict is Verdict.FAIL]
    words = f"Stage {stage.index + 1} ({stage.target}) is {_plain(stage.state)}"
    return f"{words}; failed: {', '.join(failed)}." if failed else f"{words}."


def _device_counts(rollout: Rollout) -> str:
    counted = Counter(_plain(update.state) for update in rollout.updates.values())
    parts = ", ".join(f"{count} {state}" for state, count in counted.most_common())
    return f"Devices: {parts}."


def _why_pending(rollout: Rollout, update: DeviceUpdate) -> str:
    stage = rollout.stages[update.stage]
    if rollout.state is not RolloutState.RUNNING:
        return f"Nothing is offered while the rollout is {_plain(rollout.state)}."
    if stage.opened_ms is None:
        return "Its stage has not opened: the stages before it must pass first."
    limit = rollout.options.max_in_flight
    return f"It waits for a place: at most {limit} devices install at the same time."


def _left(ends_seconds: float, now_ms: int) -> str:
    return f"{max(0.0, ends_seconds - now_ms / 1000):.0f} s"


def _plain(state: RolloutState | StageState | UpdateState) -> str:
    return state.value.replace("_", " ")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

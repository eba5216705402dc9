"""What an operator can do to a rollout. Pure, like everything that decides here."""

from __future__ import annotations

from typing import NoReturn

import msgspec

from edgepack_contract.states import RolloutState, StageState, UpdateState, Verdict
from edgepack_fleet.errors import ConflictError
from edgepack_fleet.rollout.eventlog import Journal
from edgepack_fleet.rollout.model import (
    FELL_BACK,
    INSTALL_FAILED,
    Change,
    Decision,
    DeviceUpdate,
    GateName,
    Rollout,
    Stage,
    StageChange,
)
from edgepack_fleet.rollout.observing import moved
from edgepack_fleet.rollout.reverting import begin_rollback

_BEFORE = frozenset({RolloutState.DRAFT, RolloutState.SCHEDULED})
_UNDER_WAY = frozenset({RolloutState.RUNNING, RolloutState.PAUSED})
_STARTED = _UNDER_WAY | {
    RolloutState.COMPLETED, RolloutState.COMPLETED_WITH_FAILURES, RolloutState.ABORTED,
}  # fmt: skip
_REVOCABLE = frozenset(
    {
        UpdateState.OFFERED,
        UpdateState.DOWNLOADING,
        UpdateState.VERIFIED,
        UpdateState.PROBING,
    }
)
"""The previous bundle still answers requests."""


def start(rollout: Rollout, now_ms: int, *, actor: str) -> Decision:
    """Start a draft; the next ``advance`` opens the first stage.

    Raises:
        ConflictError: It was started before.
    """
    if rollout.state not in _BEFORE:
        _refuse(rollout, "be started")
    journal = Journal(rollout, now_ms, actor)
    change = Change(state=RolloutState.RUNNING, started_ms=now_ms)
    journal.write("started", f"{actor} started the rollout", change)
    return journal.decision()


def pause(rollout: Rollout, now_ms: int, *, actor: str, reason: str = "") -> Decision:
    """Offer nothing more. Devices under way go on, and gates can still fail.

    Raises:
        ConflictError: It is not running.
    """
    if rollout.state is not RolloutState.RUNNING:
        _refuse(rollout, "be paused")
    words = f"paused by {actor}" + (f": {reason}" if reason else "")
    journal = Journal(rollout, now_ms, actor)
    journal.write("paused", words, Change(state=RolloutState.PAUSED, reason=words))
    return journal.decision()


def resume(rollout: Rollout, now_ms: int, *, actor: str) -> Decision:
    """Go on. Failures counted so far are acknowledged: only new ones can stop the rollout again.

    A stage that was inconclusive is given ``max_wait_seconds`` once more.

    Raises:
        ConflictError: It is not paused.
    """
    if rollout.state is not RolloutState.PAUSED:
        _refuse(rollout, "be resumed")
    journal = Journal(rollout, now_ms, actor)
    change = Change(
        state=RolloutState.RUNNING,
        reason="",
        stages=[_resumed(stage, now_ms) for stage in _open_stages(rollout)],
        updates=_acknowledged(rollout),
    )
    words = f"resumed by {actor}; failures so far are acknowledged"
    journal.write("resumed", words, change)
    return journal.decision()


def promote(rollout: Rollout, now_ms: int, *, actor: str, reason: str = "") -> Decision:
    """Skip the gates of the open stage and go on with the next. What was open stays on record.

    Raises:
        ConflictError: It is not under way, or no stage is open.
    """
    stages = _open_stages(rollout)
    if rollout.state not in _UNDER_WAY or not stages:
        _refuse(rollout, "be promoted")
    skipped = [
        StageChange(index=stage.index, state=StageState.SKIPPED, finished_ms=now_ms)
        for stage in stages
    ]
    journal = Journal(rollout, now_ms, actor)
    words = f"stage {stages[0].index + 1} is skipped by {actor}" + (f": {reason}" if reason else "")
    change = Change(
        state=RolloutState.RUNNING, reason="", stages=skipped, updates=_acknowledged(rollout)
    )
    journal.write("promoted", words, change)
    return journal.decision()


def abort(rollout: Rollout, now_ms: int, *, actor: str, revert: bool, reason: str = "") -> Decision:
    """End the rollout: send every device back (``revert``), or leave them as they are.

    Without ``revert``, offers that no device has acted on are revoked; devices that already answer
    with the new bundle, or are about to, keep it.

    Raises:
        ConflictError: It has ended already.
    """
    if rollout.state not in _BEFORE | _UNDER_WAY:
        _refuse(rollout, "be aborted")
    words = f"aborted by {actor}" + (f": {reason}" if reason else "")
    journal = Journal(rollout, now_ms, actor)
    if revert and rollout.state in _UNDER_WAY:
        begin_rollback(journal, "aborted", words)
        return journal.decision()
    updates = {
        device: after
        for device, update in rollout.updates.items()
        if (after := _called_off(update, now_ms, words)) is not update
    }
    ended = [StageChange(index=part.index, finished_ms=now_ms) for part in _open_stages(rollout)]
    journal.write(
        "aborted", words,
        Change(
            state=RolloutState.ABORTED, reason=words, finished_ms=now_ms, stages=ended,
            updates=updates,
        ),
    )  # fmt: skip
    _revoke(journal, rollout, set(updates))
    return journal.decision()


def rollback(rollout: Rollout, now_ms: int, *, actor: str, reason: str = "") -> Decision:
    """Send every device back to what it ran before, also after the rollout completed.

    After completion the caller must see to it that no later rollout has taken the devices.

    Raises:
        ConflictError: It never started, or is on its way back already.
    """
    if rollout.state not in _STARTED:
        _refuse(rollout, "be rolled back")
    words = f"rolled back by {actor}" + (f": {reason}" if reason else "")
    journal = Journal(rollout, now_ms, actor)
    begin_rollback(journal, "rollback-asked", words)
    return journal.decision()


def _refuse(rollout: Rollout, verb: str) -> NoReturn:
    raise ConflictError(
        f"rollout {rollout.id} is {rollout.state.value.replace('_', ' ')} and cannot {verb}",
        code="wrong-rollout-state",
    )


def _open_stages(rollout: Rollout) -> list[Stage]:
    return [
        stage
        for stage in rollout.stages
        if stage.opened_ms is not None and stage.finished_ms is None
    ]


def _resumed(stage: Stage, now_ms: int) -> StageChange:
    gates = [
        msgspec.structs.replace(result, acknowledged=True)
        for result in stage.gates
        if result.verdict is Verdict.FAIL
    ]
    change = StageChange(index=stage.index, gates=gates)
    if stage.state is StageState.INCONCLUSIVE:
        return msgspec.structs.replace(change, state=StageState.GATING, wait_from_ms=now_ms)
    return change


def _acknowledged(rollout: Rollout) -> dict[str, DeviceUpdate]:
    """Devices whose failure the operator has seen; with a failed fallback gate, all of them."""
    fallback = any(
        result.gate is GateName.FALLBACK and result.verdict is Verdict.FAIL
        for stage in _open_stages(rollout)
        for result in stage.gates
    )
    failing = INSTALL_FAILED | FELL_BACK | {UpdateState.UNREACHABLE}
    return {
        device: msgspec.structs.replace(update, acknowledged=True)
        for device, update in rollout.updates.items()
        if update.state is not UpdateState.PENDING
        and (fallback or update.state in failing or update.fallbacks)
    }


def _called_off(update: DeviceUpdate, now_ms: int, words: str) -> DeviceUpdate:
    revocable = update.state in _REVOCABLE and update.from_digest is not None
    if revocable or update.state is UpdateState.PENDING:
        return moved(update, UpdateState.CANCELLED, now_ms, code="aborted", words=words)
    return update


def _revoke(journal: Journal, before: Rollout, devices: set[str]) -> None:
    for device in sorted(devices):
        update = before.updates[device]
        if update.state is not UpdateState.PENDING and update.from_digest is not None:
            journal.command(device, update.from_digest, f"offer of {before.id} revoked")

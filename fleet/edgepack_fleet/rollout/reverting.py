"""The way back: every device that has, or may have, the new bundle returns to what it ran before.

A rollback outranks everything that goes forward. It is over when devices report that they run the
previous bundle. A device that ran nothing before keeps what it has, since a model that may be wrong
is not replaced by none, and the rollout says so: such a rollback is incomplete.
"""

from __future__ import annotations

import msgspec

from edgepack_contract.states import RolloutState, StageState, UpdateState
from edgepack_fleet.rollout.eventlog import Journal
from edgepack_fleet.rollout.evidence import DeviceEvidence, Evidence
from edgepack_fleet.rollout.model import (
    IN_FLIGHT,
    NOT_OURS,
    Change,
    DeviceUpdate,
    Revert,
    Rollout,
    StageChange,
)
from edgepack_fleet.rollout.observing import SETTLED_PHASES, current_report, moved

_UNTOUCHED = NOT_OURS | {UpdateState.PENDING, UpdateState.ALREADY_INSTALLED}
"""The rollout changed nothing on these devices."""

_NAMED = 5
"""How many devices a sentence names."""


def begin_rollback(journal: Journal, cause: str, reason: str) -> None:
    """Stop offering, and tell every device that may have the new bundle to go back."""
    rollout = journal.rollout
    updates = {
        device: asked
        for device, update in rollout.updates.items()
        if (asked := _asked(update, rollout.digest, journal.now_ms)) is not update
    }
    back = [device for device, update in updates.items() if update.revert is Revert.ASKED]
    change = Change(
        state=RolloutState.ROLLING_BACK,
        reason=reason,
        rollback_started_ms=journal.now_ms,
        stages=_ended_stages(rollout, journal.now_ms, cause),
        updates=updates,
    )
    journal.write(cause, f"{reason}; {len(back)} devices are told to go back", change)
    for device in back:
        previous = rollout.updates[device].from_digest
        if previous is not None:
            journal.command(device, previous, f"rollback of {rollout.id}")


def step_rollback(journal: Journal, evidence: Evidence) -> None:
    """Follow the devices on their way back, and end when there is nothing left to wait for."""
    rollout = journal.rollout
    started = rollout.rollback_started_ms or 0
    waited_ms = journal.now_ms - started
    late = waited_ms >= rollout.options.rollback_deadline_seconds * 1000
    for device, update in rollout.updates.items():
        if update.revert in (Revert.ASKED, Revert.LATE) and journal.now_ms > started:
            _follow(journal, device, update, evidence.device(device), late=late)
    _finish(journal)


def _asked(update: DeviceUpdate, digest: str, now_ms: int) -> DeviceUpdate:
    if update.state is UpdateState.PENDING:
        return moved(update, UpdateState.CANCELLED, now_ms, words="not offered before the rollback")
    if update.state in _UNTOUCHED or update.from_digest == digest:
        return update
    revert = Revert.IMPOSSIBLE if update.from_digest is None else Revert.ASKED
    return msgspec.structs.replace(update, revert=revert)


def _ended_stages(rollout: Rollout, now_ms: int, cause: str) -> list[StageChange]:
    """The open stage failed when a gate said so; otherwise it ends as it stands."""
    return [
        StageChange(index=stage.index, finished_ms=now_ms, state=StageState.FAILED)
        if cause == "gate-failed"
        else StageChange(index=stage.index, finished_ms=now_ms)
        for stage in rollout.stages
        if stage.opened_ms is not None and stage.finished_ms is None
    ]


def _follow(
    journal: Journal, device: str, update: DeviceUpdate, seen: DeviceEvidence, *, late: bool
) -> None:
    if seen.removed:
        gone = moved(update, UpdateState.REMOVED, journal.now_ms, words="the device left the group")
        journal.write_update(
            "device-removed", f"{device} left the group", device,
            msgspec.structs.replace(gone, revert=None),
        )  # fmt: skip
    elif _is_back(update, seen):
        words = f"{device} runs {update.from_version or update.from_digest} again"
        journal.write_update("device-reverted", words, device, _reverted(update, journal.now_ms))
    elif late and update.revert is Revert.ASKED:
        words = f"{device} does not report to be back on {update.from_version or 'what it ran'}"
        lost = msgspec.structs.replace(update, revert=Revert.LATE)
        journal.write_update("device-not-reverted", words, device, lost)


def _is_back(update: DeviceUpdate, seen: DeviceEvidence) -> bool:
    report = current_report(seen)
    return (
        report is not None
        and report.wanted == report.running == update.from_digest
        and report.phase in SETTLED_PHASES
    )


def _reverted(update: DeviceUpdate, now_ms: int) -> DeviceUpdate:
    """What failed stays failed, for the record; what went well was called off."""
    done = msgspec.structs.replace(update, revert=Revert.DONE)
    if update.state in IN_FLIGHT | {UpdateState.SUCCEEDED, UpdateState.UNREACHABLE}:
        words = f"rolled back to {update.from_version or update.from_digest}"
        return moved(done, UpdateState.CANCELLED, now_ms, code="rolled-back", words=words)
    return done


def _finish(journal: Journal) -> None:
    rollout = journal.rollout
    reverts = {device: update.revert for device, update in rollout.updates.items()}
    if Revert.ASKED in reverts.values():
        return
    stuck = sorted(name for name, revert in reverts.items() if revert is Revert.LATE)
    kept = sorted(name for name, revert in reverts.items() if revert is Revert.IMPOSSIBLE)
    state = RolloutState.ROLLBACK_INCOMPLETE if stuck or kept else RolloutState.ROLLED_BACK
    if state is rollout.state:
        return
    back = sum(1 for revert in reverts.values() if revert is Revert.DONE)
    words = f"{back} devices run what they ran before"
    if stuck:
        words += f"; not back: {_names(stuck)}"
    if kept:
        words += f"; without a previous bundle, keeping what they run: {_names(kept)}"
    journal.write(
        state.value.replace("_", "-"), words, Change(state=state, finished_ms=journal.now_ms)
    )


def _names(devices: list[str]) -> str:
    more = len(devices) - _NAMED
    return ", ".join(devices[:_NAMED]) + (f" and {more} more" if more > 0 else "")

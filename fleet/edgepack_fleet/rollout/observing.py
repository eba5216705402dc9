"""From what a device reports to where its part of the rollout stands.

Success is what is running: an update has succeeded when the device says that the bundle it runs is
the one it was told to run, and that probation is over. What it says later can reopen that.
"""

from __future__ import annotations

import msgspec

from edgepack_contract.messages import SlotReported
from edgepack_contract.states import Phase, UpdateState
from edgepack_fleet.rollout.evidence import DeviceEvidence
from edgepack_fleet.rollout.model import (
    FELL_BACK,
    IN_FLIGHT,
    INSTALL_FAILED,
    INSTALLED,
    DeviceUpdate,
    RolloutOptions,
)
from edgepack_fleet.rollout.options import deadline_seconds

REFUSAL_GRACE_MS = 60_000
"""A refusal on record may be of an older document; one that still stands after this is of ours."""

_FINAL = frozenset({UpdateState.CANCELLED, UpdateState.SUPERSEDED, UpdateState.REMOVED})
_UNCHANGED = frozenset({Phase.IDLE, Phase.SUCCEEDED})
"""Nothing is going on in the slot."""

SETTLED_PHASES = _UNCHANGED | {Phase.FELL_BACK, Phase.FAILED, Phase.REJECTED}
"""The device has done with what it was told last."""

_BY_PHASE = {
    Phase.DOWNLOADING: UpdateState.DOWNLOADING,
    Phase.VERIFIED: UpdateState.VERIFIED,
    Phase.PROBING: UpdateState.PROBING,
    Phase.ACTIVATING: UpdateState.ACTIVATING,
    Phase.PROBATION: UpdateState.PROBATION,
    Phase.FAILED: UpdateState.FAILED,
    Phase.FELL_BACK: UpdateState.FELL_BACK,
    Phase.REJECTED: UpdateState.REJECTED,
    Phase.SAFE_MODE: UpdateState.FAILED,
}


def observe(
    update: DeviceUpdate, seen: DeviceEvidence, digest: str, options: RolloutOptions, now_ms: int
) -> DeviceUpdate:
    """Where an update stands now; the same object when nothing changed."""
    if update.state in _FINAL:
        return update
    if seen.removed:
        return moved(update, UpdateState.REMOVED, now_ms, words="the device left the group")
    # a report cannot answer an offer that is made in this very moment
    if update.state is UpdateState.PENDING or update.since_ms == now_ms:
        return update
    observed = _observed(update, seen, digest)
    if observed is not None and _may_follow(update, observed, online=seen.online):
        return _followed(update, observed, seen, now_ms)
    return _expired(update, seen, options, now_ms)


def moved(
    update: DeviceUpdate, state: UpdateState, now_ms: int, *, code: str = "", words: str = ""
) -> DeviceUpdate:
    """The update in another state."""
    return msgspec.structs.replace(
        update, state=state, since_ms=now_ms, code=code[:200], words=words[:2000]
    )


def current_report(seen: DeviceEvidence) -> SlotReported | None:
    """The device's report, if it answers the latest desired document."""
    return seen.reported if seen.generation_seen >= seen.generation_desired else None


def is_installed_already(seen: DeviceEvidence, digest: str) -> bool:
    """Whether the device runs the bundle, and nothing else is going on."""
    report = current_report(seen)
    return (
        report is not None
        and report.running == digest
        and report.wanted in (digest, None)
        and report.phase in _UNCHANGED
    )


def _observed(update: DeviceUpdate, seen: DeviceEvidence, digest: str) -> UpdateState | None:
    report = current_report(seen)
    if report is None:
        return None
    if report.wanted != digest:
        # before the first answer it may be the story of the bundle before
        late = update.state is not UpdateState.OFFERED and report.wanted is not None
        return UpdateState.SUPERSEDED if late else None
    if report.phase in _UNCHANGED and report.running == digest:
        return update.state if update.state in INSTALLED else UpdateState.SUCCEEDED
    if update.state in INSTALLED and report.running != digest:
        return UpdateState.REGRESSED
    return _BY_PHASE.get(report.phase)


def _may_follow(update: DeviceUpdate, observed: UpdateState, *, online: bool) -> bool:
    if observed is update.state:
        return False
    if update.state is UpdateState.REGRESSED and observed is UpdateState.FELL_BACK:
        return False
    if observed in IN_FLIGHT and not online:
        # an old report of something under way is no sign of life
        return update.state in IN_FLIGHT
    if update.state is UpdateState.TIMED_OUT:
        return update.code != _timeout_code(observed)
    return True


def _followed(
    update: DeviceUpdate, observed: UpdateState, seen: DeviceEvidence, now_ms: int
) -> DeviceUpdate:
    report = current_report(seen)
    code, words = ("", "") if report is None else (report.code, report.words)
    if observed is UpdateState.REGRESSED and report is not None:
        words = words or f"it runs {report.running or 'nothing'} instead"
    if report is not None and report.phase is Phase.SAFE_MODE:
        code = code or "safe-mode"
    trouble = observed in FELL_BACK | INSTALL_FAILED
    again = observed in IN_FLIGHT and update.state not in IN_FLIGHT
    return msgspec.structs.replace(
        moved(update, observed, now_ms, code=code, words=words),
        generation=seen.generation_seen,
        fallbacks=update.fallbacks + (observed in FELL_BACK),
        attempt=update.attempt + again,
        acknowledged=update.acknowledged and not trouble,
    )


def _expired(
    update: DeviceUpdate, seen: DeviceEvidence, options: RolloutOptions, now_ms: int
) -> DeviceUpdate:
    """Every wait has an end, and the end says why."""
    if update.state not in IN_FLIGHT:
        return update
    waited = now_ms - update.since_ms
    unanswered = current_report(seen) is None
    if unanswered and seen.refused and seen.online and waited >= REFUSAL_GRACE_MS:
        words = f"the device refuses what it was told: {seen.refused}"
        return moved(update, UpdateState.REJECTED, now_ms, code="refused", words=words)
    deadline = deadline_seconds(options, update.state)
    if waited < deadline * 1000:
        return update
    if not seen.online:
        words = f"offline while {update.state.value}, for longer than {deadline:g} s"
        return moved(update, UpdateState.UNREACHABLE, now_ms, code="offline", words=words)
    words = f"no progress while {update.state.value} for longer than {deadline:g} s"
    code = _timeout_code(update.state)
    return moved(update, UpdateState.TIMED_OUT, now_ms, code=code, words=words)


def _timeout_code(state: UpdateState) -> str:
    return f"timeout-{state.value}"

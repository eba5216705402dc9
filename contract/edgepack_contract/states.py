"""Names of states. Their values are a format: written out, documented, never reused.

The meaning of each rollout, stage and device-update state, and which may follow which, is in
``docs/protocol.md`` and in the two state machines that use them.
"""

from __future__ import annotations

from enum import StrEnum


class Presence(StrEnum):
    """What a device says of itself on its ``state`` topic; ``lost`` is its last will."""

    ONLINE = "online"
    OFFLINE = "offline"
    LOST = "lost"


class Phase(StrEnum):
    """Where a slot of a device is. Reported as it is; survives a restart."""

    IDLE = "idle"
    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    PROBING = "probing"
    ACTIVATING = "activating"
    PROBATION = "probation"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    FELL_BACK = "fell_back"
    REJECTED = "rejected"
    SAFE_MODE = "safe_mode"


class UpdateState(StrEnum):
    """One device's part of a rollout."""

    PENDING = "pending"
    OFFERED = "offered"
    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    PROBING = "probing"
    ACTIVATING = "activating"
    PROBATION = "probation"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    FELL_BACK = "fell_back"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"
    UNREACHABLE = "unreachable"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    ALREADY_INSTALLED = "already_installed"
    REMOVED = "removed"
    REGRESSED = "regressed"


class RolloutState(StrEnum):
    """A rollout as a whole."""

    DRAFT = "draft"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    COMPLETED_WITH_FAILURES = "completed_with_failures"
    ABORTED = "aborted"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_INCOMPLETE = "rollback_incomplete"


class StageState(StrEnum):
    """One stage of a rollout."""

    WAITING = "waiting"
    DEPLOYING = "deploying"
    SOAKING = "soaking"
    GATING = "gating"
    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"


class Verdict(StrEnum):
    """What a gate says. Missing evidence is ``inconclusive``, never ``pass``."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_APPLICABLE = "not_applicable"

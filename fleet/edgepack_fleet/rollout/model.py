"""A rollout as a value: what is stored, sent to the page, and rebuilt from the event log.

Everything here is frozen and survives JSON without loss. Times are integer milliseconds since 1970
UTC, by the fleet's clock. Devices are named by id, bundles by their index digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from edgepack_contract.states import RolloutState, StageState, UpdateState, Verdict

Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=366 * 86_400.0)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Alpha = Annotated[float, msgspec.Meta(gt=0.0, le=0.5)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31)]

FINAL_STATES = frozenset(
    {
        RolloutState.COMPLETED,
        RolloutState.COMPLETED_WITH_FAILURES,
        RolloutState.ABORTED,
        RolloutState.ROLLED_BACK,
        RolloutState.ROLLBACK_INCOMPLETE,
    }
)
"""The rollout holds its devices no longer: another rollout may have them."""

DRIVEN_STATES = frozenset(
    {
        RolloutState.RUNNING,
        RolloutState.PAUSED,
        RolloutState.ROLLING_BACK,
        RolloutState.ROLLBACK_INCOMPLETE,
    }
)
"""``advance`` has something to do. An incomplete rollback is driven on, because a device that was
away for a week can still come back and complete it."""

IN_FLIGHT = frozenset(
    {
        UpdateState.OFFERED,
        UpdateState.DOWNLOADING,
        UpdateState.VERIFIED,
        UpdateState.PROBING,
        UpdateState.ACTIVATING,
        UpdateState.PROBATION,
    }
)
INSTALLED = frozenset({UpdateState.SUCCEEDED, UpdateState.ALREADY_INSTALLED})
INSTALL_FAILED = frozenset({UpdateState.FAILED, UpdateState.REJECTED, UpdateState.TIMED_OUT})
FELL_BACK = frozenset({UpdateState.FELL_BACK, UpdateState.REGRESSED})
NOT_OURS = frozenset({UpdateState.REMOVED, UpdateState.SUPERSEDED, UpdateState.CANCELLED})
"""The device left the rollout; it counts neither for nor against it."""


class GateName(StrEnum):
    """The gates of a stage; their values are a format."""

    INSTALL = "install"
    FALLBACK = "fallback"
    AGREEMENT = "agreement"
    CLASS_MIX = "class_mix"
    CONFIDENCE = "confidence"
    ERRORS = "errors"
    NON_FINITE = "non_finite"
    LATENCY = "latency"
    INPUT_DRIFT = "input_drift"
    ACCURACY = "accuracy"


class GateAction(StrEnum):
    """What a failed gate does; ``report`` shows its numbers and decides nothing."""

    ROLLBACK = "rollback"
    PAUSE = "pause"
    REPORT = "report"


class Revert(StrEnum):
    """How far a device is on its way back."""

    ASKED = "asked"
    DONE = "done"
    LATE = "late"
    IMPOSSIBLE = "impossible"


class GateOverride(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user changes of a gate; what is absent stays at the default."""

    limit: float | None = None
    minimum: Annotated[int, msgspec.Meta(ge=1)] | None = None
    action: GateAction | None = None
    enabled: bool = True


class GateSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A gate as the rollout was planned with it.

    ``limit`` and ``minimum`` are in the unit of the gate (a share, a PSI; rows of each arm, or
    pairs). ``alpha`` is what the gate may spend on false failures over the whole rollout.
    """

    gate: GateName
    limit: float
    minimum: int
    alpha: float
    action: GateAction = GateAction.ROLLBACK


class RolloutOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to roll out. ``stages`` are cumulative, each a count (``5``) or a share (``10%``).

    ``looks`` is how often a gate may look for a failure in one stage; a thousand, spread ever more
    thinly, last for days. ``baseline_seconds`` is how far back the previous model's telemetry
    counts. ``unreachable`` says whether a device that never answered counts as a failed one.
    """

    stages: Annotated[list[str], msgspec.Meta(min_length=1, max_length=100)] = msgspec.field(
        default_factory=lambda: ["1", "50%", "100%"]
    )
    soak_seconds: Seconds = 600.0
    probation_seconds: Seconds = 120.0
    max_wait_seconds: Seconds = 3600.0
    offer_deadline_seconds: Seconds = 3600.0
    rollback_deadline_seconds: Seconds = 3600.0
    phase_timeouts: dict[UpdateState, Seconds] = {}
    min_reported: Share = 0.8
    unreachable: Literal["ignore", "fail"] = "ignore"
    on_inconclusive: Literal["pause", "rollback"] = "pause"
    max_in_flight: Positive = 100
    alpha: Alpha = 0.01
    looks: Positive = 1000
    baseline_seconds: Seconds = 3600.0
    seed: str = ""
    gates: dict[GateName, GateOverride] = {}


class GateResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a gate last said.

    ``looks`` counts the tests until the end of the soak, ``final_looks`` those from then on: from
    both follows how much of its alpha is spent.
    ``numbers`` hold the figures behind ``words``; shares are between 0 and 1.
    """

    gate: GateName
    verdict: Verdict
    words: str
    numbers: dict[str, float] = {}
    looks: int = 0
    final_looks: int = 0
    at_ms: int = 0
    acknowledged: bool = False


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage: the devices that it adds, where it stands, and its gates.

    ``target`` is the text it was planned from. ``wait_from_ms`` is from when ``max_wait_seconds``
    counts: the end of the soak, or the last resume.
    """

    index: int
    target: str
    devices: list[str]
    state: StageState = StageState.WAITING
    opened_ms: int | None = None
    soak_started_ms: int | None = None
    wait_from_ms: int | None = None
    looked_ms: int | None = None
    finished_ms: int | None = None
    gates: list[GateResult] = []


class DeviceUpdate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device's part of the rollout.

    ``since_ms`` is when it came into ``state``. ``from_digest`` is what it ran before it was
    offered the new bundle, null when it ran nothing: then there is nothing to go back to.
    ``attempt`` counts how often it set out to install, ``fallbacks`` how often it left the new
    bundle on its own, also when it came back. ``generation`` is that of the desired document that
    the deciding report answered.
    """

    state: UpdateState = UpdateState.PENDING
    stage: int
    attempt: int = 1
    from_digest: str | None = None
    from_version: str | None = None
    code: str = ""
    words: str = ""
    since_ms: int = 0
    generation: int = 0
    fallbacks: int = 0
    acknowledged: bool = False
    revert: Revert | None = None


class Rollout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One bundle on its way to one group. ``sequence`` is that of its last event."""

    id: str
    tenant: str
    slot: str
    group: str
    bundle: str
    version: str
    digest: str
    state: RolloutState = RolloutState.DRAFT
    reason: str = ""
    created_ms: int
    started_ms: int | None = None
    finished_ms: int | None = None
    rollback_started_ms: int | None = None
    sequence: int = 0
    options: RolloutOptions
    gates: list[GateSpec]
    stages: list[Stage]
    updates: dict[str, DeviceUpdate]


class StageChange(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What an event changed of a stage; what is unset stayed as it was."""

    index: int
    state: StageState | UnsetType = UNSET
    opened_ms: int | UnsetType | None = UNSET
    soak_started_ms: int | UnsetType | None = UNSET
    wait_from_ms: int | UnsetType | None = UNSET
    looked_ms: int | UnsetType | None = UNSET
    finished_ms: int | UnsetType | None = UNSET
    gates: list[GateResult] | UnsetType = UNSET


class Change(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What an event changed of the rollout: everything in the first, then only what differs.

    ``gates`` of a stage are replaced by name, ``updates`` by device.
    """

    rollout: Rollout | UnsetType = UNSET
    state: RolloutState | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    started_ms: int | UnsetType | None = UNSET
    finished_ms: int | UnsetType | None = UNSET
    rollback_started_ms: int | UnsetType | None = UNSET
    stages: list[StageChange] | UnsetType = UNSET
    updates: dict[str, DeviceUpdate] | UnsetType = UNSET


class RolloutEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One decision: who or what made it, why, on which evidence, and what it changed.

    ``actor`` is ``fleet`` or a user's name, ``cause`` a stable name such as ``gate-failed``,
    ``words`` one sentence for people. Replaying the changes in order gives the rollout.
    """

    sequence: int
    at: int
    actor: str
    cause: str
    words: str
    evidence: dict[str, Any] = {}
    change: Change = Change()


@dataclass(frozen=True, slots=True)
class SetDesired:
    """Tell a device which bundle the rollout's slot should run. Never null: see ``reverting``."""

    device: str
    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The rollout after a tick or an operator's action, and what follows from it.

    The three are committed together or not at all.
    """

    rollout: Rollout
    commands: tuple[SetDesired, ...] = ()
    events: tuple[RolloutEvent, ...] = ()

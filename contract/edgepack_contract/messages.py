"""Every message of the MQTT tree but the telemetry window, which is in :mod:`.window`.

Times are integers: milliseconds since 1970 UTC. A message from a device carries its session (one
run of the daemon, growing) and a sequence that grows within the session; both are covered by the
MAC of :mod:`.sealing`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec

from edgepack_contract.hardware import Hardware
from edgepack_contract.states import Phase, Presence

PROTOCOL_VERSION = 1


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strict by construction: unknown and missing fields are refused."""


class State(_Message, frozen=True, kw_only=True):
    """Topic ``state``, retained; with ``lost`` it is the last will."""

    session: int
    sequence: int
    at: int
    state: Presence


class SlotBirth(_Message, frozen=True, kw_only=True):
    """What a slot runs when the daemon connects."""

    bundle: str
    version: str
    digest: str
    variant: str
    reference: str


class Birth(_Message, frozen=True, kw_only=True):
    """Topic ``birth``, retained: everything that stays the same for a session."""

    protocol: int = PROTOCOL_VERSION
    session: int
    sequence: int
    at: int
    daemon: str
    hardware: Hardware
    onnxruntime: str
    slots: dict[str, SlotBirth]
    capabilities: list[str]


class CandidateMode(StrEnum):
    """How a candidate runs beside the active model."""

    SHADOW = "shadow"
    SPLIT = "split"


class CandidateReported(_Message, frozen=True, kw_only=True):
    """The second model of a slot as it is now.

    ``phase`` and ``running`` are as in :class:`SlotReported`; ``mode`` and ``share`` are how it
    runs beside the active model.
    """

    phase: Phase
    running: str | None
    version: str | None
    wanted: str | None
    mode: CandidateMode
    share: float
    code: str = ""
    words: str = ""


class SlotReported(_Message, frozen=True, kw_only=True):
    """One slot as it is now.

    ``running`` is the index digest of the bundle that answers requests, ``wanted`` the one that the
    last accepted desired document names, ``phase`` where the way from one to the other stands.
    ``code`` and ``words`` say why, when there is a why. ``floor`` is the least security version of
    this bundle name that the slot installs.
    """

    phase: Phase
    running: str | None
    version: str | None
    previous: str | None
    wanted: str | None
    progress: float = 0.0
    code: str = ""
    words: str = ""
    blocked: list[str] = []
    exercised: bool = True
    floor: int = 0
    candidate: CandidateReported | None = None


class Reported(_Message, frozen=True, kw_only=True):
    """Topic ``reported``, retained: the full reported state, never a difference.

    ``refused`` is the code and words of the last desired document that was not obeyed, or null.
    ``keyring`` is the version of the keyring that the device goes by.
    """

    session: int
    sequence: int
    at: int
    epoch: int
    generation: int
    slots: dict[str, SlotReported]
    refused: str | None = None
    keyring: int = 0


class Ref(_Message, frozen=True, kw_only=True):
    """A bundle by name and identity, and where to pull it: ``http(s)://HOST[:PORT]/REPOSITORY``."""

    name: str
    digest: str
    sources: list[str]


class Candidate(_Message, frozen=True, kw_only=True):
    """A second model in a slot: ``share`` of the inputs (shadow) or of the answers (split)."""

    ref: Ref
    mode: CandidateMode
    share: float


class Probation(_Message, frozen=True, kw_only=True):
    """How long the device itself watches a new model, in seconds.

    ``shadow_seconds``: how long the previous model stays loaded after activation and sees the same
    inputs (reverse shadow), memory permitting. ``max_seconds`` ends a probation that was paused.
    """

    seconds: float = 120.0
    max_seconds: float = 3600.0
    shadow_seconds: float = 600.0


class SlotDesired(_Message, frozen=True, kw_only=True):
    """What one slot should run."""

    active: Ref | None
    candidate: Candidate | None = None
    probation: Probation = Probation()
    alpha: float = 1e-6
    retry_blocked: list[str] = []


class Desired(_Message, frozen=True, kw_only=True):
    """Topic ``desired``, retained: the payload of a DSSE envelope signed by a fleet key."""

    tenant: str
    device: str
    enrolment: str
    epoch: int
    generation: int
    issued: int
    expires: int
    slots: dict[str, SlotDesired]


class Acked(_Message, frozen=True, kw_only=True):
    """Topic ``acked/{slot}``: the fleet has committed this slot's items up to ``through``."""

    session: int
    through: int


class Health(_Message, frozen=True, kw_only=True):
    """Topic ``health``, QoS 0. What the machine does not know is null."""

    session: int
    sequence: int
    at: int
    cpu_celsius: float | None
    throttled: bool | None
    memory_available_bytes: int | None
    memory_rss_bytes: int | None
    disk_free_bytes: int | None
    spool_items: int
    clock_offset_seconds: float | None = None


class EventKind(StrEnum):
    """What can happen on a device that the fleet should know of."""

    INSTALLED = "installed"
    FAILED = "failed"
    FALLBACK = "fallback"
    DRIFT = "drift"
    CRASH = "crash"
    VERIFY_FAILED = "verify-failed"
    RETRAIN = "retrain"


class Event(_Message, frozen=True, kw_only=True):
    """Topic ``event/{kind}``: one item of a slot's sequence, like a window."""

    session: int
    sequence: int
    at: int
    slot: str
    kind: EventKind
    digest: str | None
    code: str
    words: str
    evidence: dict[str, Any] = {}


class Command(_Message, frozen=True, kw_only=True):
    """Topic ``cmd/{verb}``, never retained."""

    id: str
    reply_to: str
    expires_at: int
    nonce: str


class CommandReply(_Message, frozen=True, kw_only=True):
    """Topic ``ack/{verb}``."""

    session: int
    sequence: int
    at: int
    id: str
    nonce: str
    ok: bool
    words: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``request/{slot}``, never retained: what a client asks of the model in a slot.

    Beside these members it holds those of one of the protocols that are served by HTTP:
    ``instances`` of the v1 protocol, or ``inputs`` (and ``outputs``, ``parameters``) of the v2
    protocol, in JSON. Others are ignored. ``reply_to`` is a ``response`` topic of the same device;
    with MQTT 5 the response topic and the correlation data of the message serve for ``reply_to``
    and ``id``.
    """

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    reply_to: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    expires_at: int | None = None
    instances: msgspec.Raw = msgspec.Raw()
    inputs: msgspec.Raw = msgspec.Raw()


class Response(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Topic ``response/{name}``: the answer of the protocol that was asked in, with the ``id``.

    When there is none: ``error`` says why, and ``status`` is what HTTP would answer.
    """

    id: str | None = None
    error: str | None = None
    status: int | None = None


class FleetState(_Message, frozen=True, kw_only=True):
    """Topic ``_fleet/state``, retained: on a new session every device republishes what it is."""

    session: int
    at: int
    state: Presence

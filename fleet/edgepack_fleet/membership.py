"""Who belongs to the fleet: the states of an id and what leads from one to another. Pure.

A wish to join (``ask``) waits for an operator; one that needs nobody's word any more (``admit``)
does not: its token says so and the id is new, or its key was announced beforehand. Who asks
``again`` has the key that the id has, or had, already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from edgepack_fleet.errors import ConflictError, NotAdmittedError, NotFoundError, RequestError


class Status(StrEnum):
    """What an id is to the fleet. Values are stored."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    REVOKED = "revoked"
    DECOMMISSIONED = "decommissioned"


class Step(StrEnum):
    """What somebody does about an id."""

    ASK = "ask"
    ASK_AGAIN = "ask-again"
    ADMIT = "admit"
    ADMIT_AGAIN = "admit-again"
    APPROVE = "approve"
    REJECT = "reject"
    REVOKE = "revoke"
    DECOMMISSION = "decommission"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A step that cannot be taken: the kind of error, its code, and why in words about an id."""

    kind: type[RequestError]
    code: str
    words: str


_NOBODY = Refusal(NotFoundError, "not-found", "there is no device {id}")
_TAKEN = Refusal(
    ConflictError,
    "id-taken",
    "there is a device {id} with another key; choose another id, or revoke that device first "
    "(edgepack device revoke {id}) if this is the same machine anew",
)
_WAITING = Refusal(
    ConflictError,
    "id-taken",
    "somebody with another key waits for approval as {id}; choose another id, or reject that one "
    "first (edgepack device reject {id})",
)
_REJECTED = Refusal(
    NotAdmittedError,
    "rejected",
    "an operator rejected {id} with this key; enrol with a new key, or ask the operator to approve "
    "it after all (edgepack device approve {id})",
)
_REVOKED = Refusal(
    NotAdmittedError,
    "revoked",
    "{id} was revoked, and with it this key for ever; enrol with a new key and a new join string",
)
_GONE = Refusal(
    NotAdmittedError,
    "decommissioned",
    "{id} was decommissioned, and with it this key for ever; enrol with a new key and a new join "
    "string",
)
_NOBODY_ASKS = Refusal(
    ConflictError,
    "nobody-asks",
    "nobody waits to join as {id}: it is {status}; enrol the device with a new key and a new join "
    "string first",
)
_MEMBER = Refusal(
    ConflictError,
    "is-member",
    "{id} is a member already; edgepack device revoke {id} ends that",
)
_NO_MEMBER = Refusal(
    ConflictError,
    "no-member",
    "{id} is no member, it is {status}; edgepack device reject {id} refuses its wish to join",
)

_S = Status
_TABLE: Mapping[Status, tuple[Status | Refusal, ...]] = MappingProxyType(
    {
        # ask, ask again, admit, admit again, approve, reject, revoke, decommission
        _S.UNKNOWN: (
            _S.PENDING, _S.PENDING, _S.ACCEPTED, _S.ACCEPTED, _NOBODY, _NOBODY, _NOBODY, _NOBODY,
        ),
        _S.PENDING: (
            _WAITING, _S.PENDING, _S.ACCEPTED, _S.ACCEPTED,
            _S.ACCEPTED, _S.REJECTED, _NO_MEMBER, _NO_MEMBER,
        ),
        _S.ACCEPTED: (
            _TAKEN, _S.ACCEPTED, _TAKEN, _S.ACCEPTED,
            _S.ACCEPTED, _MEMBER, _S.REVOKED, _S.DECOMMISSIONED,
        ),
        _S.REJECTED: (
            _S.PENDING, _REJECTED, _S.ACCEPTED, _REJECTED,
            _S.ACCEPTED, _S.REJECTED, _NO_MEMBER, _NO_MEMBER,
        ),
        _S.REVOKED: (
            _S.PENDING, _REVOKED, _S.ACCEPTED, _REVOKED,
            _NOBODY_ASKS, _NOBODY_ASKS, _S.REVOKED, _S.DECOMMISSIONED,
        ),
        _S.DECOMMISSIONED: (
            _S.PENDING, _GONE, _S.ACCEPTED, _GONE,
            _NOBODY_ASKS, _NOBODY_ASKS, _S.DECOMMISSIONED, _S.DECOMMISSIONED,
        ),
    }
)  # fmt: skip
TRANSITIONS: Mapping[tuple[Status, Step], Status | Refusal] = MappingProxyType(
    {
        (status, step): outcome
        for status, row in _TABLE.items()
        for step, outcome in zip(Step, row, strict=True)
    }
)


def next_status(status: Status, step: Step, device: str) -> Status:
    """What an id is after a step.

    Raises:
        NotFoundError, ConflictError, NotAdmittedError: The step cannot be taken; the words say
            what can be done instead.
    """
    outcome = TRANSITIONS[status, step]
    if isinstance(outcome, Status):
        return outcome
    raise outcome.kind(outcome.words.format(id=device, status=status), code=outcome.code)


def standing(device: str | None, wish: str | None) -> Status:
    """What an id is, by what is stored of the device and of the last wish to join, if anything.

    A wish that is not settled stands before what the device once was.
    """
    if device is not None and (device == Status.ACCEPTED or wish in (None, Status.ACCEPTED)):
        return Status(device)
    return Status.UNKNOWN if wish is None else Status(wish)


def asking(*, admitted: bool, again: bool) -> Step:
    """The step that a wish to join is."""
    if again:
        return Step.ADMIT_AGAIN if admitted else Step.ASK_AGAIN
    return Step.ADMIT if admitted else Step.ASK

"""Rollouts in the database: plan, start, steer, look up, and commit what was decided.

What a decision consists of (the rollout, its events, and what devices are told) is written in one
transaction or not at all. Decisions themselves are made by the pure functions of ``rollout``.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from enum import StrEnum

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_contract.canonical import canonical_json
from edgepack_contract.messages import Probation
from edgepack_contract.states import RolloutState
from edgepack_fleet.auditlog import GENESIS, chain_hash
from edgepack_fleet.bundles import find_bundle
from edgepack_fleet.compatibility import (
    bundle_facts,
    incompatible_devices,
    target_of,
    ways_back,
)
from edgepack_fleet.db.schema import Bundle, RolloutEventRow, RolloutRow
from edgepack_fleet.desired import DesiredWriter, SlotWish
from edgepack_fleet.errors import (
    ConflictError,
    IncompatibleError,
    InvalidRequestError,
    NotFoundError,
)
from edgepack_fleet.groups import get_group, group_members
from edgepack_fleet.rollout import actions
from edgepack_fleet.rollout.eventlog import replay
from edgepack_fleet.rollout.model import (
    DRIVEN_STATES,
    FINAL_STATES,
    Decision,
    Rollout,
    RolloutEvent,
    RolloutOptions,
)
from edgepack_fleet.rollout.options import PROBATION_MARGIN_SECONDS
from edgepack_fleet.rollout.planning import Subject, plan
from edgepack_fleet.rollout.returning import warnings

HOLDING_STATES = frozenset(RolloutState) - FINAL_STATES - {RolloutState.DRAFT}
"""A rollout in one of these has its devices to itself."""

_NO_NAME = re.compile(r"[^a-z0-9]+")


class Verb(StrEnum):
    """What an operator can do to a rollout."""

    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ABORT = "abort"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class Action:
    """An operator's action. ``reason`` is words for the record.

    ``revert`` is for ``abort``: whether devices go back to what they ran. ``expected_sequence`` is
    that of the last event the operator has seen, or None to act on whatever there is.
    """

    verb: Verb
    actor: str
    reason: str = ""
    revert: bool = False
    expected_sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks to be rolled out, to whom, and how."""

    bundle: str
    version: str
    group: str
    options: RolloutOptions
    actor: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rollout would be. ``incompatible`` says why a device of the group is not in it.

    ``unheard`` are in it although they never said what they are: they may refuse the bundle.
    ``warnings`` say what could not be rolled back.
    """

    rollout: Rollout
    incompatible: dict[str, str]
    unheard: list[str]
    warnings: list[str]
    decision: Decision


def plan_rollout(session: Session, writer: DesiredWriter, request: Request, *, now_ms: int) -> Plan:
    """Plan a rollout without storing anything.

    Raises:
        NotFoundError: There is no such bundle or group.
        InvalidRequestError: The group is empty, or an option is out of range.
        IncompatibleError: No device of the group can run the bundle.
        UntrustedBundleError: The keyring does not vouch for the bundle any more.
    """
    bundle = find_bundle(session, request.bundle, request.version)
    writer.trusted().refuse_unvouched(bundle)
    members = group_members(session, get_group(session, request.group))
    if not members:
        raise InvalidRequestError(f"group {request.group!r} has no devices", code="empty-group")
    ways = ways_back(session, writer.trusted(), members, bundle.name)
    incompatible = incompatible_devices(bundle, members, ways)
    chosen = [device for device in members if device.id not in incompatible]
    if not chosen:
        reasons = "; ".join(f"{device}: {why}" for device, why in incompatible.items())
        raise IncompatibleError(f"no device of {request.group!r} can run the bundle: {reasons}")
    subject = Subject(
        id=_new_id(session, bundle),
        slot=bundle.name,
        group=request.group,
        bundle=bundle.name,
        version=bundle.version,
        digest=bundle.digest,
        facts=bundle_facts(bundle),
        tenant=writer.tenant,
    )
    targets = [target_of(device, subject.slot) for device in chosen]
    decision = plan(subject, targets, request.options, now_ms, actor=request.actor)
    unheard = [device.id for device in chosen if device.birth is None]
    here = [way for way in ways if way.device not in incompatible]
    risks = warnings(bundle.security_version, bundle.digest, here)
    return Plan(decision.rollout, incompatible, unheard, risks, decision)


def start_rollout(
    session: Session, writer: DesiredWriter, request: Request, *, now_ms: int
) -> Plan:
    """Plan a rollout, store it, and start it; the next tick offers the bundle.

    Raises:
        ConflictError: A rollout that has not ended has one of the devices in the same slot.
        NotFoundError, InvalidRequestError, IncompatibleError, UntrustedBundleError: See
            :func:`plan_rollout`.
    """
    planned = plan_rollout(session, writer, request, now_ms=now_ms)
    _refuse_overlap(session, planned.rollout)
    draft = planned.rollout
    session.add(
        RolloutRow(
            id=draft.id,
            slot=draft.slot,
            bundle_name=draft.bundle,
            bundle_version=draft.version,
            digest=draft.digest,
            state=draft.state.value,
            document=b"",
            created_ms=now_ms,
            updated_ms=now_ms,
        )
    )
    commit_decision(session, writer, planned.decision, now_ms=now_ms)
    started = actions.start(draft, now_ms, actor=request.actor)
    commit_decision(session, writer, started, now_ms=now_ms)
    return replace(planned, rollout=started.rollout, decision=started)


def act_on_rollout(
    session: Session, writer: DesiredWriter, rollout_id: str, action: Action, *, now_ms: int
) -> Rollout:
    """Do what an operator asks and return the rollout after it.

    Raises:
        NotFoundError: There is no such rollout.
        ConflictError: It is in no state for this, it changed since the caller looked, or another
            rollout has its devices now.
        UntrustedBundleError: It would go on with a bundle that the keyring does not vouch for.
    """
    rollout = load_rollout(session, rollout_id)
    if action.expected_sequence not in (None, rollout.sequence):
        raise ConflictError(
            f"rollout {rollout_id} is at event {rollout.sequence}, not "
            f"{action.expected_sequence}; look at it again before you decide",
            code="stale",
        )
    if action.verb is Verb.ROLLBACK:
        _refuse_successor(session, rollout)
    if action.verb in (Verb.RESUME, Verb.PROMOTE):
        bundle = find_bundle(session, rollout.bundle, rollout.version)
        writer.trusted().refuse_unvouched(bundle)
    decision = _decide(rollout, action, now_ms)
    commit_decision(session, writer, decision, now_ms=now_ms)
    return decision.rollout


def commit_decision(
    session: Session, writer: DesiredWriter, decision: Decision, *, now_ms: int
) -> None:
    """Write a decision: the rollout, its events, and what devices are told."""
    if not decision.events:
        return
    rollout = decision.rollout
    row = session.get_one(RolloutRow, rollout.id)
    row.document, row.state = msgspec.json.encode(rollout), rollout.state.value
    row.revision, row.updated_ms = rollout.sequence, now_ms
    _append_events(session, rollout.id, decision.events)
    for command in decision.commands:
        wish = SlotWish(
            device=command.device,
            slot=rollout.slot,
            bundle_name=rollout.bundle,
            digest=command.digest,
            probation=_probation(rollout.options),
            decided_by=f"{rollout.id}: {command.reason}",
        )
        writer.wish(session, wish, now_ms=now_ms)
    session.flush()


def why_unvouched(session: Session, writer: DesiredWriter, rollout: Rollout) -> str | None:
    """Why the keyring no longer vouches for what a rollout brings; None when it does.

    Raises:
        NotFoundError: The bundle is not in the store.
    """
    bundle = find_bundle(session, rollout.bundle, rollout.version)
    return writer.trusted().unvouched(bundle)


def load_rollout(session: Session, rollout_id: str) -> Rollout:
    """One rollout.

    Raises:
        NotFoundError: There is none of this id.
    """
    row = session.get(RolloutRow, rollout_id)
    if row is None:
        raise NotFoundError(f"there is no rollout {rollout_id[:80]!r}")
    return msgspec.json.decode(row.document, type=Rollout)


def list_rollouts(session: Session, *, after: str = "", limit: int = 100) -> list[Rollout]:
    """Rollouts, the newest first, behind the one named ``after``."""
    query = select(RolloutRow)
    if after:
        last = session.get(RolloutRow, after)
        if last is None:
            raise NotFoundError(f"there is no rollout {after[:80]!r} to go on from")
        query = query.where(
            (RolloutRow.created_ms < last.created_ms)
            | ((RolloutRow.created_ms == last.created_ms) & (RolloutRow.id < last.id))
        )
    rows = session.scalars(
        query.order_by(RolloutRow.created_ms.desc(), RolloutRow.id.desc()).limit(limit)
    )
    return [msgspec.json.decode(row.document, type=Rollout) for row in rows]


def driven_rollouts(session: Session) -> list[str]:
    """The ids of rollouts that a tick has something to do for; those going back come first."""
    rows = session.execute(
        select(RolloutRow.id, RolloutRow.state)
        .where(RolloutRow.state.in_([state.value for state in DRIVEN_STATES]))
        .order_by(RolloutRow.created_ms)
    ).all()
    return [row.id for row in sorted(rows, key=lambda row: row.state != "rolling_back")]


def rollout_events(
    session: Session, rollout_id: str, *, after: int = 0, limit: int = 1000
) -> list[RolloutEvent]:
    """Events of a rollout behind a sequence, in order.

    Raises:
        NotFoundError: There is no such rollout.
    """
    if session.get(RolloutRow, rollout_id) is None:
        raise NotFoundError(f"there is no rollout {rollout_id[:80]!r}")
    rows = session.scalars(
        select(RolloutEventRow.body)
        .where(RolloutEventRow.rollout_id == rollout_id, RolloutEventRow.sequence > after)
        .order_by(RolloutEventRow.sequence)
        .limit(limit)
    )
    return [msgspec.json.decode(body, type=RolloutEvent) for body in rows]


def replayed(session: Session, rollout_id: str) -> Rollout:
    """What the event log of a rollout adds up to, which is the rollout."""
    bodies = session.scalars(
        select(RolloutEventRow.body)
        .where(RolloutEventRow.rollout_id == rollout_id)
        .order_by(RolloutEventRow.sequence)
    )
    return replay(msgspec.json.decode(body, type=RolloutEvent) for body in bodies)


def last_rollout_of(session: Session, device: str) -> Rollout | None:
    """The newest rollout that has a device in it."""
    for document in session.scalars(
        select(RolloutRow.document).order_by(RolloutRow.created_ms.desc())
    ):
        rollout = msgspec.json.decode(document, type=Rollout)
        if device in rollout.updates:
            return rollout
    return None


def _decide(rollout: Rollout, action: Action, now_ms: int) -> Decision:
    actor, reason = action.actor, action.reason
    match action.verb:
        case Verb.PAUSE:
            return actions.pause(rollout, now_ms, actor=actor, reason=reason)
        case Verb.RESUME:
            return actions.resume(rollout, now_ms, actor=actor)
        case Verb.PROMOTE:
            return actions.promote(rollout, now_ms, actor=actor, reason=reason)
        case Verb.ABORT:
            return actions.abort(rollout, now_ms, actor=actor, revert=action.revert, reason=reason)
        case Verb.ROLLBACK:
            return actions.rollback(rollout, now_ms, actor=actor, reason=reason)


def _append_events(session: Session, rollout_id: str, events: tuple[RolloutEvent, ...]) -> None:
    previous = session.scalars(
        select(RolloutEventRow.hash)
        .where(RolloutEventRow.rollout_id == rollout_id)
        .order_by(RolloutEventRow.sequence.desc())
        .limit(1)
    ).first()
    for event in events:
        body = canonical_json(event)
        row = RolloutEventRow(
            rollout_id=rollout_id,
            sequence=event.sequence,
            at_ms=event.at,
            actor=event.actor,
            cause=event.cause,
            words=event.words,
            body=body,
            previous_hash=previous or GENESIS,
        )
        row.hash = previous = chain_hash(row.previous_hash, body)
        session.add(row)


def _refuse_overlap(session: Session, rollout: Rollout) -> None:
    for other in _of_slot(session, rollout):
        shared = sorted(set(other.updates) & set(rollout.updates))
        if other.state in HOLDING_STATES and shared:
            raise ConflictError(
                f"rollout {other.id} is {other.state.value.replace('_', ' ')} and has "
                f"{len(shared)} of these devices ({', '.join(shared[:3])}); wait for it, abort it "
                "or roll it back first",
                code="overlap",
            )


def _refuse_successor(session: Session, rollout: Rollout) -> None:
    """A later rollout decides what its devices run; an earlier one must not take them back."""
    for other in _of_slot(session, rollout):
        later = (other.started_ms or 0) > (rollout.started_ms or 0)
        if other.id != rollout.id and later and set(other.updates) & set(rollout.updates):
            raise ConflictError(
                f"rollout {other.id} came after {rollout.id} on the same devices; roll that one "
                "back instead",
                code="overlap",
            )


def _of_slot(session: Session, rollout: Rollout) -> list[Rollout]:
    rows = session.scalars(
        select(RolloutRow.document).where(
            RolloutRow.slot == rollout.slot, RolloutRow.state != RolloutState.DRAFT.value
        )
    )
    return [msgspec.json.decode(document, type=Rollout) for document in rows]


def _probation(options: RolloutOptions) -> Probation:
    """Probation on the device; the previous model stays loaded for as long as gates may look."""
    seconds = options.probation_seconds
    return Probation(
        seconds=seconds,
        max_seconds=seconds + PROBATION_MARGIN_SECONDS / 2,
        shadow_seconds=seconds + options.soak_seconds + options.max_wait_seconds,
    )


def _new_id(session: Session, bundle: Bundle) -> str:
    base = _NO_NAME.sub("-", f"{bundle.name}-{bundle.version}".lower()).strip("-")[:100]
    while True:
        name = f"{base}-{secrets.token_hex(2)}"
        if session.get(RolloutRow, name) is None:
            return name

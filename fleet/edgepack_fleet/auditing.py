"""Verifies the audit log and the event log of every rollout, in bounded batches.

Every column is covered: of an audit entry by its hash, of a rollout's event by comparison with the
body that is hashed. A rollout must be what its events add up to, so that none is missing at their
end either; and every rollout that the audit log says was started must be there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, String, or_, select, type_coerce
from sqlalchemy.orm import Session

from edgepack_fleet.auditlog import GENESIS, audit_body, chain_hash
from edgepack_fleet.db.schema import AuditRow, RolloutEventRow, RolloutRow
from edgepack_fleet.errors import InvalidRequestError, OperationError
from edgepack_fleet.rollout.eventlog import replay
from edgepack_fleet.rollout.model import Rollout, RolloutEvent

BATCH = 500
AUDIT = "audit"
"""The name of the audit log among the chains; a rollout's is its id."""

STARTED = "rollout.start"

_HEAD = re.compile(r"\A(\d{1,18}):([0-9a-f]{64})\Z", re.ASCII)


class AuditError(OperationError):
    """A log was changed after it was written."""

    default_code = "audit-broken"


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry of the audit log: who keeps this elsewhere notices that the end was cut."""

    sequence: int
    hash: str

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash}"


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a chain breaks first. ``chain`` is ``audit`` or the id of a rollout."""

    chain: str
    sequence: int
    words: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was verified, and what is wrong; ``head`` is the last entry that is whole."""

    head: Head
    rollouts: int
    events: int
    broken: tuple[Fault, ...]

    def words(self) -> str:
        """What was verified, in words."""
        return (
            f"{self.head.sequence} audit entries and {self.events} events of {self.rollouts} "
            "rollouts are whole"
        )


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries to list; None is no limit. ``action`` also stands for what it begins."""

    actor: str | None = None
    action: str | None = None
    subject: str | None = None
    since_ms: int | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The conditions of a query."""
        found: list[ColumnElement[bool]] = []
        if self.actor is not None:
            found.append(AuditRow.actor == self.actor)
        if self.action is not None:
            begins = AuditRow.action.startswith(f"{self.action}.", autoescape=True)
            found.append(or_(AuditRow.action == self.action, begins))
        if self.subject is not None:
            found.append(AuditRow.subject == self.subject)
        if self.since_ms is not None:
            found.append(AuditRow.at_ms >= self.since_ms)
        return found


class _BrokenError(Exception):
    """Carries the fault out of an iteration."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.words)
        self.fault = fault


def parse_head(text: str) -> Head:
    """Read ``SEQUENCE:HASH``.

    Raises:
        InvalidRequestError: It is of another form.
    """
    match = _HEAD.match(text.strip())
    if match is None:
        raise InvalidRequestError(
            "a head is SEQUENCE:HASH, such as `edgepack audit verify` prints: a number and 64 hex "
            "digits"
        )
    return Head(int(match[1]), match[2])


def list_audit(
    session: Session, which: Filter, *, before: int | None, limit: int
) -> list[AuditRow]:
    """Entries, the newest first, older than the one of sequence ``before``."""
    query = select(AuditRow).where(*which.conditions())
    if before is not None:
        query = query.where(AuditRow.sequence < before)
    return list(session.scalars(query.order_by(AuditRow.sequence.desc()).limit(limit)))


def verify_log(session: Session, known: Head | None = None) -> Report:
    """Verify the audit log and the events of every rollout.

    Args:
        session: A consistent view of the database.
        known: A head that was kept elsewhere; the log must go on from it.
    """
    head, started, broken = _verify_audit(session, known)
    rollouts = events = 0
    for rollout_id in _rollout_ids(session):
        started.pop(rollout_id, None)
        count, fault = _verify_rollout(session, rollout_id)
        rollouts, events = rollouts + 1, events + count
        broken += [fault] if fault is not None else []
    broken += [
        Fault(rollout_id, 1, f"rollout {rollout_id} was started (audit entry {place}), but is gone")
        for rollout_id, place in started.items()
    ]
    return Report(head, rollouts, events, tuple(broken))


def _verify_audit(session: Session, known: Head | None) -> tuple[Head, dict[str, int], list[Fault]]:
    """The last whole entry, the rollouts that were started, and the first fault."""
    head, started = Head(0, GENESIS), {}
    try:
        for entry in _audit_rows(session):
            head = _follow(head, entry)
            if known is not None and head.sequence == known.sequence and head != known:
                words = (
                    f"audit entry {head.sequence} is not the one that was seen before: the log was "
                    "written anew"
                )
                raise _BrokenError(Fault(AUDIT, head.sequence, words))
            if entry["action"] == STARTED:
                started[str(entry["subject"])] = head.sequence
    except _BrokenError as error:
        return head, started, [error.fault]
    if known is not None and head.sequence < known.sequence:
        words = (
            f"the audit log ends at entry {head.sequence}, but entry {known.sequence} was seen "
            "before: its end was cut off"
        )
        return head, started, [Fault(AUDIT, head.sequence + 1, words)]
    return head, started, []


def _follow(head: Head, entry: dict[str, Any]) -> Head:
    place, what = head.sequence + 1, "audit entry"
    if entry["sequence"] != place:
        raise _BrokenError(Fault(AUDIT, place, f"{what} {place} is missing"))
    if entry["previous_hash"] != head.hash:
        words = f"{what} {place} does not follow from entry {head.sequence}: one of them is another"
        raise _BrokenError(Fault(AUDIT, place, words))
    if chain_hash(head.hash, _covered(entry)) != entry["hash"]:
        words = f"{what} {place} was changed after it was written"
        raise _BrokenError(Fault(AUDIT, place, words))
    return Head(place, str(entry["hash"]))


def _covered(entry: dict[str, Any]) -> bytes:
    try:
        return audit_body(entry | {"detail": json.loads(entry["detail"])})
    except (ValueError, TypeError):
        # no JSON, or something that canonical JSON has no form for: nobody hashed that
        return b""


def _audit_rows(session: Session) -> Iterator[dict[str, Any]]:
    # as text: what somebody wrote there need not be JSON any more
    detail = type_coerce(AuditRow.detail, String).label("detail")
    columns = [column for column in AuditRow.__table__.columns if column.name != "detail"]
    last = None
    while True:
        query = select(*columns, detail).order_by(AuditRow.sequence).limit(BATCH)
        if last is not None:
            query = query.where(AuditRow.sequence > last)
        rows = session.execute(query).mappings().all()
        yield from (dict(row) for row in rows)
        if len(rows) < BATCH:
            return
        last = rows[-1]["sequence"]


def _rollout_ids(session: Session) -> Iterator[str]:
    last = ""
    while True:
        ids = session.scalars(
            select(RolloutRow.id).where(RolloutRow.id > last).order_by(RolloutRow.id).limit(BATCH)
        ).all()
        yield from ids
        if len(ids) < BATCH:
            return
        last = ids[-1]


def _verify_rollout(session: Session, rollout_id: str) -> tuple[int, Fault | None]:
    """How many events are whole, and the first fault."""
    count = 0

    def events() -> Iterator[RolloutEvent]:
        nonlocal count
        for event in _events(session, rollout_id):
            count = event.sequence
            yield event

    try:
        total: Rollout | None = replay(events())
    except _BrokenError as error:
        return count, error.fault
    except (ValueError, LookupError, TypeError):
        total = None
    document = session.scalars(select(RolloutRow.document).where(RolloutRow.id == rollout_id)).one()
    if total is None or total.id != rollout_id or _decoded(document, Rollout) != total:
        words = (
            f"rollout {rollout_id} is not what its {count} events add up to: it was changed, or "
            "events were cut off the end"
        )
        return count, Fault(rollout_id, count + 1, words)
    return count, None


def _events(session: Session, rollout_id: str) -> Iterator[RolloutEvent]:
    previous, place = GENESIS, 0
    while True:
        rows = session.scalars(
            select(RolloutEventRow)
            .where(RolloutEventRow.rollout_id == rollout_id, RolloutEventRow.sequence > place)
            .order_by(RolloutEventRow.sequence)
            .limit(BATCH)
        ).all()
        for row in rows:
            place += 1
            yield _event(row, previous, place)
            previous = row.hash
        if len(rows) < BATCH:
            return


def _event(row: RolloutEventRow, previous: str, place: int) -> RolloutEvent:
    what = f"event {place} of rollout {row.rollout_id}"
    if row.sequence != place:
        raise _BrokenError(Fault(row.rollout_id, place, f"{what} is missing"))
    event: RolloutEvent | None = _decoded(row.body, RolloutEvent)
    columns = (row.sequence, row.at_ms, row.actor, row.cause, row.words)
    whole = (
        event is not None
        and row.previous_hash == previous
        and chain_hash(previous, row.body) == row.hash
        and columns == (event.sequence, event.at, event.actor, event.cause, event.words)
    )
    if event is None or not whole:
        words = f"{what} was changed after it was written"
        raise _BrokenError(Fault(row.rollout_id, place, words))
    return event


def _decoded(raw: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, TypeError):
        return None

"""The audit log over REST: look at it, and verify that nobody changed it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import Response

from edgepack_fleet import auditing
from edgepack_fleet.api.access import AsAdmin
from edgepack_fleet.api.answers import Cursor, Limit, answer, page, returns
from edgepack_fleet.api.context import Here
from edgepack_fleet.db.schema import AuditRow
from edgepack_fleet.errors import InvalidRequestError

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])

Text = Annotated[str | None, Query(max_length=256)]


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what, to what, when (milliseconds since 1970 UTC)."""

    sequence: int
    at_ms: int
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    hash: str


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was verified. ``head`` is SEQUENCE:HASH of the last entry that is whole."""

    whole: bool
    head: str
    rollouts: int
    events: int
    broken: list[auditing.Fault]
    words: str


@router.get("", openapi_extra=returns(AuditEntry, many=True))
def index(
    _: AsAdmin,
    here: Here,
    actor: Text = None,
    action: Text = None,
    subject: Text = None,
    since_ms: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    after: Cursor = "",
    limit: Limit = 100,
) -> Response:
    """List entries, the newest first. The action `rollout` stands for `rollout.start` and so on."""
    if after and not (after.isascii() and after.isdecimal() and len(after) < 19):
        raise InvalidRequestError("`after` is not the `next` of a page before")
    which = auditing.Filter(actor, action, subject, since_ms)
    before = int(after) if after else None
    with here.database.read() as session:
        rows = auditing.list_audit(session, which, before=before, limit=limit + 1)
    return page([_entry(row) for row in rows], limit, lambda one: str(one.sequence))


@router.get("/verify", openapi_extra=returns(AuditReport))
def verify(_: AsAdmin, here: Here, head: Text = None) -> Response:
    """Verify every entry, and every event of every rollout.

    With `head`, which was kept elsewhere, the log must go on from it: this proves that nothing was
    cut off its end.
    """
    known = None if head is None else auditing.parse_head(head)
    with here.database.read() as session:
        report = auditing.verify_log(session, known)
    whole = not report.broken
    return answer(
        AuditReport(
            whole=whole,
            head=str(report.head),
            rollouts=report.rollouts,
            events=report.events,
            broken=list(report.broken),
            words=report.words() if whole else "; ".join(one.words for one in report.broken),
        )
    )


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(
        sequence=row.sequence,
        at_ms=row.at_ms,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        detail=row.detail,
        hash=row.hash,
    )

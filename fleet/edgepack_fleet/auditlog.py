"""The audit log: who did what, hash-chained, written in the transaction of what was done.

Each row's hash covers the hash before it, so that a row which was changed, removed or slipped in
later breaks every hash after it. The same chain is kept for the events of each rollout.
"""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_contract.canonical import canonical_json
from edgepack_fleet.db.schema import AuditRow, RolloutEventRow

GENESIS = "0" * 64
"""What the first row of a chain follows."""


def chain_hash(previous: str, body: bytes) -> str:
    """The hash of a row: SHA-256 over the hash before it (as text) and the row's bytes."""
    return hashlib.sha256(previous.encode() + body).hexdigest()


def append_audit(
    session: Session, *, at_ms: int, actor: str, action: str, subject: str, detail: dict[str, Any]
) -> AuditRow:
    """Write down that ``actor`` did ``action`` to ``subject``, in the caller's transaction."""
    last = session.scalars(select(AuditRow).order_by(AuditRow.sequence.desc()).limit(1)).first()
    row = AuditRow(
        sequence=1 if last is None else last.sequence + 1,
        at_ms=at_ms,
        actor=actor,
        action=action,
        subject=subject,
        detail=detail,
        previous_hash=GENESIS if last is None else last.hash,
    )
    row.hash = chain_hash(row.previous_hash, _audit_body(row))
    session.add(row)
    session.flush()
    return row


def broken_audit(session: Session) -> int | None:
    """The sequence of the first row that does not follow from the one before; None if all do."""
    previous, expected = GENESIS, 1
    for row in session.scalars(select(AuditRow).order_by(AuditRow.sequence)):
        whole = chain_hash(previous, _audit_body(row)) == row.hash
        if row.sequence != expected or row.previous_hash != previous or not whole:
            return expected
        previous, expected = row.hash, expected + 1
    return None


def broken_events(session: Session, rollout_id: str) -> int | None:
    """The sequence of the first event that does not follow from the one before; None if all do."""
    rows = session.scalars(
        select(RolloutEventRow)
        .where(RolloutEventRow.rollout_id == rollout_id)
        .order_by(RolloutEventRow.sequence)
    )
    previous, expected = GENESIS, 1
    for row in rows:
        whole = chain_hash(previous, row.body) == row.hash
        if row.sequence != expected or row.previous_hash != previous or not whole:
            return expected
        previous, expected = row.hash, expected + 1
    return None


def _audit_body(row: AuditRow) -> bytes:
    return canonical_json(
        {
            "sequence": row.sequence,
            "at_ms": row.at_ms,
            "actor": row.actor,
            "action": row.action,
            "subject": row.subject,
            "detail": row.detail,
        }
    )

"""The audit log: who did what, hash-chained, written in the transaction of what was done.

Each row's hash covers the hash before it, so that a row which was changed, removed or slipped in
later breaks every hash after it. The same chain is kept for the events of each rollout. That the
end was cut off, or everything was written anew, shows only against a head that was kept elsewhere.
:mod:`edgepack_fleet.auditing` verifies it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_contract.canonical import canonical_json
from edgepack_fleet.db.schema import AuditRow

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
    row.hash = chain_hash(row.previous_hash, audit_body(vars(row)))
    session.add(row)
    session.flush()
    return row


def audit_body(entry: Mapping[str, Any]) -> bytes:
    """What the hash of an entry covers, besides the hash before it."""
    covered = ("sequence", "at_ms", "actor", "action", "subject", "detail")
    return canonical_json({name: entry[name] for name in covered})

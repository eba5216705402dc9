"""What the API writes into the audit log: who did it, and from where."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from edgepack_fleet.api.access import Caller
from edgepack_fleet.auditlog import append_audit


def record(
    session: Session,
    who: Caller,
    *,
    at_ms: int,
    action: str,
    subject: str,
    detail: dict[str, Any] | None = None,
) -> None:
    """Write down that ``who`` did ``action`` to ``subject``, with the client's address."""
    append_audit(
        session,
        at_ms=at_ms,
        actor=who.name,
        action=action,
        subject=subject,
        detail=(detail or {}) | {"address": who.address},
    )

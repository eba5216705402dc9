"""Browsers that are logged in: the cookie is a secret, kept as its SHA-256, good for 12 hours."""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.orm import Session

from edgepack_fleet.db.schema import BrowserSessionRow, UserRow
from edgepack_fleet.grants import Role
from edgepack_fleet.people import scope_of
from edgepack_fleet.tokens import Holder, is_stale, new_secret, secret_hash

SESSION_PREFIX = "eps_"
SESSION_TTL_MS = 12 * 3_600_000


def open_login(session: Session, user: str, *, now_ms: int) -> str:
    """Log a browser in and return the secret of its cookie."""
    session.execute(delete(BrowserSessionRow).where(BrowserSessionRow.expires_ms <= now_ms))
    secret = new_secret(SESSION_PREFIX)
    session.add(
        BrowserSessionRow(
            hash=secret_hash(secret),
            user=user,
            created_ms=now_ms,
            expires_ms=now_ms + SESSION_TTL_MS,
            last_used_ms=now_ms,
        )
    )
    session.flush()
    return secret


def find_login(session: Session, secret: str, *, now_ms: int) -> Holder | None:
    """Who logged in with this cookie; None when it is unknown or has expired."""
    row = session.get(BrowserSessionRow, secret_hash(secret))
    if row is None or row.expires_ms <= now_ms:
        return None
    user = session.get_one(UserRow, row.user)
    stale = is_stale(row.last_used_ms, now_ms)
    return Holder(user.name, Role(user.role), scope_of(user), row.hash, stale)


def touch_login(session: Session, login_hash: str, *, now_ms: int) -> None:
    """Write down that a browser's session was used."""
    row = session.get(BrowserSessionRow, login_hash)
    if row is not None:
        row.last_used_ms = now_ms


def close_login(session: Session, secret: str) -> bool:
    """Log a browser out; whether it was logged in."""
    row = session.get(BrowserSessionRow, secret_hash(secret))
    if row is not None:
        session.delete(row)
    return row is not None

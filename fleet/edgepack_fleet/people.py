"""People who log in to the page: who they are, and the one-time codes that let them in first.

A code is ``epl_`` and 49 characters, valid once and for fifteen minutes; only its SHA-256 is kept.
With it a person chooses a passkey or a password; with a new one (``reset``) anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from edgepack_fleet.db.schema import (
    BrowserSessionRow,
    LoginCodeRow,
    PasskeyRow,
    TokenRow,
    UserRow,
)
from edgepack_fleet.errors import ConflictError, NotFoundError
from edgepack_fleet.grants import Role, Scope
from edgepack_fleet.tokens import check_actor, is_whole, new_secret, secret_hash

CODE_PREFIX = "epl_"
CODE_TTL_MS = 15 * 60_000


@dataclass(frozen=True, slots=True)
class Person:
    """A person. Times are milliseconds since 1970 UTC."""

    name: str
    role: Role
    bundles: tuple[str, ...]
    groups: tuple[str, ...]
    password: bool
    passkeys: int
    created_ms: int
    last_used_ms: int | None


def add_user(session: Session, *, name: str, role: Role, scope: Scope, now_ms: int) -> str:
    """Add a person and return the first login code.

    Raises:
        InvalidRequestError: The name or the role is not acceptable.
        ConflictError: There is a person, or a token, of this name.
    """
    check_actor(name, role, what="person")
    if session.get(UserRow, name) is not None:
        raise ConflictError(
            f"there is a person named {name!r}; 'edgepack user reset {name}' makes a new code"
        )
    if session.scalars(select(TokenRow).where(TokenRow.name == name)).first() is not None:
        raise ConflictError(f"records mean a token by {name!r}: choose another name")
    session.add(
        UserRow(
            name=name,
            role=role.value,
            bundles=list(scope.bundles),
            groups=list(scope.groups),
            created_ms=now_ms,
        )
    )
    session.flush()
    return _new_code(session, name, now_ms)


def reset_user(session: Session, name: str, *, now_ms: int) -> str:
    """Forget a person's passkeys, password and sessions, and return a new login code.

    Raises:
        NotFoundError: There is no such person.
    """
    row = get_user(session, name)
    _forget(session, name)
    row.password_hash = None
    return _new_code(session, name, now_ms)


def remove_user(session: Session, name: str) -> None:
    """Remove a person and everything that lets them in.

    Raises:
        NotFoundError: There is no such person.
    """
    row = get_user(session, name)
    _forget(session, name)
    session.delete(row)
    session.flush()


def get_user(session: Session, name: str) -> UserRow:
    """One person.

    Raises:
        NotFoundError: There is no such person.
    """
    row = session.get(UserRow, name)
    if row is None:
        raise NotFoundError(f"there is no person named {name[:80]!r}")
    return row


def scope_of(row: UserRow) -> Scope:
    """What a person is limited to."""
    return Scope(tuple(row.bundles), tuple(row.groups))


def list_users(session: Session) -> list[Person]:
    """Every person, by name."""
    keys = session.execute(select(PasskeyRow.user, func.count()).group_by(PasskeyRow.user))
    passkeys = {name: int(count) for name, count in keys}
    newest = func.max(BrowserSessionRow.last_used_ms)
    uses = session.execute(select(BrowserSessionRow.user, newest).group_by(BrowserSessionRow.user))
    used = {name: int(at_ms) for name, at_ms in uses if at_ms is not None}
    return [
        Person(
            name=row.name,
            role=Role(row.role),
            bundles=tuple(row.bundles),
            groups=tuple(row.groups),
            password=row.password_hash is not None,
            passkeys=passkeys.get(row.name, 0),
            created_ms=row.created_ms,
            last_used_ms=used.get(row.name),
        )
        for row in session.scalars(select(UserRow).order_by(UserRow.name))
    ]


def find_code(session: Session, code: str, *, now_ms: int) -> UserRow | None:
    """Whose login code this is; None when it is unknown, used or expired."""
    row = session.get(LoginCodeRow, secret_hash(code)) if is_whole(code, CODE_PREFIX) else None
    if row is None or row.expires_ms <= now_ms:
        return None
    return session.get(UserRow, row.user)


def use_code(session: Session, code: str, *, now_ms: int) -> UserRow | None:
    """Whose login code this was: it is worth nothing any more. None as in :func:`find_code`."""
    user = find_code(session, code, now_ms=now_ms)
    if user is not None:
        session.execute(delete(LoginCodeRow).where(LoginCodeRow.user == user.name))
    return user


def code_url(public_url: str, code: str) -> str:
    """The page's address with a code in the fragment, which no browser sends to any server."""
    return f"{public_url.rstrip('/')}/#code={code}"


def _new_code(session: Session, name: str, now_ms: int) -> str:
    session.execute(delete(LoginCodeRow).where(LoginCodeRow.expires_ms <= now_ms))
    code = new_secret(CODE_PREFIX)
    session.add(
        LoginCodeRow(
            hash=secret_hash(code), user=name, created_ms=now_ms, expires_ms=now_ms + CODE_TTL_MS
        )
    )
    session.flush()
    return code


def _forget(session: Session, name: str) -> None:
    for kind in (PasskeyRow, LoginCodeRow, BrowserSessionRow):
        session.execute(delete(kind).where(kind.user == name))

"""Bearer tokens and roles: who may use the API, for what, and until when.

A token is ``epa_`` and 43 characters of randomness (256 bits, so a plain SHA-256 is enough to keep
it by). It is shown once, when it is made.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_contract.names import is_id
from edgepack_fleet.db.schema import TokenRow
from edgepack_fleet.errors import ConflictError, InvalidRequestError, NotFoundError

PREFIX = "epa_"
DEFAULT_TTL_SECONDS = 90 * 86400
MAX_TTL_SECONDS = 366 * 86400
LAST_USED_STEP_MS = 60_000
"""How exactly ``last_used`` is kept: a write for every request would be one too many."""


class Role(StrEnum):
    """What a route asks for and what a caller has; each includes the ones before it."""

    PUBLIC = "public"
    DEVICE = "device"
    VIEWER = "viewer"
    OPERATOR = "operator"
    PUBLISHER = "publisher"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        """A larger rank may do more."""
        return list(Role).index(self)


TOKEN_ROLES = (Role.VIEWER, Role.OPERATOR, Role.PUBLISHER, Role.ADMIN)
"""What a token can be made for; devices have credentials of their own."""


RESERVED_NAMES = frozenset({"fleet", "local"})
"""The actors of what the service decides by itself, and of what is done on its machine."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret. Times are milliseconds since 1970 UTC."""

    name: str
    role: Role
    created_ms: int
    expires_ms: int
    last_used_ms: int | None


@dataclass(frozen=True, slots=True)
class Holder:
    """Who presented a valid token, and whether that should be written down."""

    name: str
    role: Role
    hash: str
    stale: bool


def create_token(
    session: Session, *, name: str, role: Role, now_ms: int, ttl_seconds: int = DEFAULT_TTL_SECONDS
) -> str:
    """Make a token and return its secret, which nothing can show again.

    Raises:
        InvalidRequestError: The name, the role or the life time is not acceptable.
        ConflictError: There is a token of this name.
    """
    if not is_id(name):
        raise InvalidRequestError(f"token name {name[:80]!r}: use 1 to 63 of a-z, 0-9 and '-'")
    if name in RESERVED_NAMES:
        raise InvalidRequestError(
            f"records mean the service itself by {name!r}: choose another name"
        )
    if role not in TOKEN_ROLES:
        raise InvalidRequestError(f"a token has one of the roles {', '.join(TOKEN_ROLES)}")
    if not 1 <= ttl_seconds <= MAX_TTL_SECONDS:
        raise InvalidRequestError(f"a token lives for 1 to {MAX_TTL_SECONDS} seconds")
    if _find(session, name) is not None:
        raise ConflictError(f"there is a token named {name!r}; revoke it, or choose another name")
    secret = PREFIX + secrets.token_urlsafe(32)
    session.add(
        TokenRow(
            hash=_hash(secret),
            name=name,
            role=role.value,
            created_ms=now_ms,
            expires_ms=now_ms + ttl_seconds * 1000,
        )
    )
    session.flush()
    return secret


def list_tokens(session: Session) -> list[Token]:
    """Every token, by name."""
    rows = session.scalars(select(TokenRow).order_by(TokenRow.name))
    return [
        Token(row.name, Role(row.role), row.created_ms, row.expires_ms, row.last_used_ms)
        for row in rows
    ]


def revoke_token(session: Session, name: str) -> None:
    """Make a token worthless at once.

    Raises:
        NotFoundError: There is none of this name.
    """
    row = _find(session, name)
    if row is None:
        raise NotFoundError(f"there is no token named {name[:80]!r}")
    session.delete(row)


def find_holder(session: Session, secret: str, *, now_ms: int) -> Holder | None:
    """Who holds this token; None when it is unknown or has expired."""
    row = session.get(TokenRow, _hash(secret))
    if row is None or row.expires_ms <= now_ms:
        return None
    stale = row.last_used_ms is None or now_ms - row.last_used_ms >= LAST_USED_STEP_MS
    return Holder(row.name, Role(row.role), row.hash, stale)


def touch_token(session: Session, token_hash: str, *, now_ms: int) -> None:
    """Write down that a token was used."""
    row = session.get(TokenRow, token_hash)
    if row is not None:
        row.last_used_ms = now_ms


def _find(session: Session, name: str) -> TokenRow | None:
    return session.scalars(select(TokenRow).where(TokenRow.name == name)).one_or_none()


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()

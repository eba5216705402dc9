"""Bearer tokens: who may use the API, for what, and until when.

A token is ``epa_``, 43 characters of randomness (256 bits, so a plain SHA-256 is enough to keep it
by) and 6 of checksum (CRC-32), by which a mistyped one is told from an unknown one. It is shown
once, when it is made. Other secrets of the service have the same form and another prefix.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_contract.names import is_id
from edgepack_fleet.db.schema import TokenRow, UserRow
from edgepack_fleet.errors import ConflictError, InvalidRequestError, NotFoundError
from edgepack_fleet.grants import EVERYTHING, GRANTED_ROLES, Role, Scope

PREFIX = "epa_"
DEFAULT_TTL_SECONDS = 90 * 86400
MAX_TTL_SECONDS = 366 * 86400
LAST_USED_STEP_MS = 60_000
"""How exactly ``last_used`` is kept: a write for every request would be one too many."""

_RANDOM_BYTES = 32
_CHECKSUM_LENGTH = 6
_LENGTH = 43 + _CHECKSUM_LENGTH

RESERVED_NAMES = frozenset({"fleet", "local", "anonymous"})
"""The actors of what the service decides by itself, of what is done on its machine, of nobody."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret. Times are milliseconds since 1970 UTC."""

    name: str
    role: Role
    bundles: tuple[str, ...]
    groups: tuple[str, ...]
    created_ms: int
    expires_ms: int
    last_used_ms: int | None


@dataclass(frozen=True, slots=True)
class Holder:
    """Who presented a valid secret, and whether that should be written down."""

    name: str
    role: Role
    scope: Scope
    hash: str
    stale: bool


def new_secret(prefix: str) -> str:
    """A secret of 256 bits with a checksum: ``prefix`` and 49 characters of base64url."""
    body = prefix + secrets.token_urlsafe(_RANDOM_BYTES)
    return body + _checksum(body)


def is_whole(text: str, prefix: str) -> bool:
    """Whether ``text`` is a secret of this kind as it was made: nothing missing, nothing mistyped.

    It says nothing about whether anybody made it: the checksum has no key.
    """
    body, checksum = text[:-_CHECKSUM_LENGTH], text[-_CHECKSUM_LENGTH:]
    right = text.startswith(prefix) and len(text) == len(prefix) + _LENGTH and text.isascii()
    return right and hmac.compare_digest(_checksum(body), checksum)


def secret_hash(secret: str) -> str:
    """What a secret is kept and found by."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def is_stale(last_used_ms: int | None, now_ms: int) -> bool:
    """Whether a use now is to be written down."""
    return last_used_ms is None or now_ms - last_used_ms >= LAST_USED_STEP_MS


def create_token(
    session: Session,
    *,
    name: str,
    role: Role,
    scope: Scope = EVERYTHING,
    now_ms: int,
    ttl_seconds: int = DEFAULT_TTL_SECONDS,
) -> str:
    """Make a token and return its secret, which nothing can show again.

    Raises:
        InvalidRequestError: The name, the role or the life time is not acceptable.
        ConflictError: There is a token, or a person, of this name.
    """
    check_actor(name, role, what="token")
    if not 1 <= ttl_seconds <= MAX_TTL_SECONDS:
        raise InvalidRequestError(f"a token lives for 1 to {MAX_TTL_SECONDS} seconds")
    if _find(session, name) is not None:
        raise ConflictError(f"there is a token named {name!r}; revoke it, or choose another name")
    if session.get(UserRow, name) is not None:
        raise ConflictError(f"records mean a person by {name!r}: choose another name")
    secret = new_secret(PREFIX)
    session.add(
        TokenRow(
            hash=secret_hash(secret),
            name=name,
            role=role.value,
            bundles=list(scope.bundles),
            groups=list(scope.groups),
            created_ms=now_ms,
            expires_ms=now_ms + ttl_seconds * 1000,
        )
    )
    session.flush()
    return secret


def check_actor(name: str, role: Role, *, what: str) -> None:
    """Refuse a name that records could not tell from another's, and a role nobody can be given.

    Raises:
        InvalidRequestError: With what is accepted.
    """
    if not is_id(name):
        raise InvalidRequestError(f"{what} name {name[:80]!r}: use 1 to 63 of a-z, 0-9 and '-'")
    if name in RESERVED_NAMES:
        raise InvalidRequestError(
            f"records mean the service itself by {name!r}: choose another name"
        )
    if role not in GRANTED_ROLES:
        raise InvalidRequestError(f"a {what} has one of the roles {', '.join(GRANTED_ROLES)}")


def list_tokens(session: Session) -> list[Token]:
    """Every token, by name."""
    return [
        Token(
            name=row.name,
            role=Role(row.role),
            bundles=tuple(row.bundles),
            groups=tuple(row.groups),
            created_ms=row.created_ms,
            expires_ms=row.expires_ms,
            last_used_ms=row.last_used_ms,
        )
        for row in session.scalars(select(TokenRow).order_by(TokenRow.name))
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
    row = session.get(TokenRow, secret_hash(secret))
    if row is None or row.expires_ms <= now_ms:
        return None
    scope = Scope(tuple(row.bundles), tuple(row.groups))
    stale = is_stale(row.last_used_ms, now_ms)
    return Holder(row.name, Role(row.role), scope, row.hash, stale)


def touch_token(session: Session, token_hash: str, *, now_ms: int) -> None:
    """Write down that a token was used."""
    row = session.get(TokenRow, token_hash)
    if row is not None:
        row.last_used_ms = now_ms


def _find(session: Session, name: str) -> TokenRow | None:
    return session.scalars(select(TokenRow).where(TokenRow.name == name)).one_or_none()


def _checksum(body: str) -> str:
    raw = binascii.crc32(body.encode()).to_bytes(4, "big")
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")

"""Join tokens: the right of a device to ask for membership, kept as hashes only.

A token is 256 random bits behind ``epj_``, with a checksum, as access tokens are. It is short-lived
and counted, so that one that leaks is worth little.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_contract.enrolment import TOKEN_PREFIX
from edgepack_contract.names import is_id
from edgepack_fleet.db.schema import JoinTokenRow
from edgepack_fleet.devices import check_labels
from edgepack_fleet.errors import (
    ConflictError,
    InvalidRequestError,
    NotAdmittedError,
    NotFoundError,
)
from edgepack_fleet.tokens import new_secret, secret_hash

DEFAULT_TTL_SECONDS = 3600
MAX_TTL_SECONDS = 30 * 86400
MAX_USES = 10_000


class Mode(StrEnum):
    """What becomes of who joins with a token: an operator's approval is waited for, or is not."""

    PENDING = "pending"
    AUTO = "auto"


class JoinToken(msgspec.Struct, frozen=True, kw_only=True):
    """A join token; ``token`` is its secret, and there only in the answer that made it.

    Times are milliseconds since 1970 UTC.
    """

    name: str
    mode: Mode
    labels: dict[str, str]
    uses: int
    max_uses: int
    created_by: str
    created_ms: int
    expires_ms: int
    token: str | None = None


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a join token gives: to how many devices, for how long, and their labels."""

    mode: Mode = Mode.PENDING
    labels: Mapping[str, str] = {}
    max_uses: int = 1
    ttl_seconds: int = DEFAULT_TTL_SECONDS


def create_join_token(
    session: Session, *, name: str, terms: Terms, created_by: str, now_ms: int
) -> JoinToken:
    """Make a token; its secret is in the answer, and nothing can show it again.

    Raises:
        InvalidRequestError: The name, a label, or a number is not acceptable.
        ConflictError: There is a token of this name that can still be used.
    """
    _check(name, terms)
    existing = session.get(JoinTokenRow, name)
    if existing is not None:
        if _is_usable(existing, now_ms):
            raise ConflictError(
                f"there is a join token {name!r} that can still be used; revoke it, or choose "
                "another name"
            )
        session.delete(existing)
        session.flush()
    secret = new_secret(TOKEN_PREFIX)
    row = JoinTokenRow(
        name=name,
        hash=secret_hash(secret),
        mode=terms.mode.value,
        labels=check_labels(terms.labels),
        uses=0,
        max_uses=terms.max_uses,
        created_by=created_by,
        created_ms=now_ms,
        expires_ms=now_ms + terms.ttl_seconds * 1000,
    )
    session.add(row)
    session.flush()
    return msgspec.structs.replace(_view(row), token=secret)


def list_join_tokens(session: Session) -> list[JoinToken]:
    """Every token by name, used up and expired ones too."""
    return [_view(row) for row in session.scalars(select(JoinTokenRow).order_by(JoinTokenRow.name))]


def revoke_join_token(session: Session, name: str) -> None:
    """Make a token worthless at once. Who has joined with it stays.

    Raises:
        NotFoundError: There is none of this name.
    """
    row = session.get(JoinTokenRow, name)
    if row is None:
        raise NotFoundError(f"there is no join token {name[:80]!r}")
    session.delete(row)


def use_join_token(session: Session, secret: str, *, now_ms: int) -> JoinTokenRow:
    """Count one use of a token.

    Raises:
        NotAdmittedError: ``bad-join-token``, in the same words whatever is wrong with it.
    """
    row = session.scalars(
        select(JoinTokenRow).where(JoinTokenRow.hash == secret_hash(secret))
    ).one_or_none()
    if row is None or not _is_usable(row, now_ms):
        raise NotAdmittedError(
            "this join token is unknown, expired, revoked or used up; ask for a new join string "
            "(edgepack join-token create NAME)",
            code="bad-join-token",
        )
    row.uses += 1
    return row


def _is_usable(row: JoinTokenRow, now_ms: int) -> bool:
    return now_ms < row.expires_ms and row.uses < row.max_uses


def _check(name: str, terms: Terms) -> None:
    if not is_id(name):
        raise InvalidRequestError(f"join token name {name[:80]!r}: use 1 to 63 of a-z, 0-9 and '-'")
    if not 1 <= terms.ttl_seconds <= MAX_TTL_SECONDS:
        raise InvalidRequestError(
            f"a join token lives for 1 s to {MAX_TTL_SECONDS // 86400} days, not "
            f"{terms.ttl_seconds} s"
        )
    if not 1 <= terms.max_uses <= MAX_USES:
        raise InvalidRequestError(
            f"a join token is for 1 to {MAX_USES} devices, not {terms.max_uses}"
        )


def _view(row: JoinTokenRow) -> JoinToken:
    return JoinToken(
        name=row.name,
        mode=Mode(row.mode),
        labels=dict(row.labels),
        uses=row.uses,
        max_uses=row.max_uses,
        created_by=row.created_by,
        created_ms=row.created_ms,
        expires_ms=row.expires_ms,
    )

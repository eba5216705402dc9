"""Creates that are safe to repeat: the same ``Idempotency-Key`` gets the same answer.

The answer is stored in the transaction of what it answers, so that a client whose connection broke
can ask again and does not start a second rollout. A key belongs to the token that used it and is
remembered for a day.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from fastapi.responses import Response
from sqlalchemy import delete
from sqlalchemy.orm import Session

from edgepack_contract.canonical import canonical_json
from edgepack_contract.digest import sha256_digest
from edgepack_fleet.db.schema import IdempotencyRow
from edgepack_fleet.errors import InvalidRequestError

REMEMBERED_MS = 86_400_000
MAX_KEY_LENGTH = 128


@dataclass(frozen=True, slots=True)
class Once:
    """A request that is to be done once.

    ``key`` is None when the client sent none: then it is done every time. ``request`` is the
    decoded body, which a repetition must have too.
    """

    token: str
    key: str | None
    request: msgspec.Struct
    now_ms: int

    def do(self, session: Session, status: HTTPStatus, create: Callable[[], object]) -> Response:
        """Create and answer, or give the answer of the first time.

        Raises:
            InvalidRequestError: The key was used for another request.
        """
        known = None if self.key is None else session.get(IdempotencyRow, (self.token, self.key))
        if known is not None:
            return self._again(known)
        body = msgspec.json.encode(create())
        if self.key is not None:
            self._remember(session, self.key, status, body)
        return Response(body, status_code=status, media_type="application/json")

    def _again(self, known: IdempotencyRow) -> Response:
        if known.request_digest != self._digest():
            raise InvalidRequestError(
                "this Idempotency-Key was used for another request; take a new one",
                code="idempotency-key-reused",
            )
        return Response(
            known.body,
            status_code=known.status,
            headers={"Idempotency-Replayed": "true"},
            media_type="application/json",
        )

    def _remember(self, session: Session, key: str, status: HTTPStatus, body: bytes) -> None:
        session.execute(
            delete(IdempotencyRow).where(IdempotencyRow.created_ms < self.now_ms - REMEMBERED_MS)
        )
        session.add(
            IdempotencyRow(
                token=self.token,
                key=key,
                request_digest=self._digest(),
                status=int(status),
                body=body,
                created_ms=self.now_ms,
            )
        )

    def _digest(self) -> str:
        kind = type(self.request).__name__.encode()
        return sha256_digest(kind + b"\0" + canonical_json(self.request))

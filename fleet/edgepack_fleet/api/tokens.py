"""Tokens over REST: make, list, revoke. Only an admin does any of it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Depends
from fastapi.responses import Response

from edgepack_fleet.api.access import AsAdmin, check_grant
from edgepack_fleet.api.answers import answer, returns
from edgepack_fleet.api.bodies import JsonBody
from edgepack_fleet.api.context import Here
from edgepack_fleet.api.records import record
from edgepack_fleet.api.views import TokenView
from edgepack_fleet.grants import Role, make_scope
from edgepack_fleet.tokens import (
    DEFAULT_TTL_SECONDS,
    create_token,
    list_tokens,
    revoke_token,
)

router = APIRouter(prefix="/api/v1/tokens", tags=["tokens"])


class NewToken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token for somebody or something, and the patterns that it is limited to."""

    name: str
    role: Literal["viewer", "operator", "publisher", "admin"]
    ttl_seconds: int = DEFAULT_TTL_SECONDS
    bundles: tuple[str, ...] = ("*",)
    groups: tuple[str, ...] = ("*",)


@router.post("", status_code=201, openapi_extra=returns(TokenView, 201))
def create(
    who: AsAdmin, here: Here, body: Annotated[NewToken, Depends(JsonBody(NewToken))]
) -> Response:
    """Make a token. Its secret is in this answer and never again."""
    now_ms = here.now_ms()
    role, scope = Role(body.role), make_scope(body.bundles, body.groups)
    check_grant(who, role, scope)
    with here.database.write() as session:
        secret = create_token(
            session,
            name=body.name,
            role=role,
            scope=scope,
            now_ms=now_ms,
            ttl_seconds=body.ttl_seconds,
        )
        limits = {"bundles": scope.bundles, "groups": scope.groups}
        detail = {"role": role.value, "ttl_seconds": body.ttl_seconds, **limits}
        record(session, who, at_ms=now_ms, action="token.create", subject=body.name, detail=detail)
    view = TokenView(
        name=body.name,
        role=role.value,
        bundles=scope.bundles,
        groups=scope.groups,
        created_ms=now_ms,
        expires_ms=now_ms + body.ttl_seconds * 1000,
        token=secret,
    )
    return answer(view, HTTPStatus.CREATED)


@router.get("", openapi_extra=returns(TokenView, many=True))
def index(_: AsAdmin, here: Here) -> Response:
    """List tokens by name, without their secrets."""
    with here.database.read() as session:
        tokens = list_tokens(session)
    return answer({"items": tokens, "next": None})


@router.delete("/{name}", status_code=204)
def revoke(who: AsAdmin, here: Here, name: str) -> Response:
    """Make a token worthless at once."""
    with here.database.write() as session:
        revoke_token(session, name)
        record(session, who, at_ms=here.now_ms(), action="token.revoke", subject=name)
    return Response(status_code=HTTPStatus.NO_CONTENT)

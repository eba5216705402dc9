"""Join tokens over REST: make, list, revoke."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends
from fastapi.responses import Response

from edgepack_fleet.api.access import AsOperator, check_every_group
from edgepack_fleet.api.answers import answer, returns
from edgepack_fleet.api.bodies import JsonBody
from edgepack_fleet.api.context import Here
from edgepack_fleet.api.problems import ForbiddenError
from edgepack_fleet.api.records import record
from edgepack_fleet.credentials import broker_address
from edgepack_fleet.grants import Role
from edgepack_fleet.join_tokens import (
    DEFAULT_TTL_SECONDS,
    JoinToken,
    Mode,
    Terms,
    create_join_token,
    list_join_tokens,
    revoke_join_token,
)

router = APIRouter(prefix="/api/v1/join-tokens", tags=["enrolment"])


class NewJoinToken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A join token for up to ``max_uses`` devices, which get ``labels``."""

    name: str
    mode: Mode = Mode.PENDING
    labels: dict[str, str] = {}
    max_uses: int = 1
    ttl_seconds: int = DEFAULT_TTL_SECONDS


@router.post("", status_code=201, openapi_extra=returns(JoinToken, 201))
def create(
    who: AsOperator, here: Here, body: Annotated[NewJoinToken, Depends(JsonBody(NewJoinToken))]
) -> Response:
    """Make a join token. Its secret is in this answer and never again.

    An operator makes those whose devices wait for approval, an admin also those whose do not.
    """
    check_every_group(who)
    # said to the operator who can mend it, before a device meets it
    broker_address(here.config, here.public_url)
    if body.mode is Mode.AUTO and who.role.rank < Role.ADMIN.rank:
        raise ForbiddenError(
            f"{who.name} has the role {who.role}, and a join token that accepts devices without "
            "approval needs admin; leave out --auto, and approve the devices that ask"
        )
    now_ms = here.now_ms()
    terms = Terms(
        mode=body.mode,
        labels=body.labels,
        max_uses=body.max_uses,
        ttl_seconds=body.ttl_seconds,
    )
    with here.database.write() as session:
        made = create_join_token(
            session, name=body.name, terms=terms, created_by=who.name, now_ms=now_ms
        )
        detail = msgspec.to_builtins(terms)
        record(
            session, who, at_ms=now_ms, action="join-token.create", subject=body.name, detail=detail
        )
    response = answer(made, HTTPStatus.CREATED)
    response.headers["Cache-Control"] = "no-store"
    return response


@router.get("", openapi_extra=returns(JoinToken, many=True))
def index(_: AsOperator, here: Here) -> Response:
    """List join tokens by name, without their secrets."""
    with here.database.read() as session:
        tokens = list_join_tokens(session)
    return answer({"items": tokens, "next": None})


@router.delete("/{name}", status_code=204)
def revoke(who: AsOperator, here: Here, name: str) -> Response:
    """Make a join token worthless at once. Devices that have joined with it stay."""
    with here.database.write() as session:
        revoke_join_token(session, name)
        record(session, who, at_ms=here.now_ms(), action="join-token.revoke", subject=name)
    return Response(status_code=HTTPStatus.NO_CONTENT)

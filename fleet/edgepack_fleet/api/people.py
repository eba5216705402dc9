"""People over REST: add, list, reset, remove. Only an admin does any of it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Depends
from fastapi.responses import Response

from edgepack_fleet import people
from edgepack_fleet.api.access import AsAdmin, check_grant
from edgepack_fleet.api.answers import answer, returns
from edgepack_fleet.api.bodies import JsonBody
from edgepack_fleet.api.context import Here
from edgepack_fleet.api.records import record
from edgepack_fleet.api.views import CodeView, PersonView
from edgepack_fleet.grants import Role, make_scope

router = APIRouter(prefix="/api/v1/users", tags=["people"])


class NewPerson(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody who may log in to the page, and the patterns that they are limited to."""

    name: str
    role: Literal["viewer", "operator", "publisher", "admin"]
    bundles: tuple[str, ...] = ("*",)
    groups: tuple[str, ...] = ("*",)


@router.post("", status_code=201, openapi_extra=returns(CodeView, 201))
def add(
    who: AsAdmin, here: Here, body: Annotated[NewPerson, Depends(JsonBody(NewPerson))]
) -> Response:
    """Add a person. The one-time login code is in this answer and never again."""
    now_ms = here.now_ms()
    role, scope = Role(body.role), make_scope(body.bundles, body.groups)
    check_grant(who, role, scope)
    with here.database.write() as session:
        code = people.add_user(session, name=body.name, role=role, scope=scope, now_ms=now_ms)
        detail = {"role": role.value, "bundles": scope.bundles, "groups": scope.groups}
        record(session, who, at_ms=now_ms, action="user.add", subject=body.name, detail=detail)
    return answer(_code_view(here, body.name, code), HTTPStatus.CREATED)


@router.get("", openapi_extra=returns(PersonView, many=True))
def index(_: AsAdmin, here: Here) -> Response:
    """List people by name, with how they can log in."""
    with here.database.read() as session:
        found = people.list_users(session)
    return answer({"items": found, "next": None})


@router.post("/{name}/reset", openapi_extra=returns(CodeView))
def reset(who: AsAdmin, here: Here, name: str) -> Response:
    """Forget a person's passkeys, password and sessions, and make a new login code."""
    now_ms = here.now_ms()
    with here.database.write() as session:
        row = people.get_user(session, name)
        # whoever has the code is that person
        check_grant(who, Role(row.role), people.scope_of(row))
        code = people.reset_user(session, name, now_ms=now_ms)
        record(session, who, at_ms=now_ms, action="user.reset", subject=name)
    return answer(_code_view(here, name, code))


@router.delete("/{name}", status_code=204)
def remove(who: AsAdmin, here: Here, name: str) -> Response:
    """Remove a person; every browser of theirs is logged out at once."""
    with here.database.write() as session:
        people.remove_user(session, name)
        record(session, who, at_ms=here.now_ms(), action="user.remove", subject=name)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _code_view(here: Here, name: str, code: str) -> CodeView:
    return CodeView(
        name=name,
        code=code,
        url=people.code_url(here.public_url, code),
        expires_ms=here.now_ms() + people.CODE_TTL_MS,
    )

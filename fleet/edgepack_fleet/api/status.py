"""What a client asks first: whether the service is up, and whose token this is."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import select

from edgepack_fleet.api.access import AsViewer, Public
from edgepack_fleet.api.answers import answer, returns
from edgepack_fleet.api.context import Here
from edgepack_fleet.api.views import Me

router = APIRouter(tags=["service"])


@router.get("/healthz", include_in_schema=False)
def healthz(_: Public, here: Here) -> Response:
    """Whether the service answers and can read its database."""
    with here.database.read() as session:
        session.execute(select(1))
    return answer({"status": "ok"})


@router.get("/api/v1/me", tags=["service"], openapi_extra=returns(Me))
def me(who: AsViewer) -> Response:
    """Whose token or login this is, and what it may do."""
    me = Me(
        name=who.name,
        role=who.role.value,
        bundles=who.scope.bundles,
        groups=who.scope.groups,
        login=who.by_cookie,
    )
    return answer(me)

"""What a client asks first: whether the service is up, and whose token this is."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import select

from edgepack_contract import __version__
from edgepack_fleet.api.access import AsViewer, Public
from edgepack_fleet.api.answers import answer, returns
from edgepack_fleet.api.context import Here
from edgepack_fleet.api.views import Me
from edgepack_fleet.db.schema import TokenRow

router = APIRouter(tags=["service"])


@dataclass(frozen=True, slots=True)
class Insecure:
    """Somebody's reason to run although settings are insecure, and which ones these are."""

    reason: str
    settings: list[str]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The service: its version, and the version and epoch of the keyring in force."""

    version: str
    keyring: int
    epoch: int
    demo: bool
    insecure: Insecure | None


@router.get("/healthz", include_in_schema=False)
def healthz(_: Public, here: Here) -> Response:
    """Whether the service answers and can read its database."""
    with here.database.read() as session:
        session.execute(select(1))
    return answer({"status": "ok"})


@router.get("/api/v1/status", tags=["service"], openapi_extra=returns(Status))
def status(_: AsViewer, here: Here) -> Response:
    """Which version runs, by which keyring, and whether it runs although it is insecure."""
    keyring = here.keeper.trust.keyring
    waiver = here.waiver
    insecure = None if waiver is None else Insecure(waiver.reason, waiver.settings)
    return answer(
        Status(
            version=__version__,
            keyring=keyring.version,
            epoch=keyring.epoch,
            demo=keyring.demo,
            insecure=insecure,
        )
    )


@router.get("/api/v1/me", tags=["service"], openapi_extra=returns(Me))
def me(who: AsViewer, here: Here) -> Response:
    """Whose token or login this is, what it may do, and until when."""
    with here.database.read() as session:
        expires_ms = session.scalar(select(TokenRow.expires_ms).where(TokenRow.name == who.name))
    me = Me(
        name=who.name,
        role=who.role.value,
        bundles=who.scope.bundles,
        groups=who.scope.groups,
        login=who.by_cookie,
        expires_ms=expires_ms,
    )
    return answer(me)

"""The keyring over REST: anybody may read it, because it proves itself; an admin replaces it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from edgepack_contract.limits import LIMITS
from edgepack_fleet.api.access import AsAdmin, AsViewer, Public
from edgepack_fleet.api.answers import answer, returns
from edgepack_fleet.api.bodies import read_body
from edgepack_fleet.api.context import Here
from edgepack_fleet.db.schema import Device
from edgepack_fleet.devices import ACCEPTED
from edgepack_fleet.trust import Trust

router = APIRouter(prefix="/api/v1/keyring", tags=["keyring"])

LINES = "application/jsonl"
"""A keyring file: one envelope a line."""

_FILE: dict[str, Any] = {"content": {LINES: {"schema": {"type": "string"}}}}


class KeyringView(msgspec.Struct, frozen=True, kw_only=True):
    """The keyring in force. ``fleet_key`` is the fingerprint of the key that signs by it."""

    version: int
    epoch: int
    issued: int
    owner: str
    fleet_key: str
    sha256: str
    demo: bool


class KeyringStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far the keyring in force has come.

    ``devices`` are those that are accepted, ``newest`` those that go by this keyring, and
    ``versions`` how many go by each version; 0 is for devices that have not said.
    """

    keyring: KeyringView
    devices: int
    newest: int
    versions: dict[int, int]


@router.get("", openapi_extra={"responses": {"200": {"description": "The keyring file."} | _FILE}})
def read(_: Public, here: Here, request: Request) -> Response:
    """The keyring file: one signed envelope a line, the newest last."""
    trust = here.keeper.trust
    headers = {"ETag": f'"{trust.sha256}"', "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(trust.file, media_type=LINES, headers=headers)


@router.put("", openapi_extra=returns(KeyringView) | {"requestBody": {"required": True} | _FILE})
async def replace(who: AsAdmin, here: Here, request: Request) -> Response:
    """Put a newer keyring in force, at once: its file is the body.

    It must follow from the keyring in force by the signatures of its owners, and name a fleet key
    that this service has (409 otherwise). The keyring in force again changes nothing.
    """
    raw = await read_body(request, LIMITS.keyring_bytes)
    trust = await run_in_threadpool(
        here.keeper.push, raw, actor=who.name, address=who.address, now_ms=here.now_ms()
    )
    here.wake()
    return answer(_view(trust))


@router.get("/status", openapi_extra=returns(KeyringStatus))
def status(_: AsViewer, here: Here) -> Response:
    """Which keyring is in force, and how many devices go by it already."""
    trust = here.keeper.trust
    with here.database.read() as session:
        versions = _versions(session)
    return answer(
        KeyringStatus(
            keyring=_view(trust),
            devices=sum(versions.values()),
            newest=versions.get(trust.keyring.version, 0),
            versions=versions,
        )
    )


def _versions(session: Session) -> dict[int, int]:
    said = func.coalesce(Device.reported["keyring"].as_integer(), 0)
    rows = session.execute(
        select(said, func.count()).where(Device.status == ACCEPTED).group_by(said).order_by(said)
    )
    return {row[0]: row[1] for row in rows}


def _view(trust: Trust) -> KeyringView:
    keyring = trust.keyring
    return KeyringView(
        version=keyring.version,
        epoch=keyring.epoch,
        issued=keyring.issued,
        owner=keyring.owner_fingerprint,
        fleet_key=trust.key.public.fingerprint,
        sha256=trust.sha256,
        demo=keyring.demo,
    )

"""Joining over REST: devices ask and renew without credentials, operators decide about them."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from edgepack_contract.enrolment import EnrolAnswer, EnrolRequest, RenewalAnswer, Standing
from edgepack_contract.limits import LIMITS
from edgepack_contract.sealing import MAC_KEY_BYTES
from edgepack_fleet import devices, enrolment
from edgepack_fleet.api.access import AsOperator, AsViewer, Caller, Public, check_every_group
from edgepack_fleet.api.answers import Cursor, Limit, answer, page, returns
from edgepack_fleet.api.bodies import JsonBody, read_body
from edgepack_fleet.api.context import Context, Here
from edgepack_fleet.api.devices import lease_ms
from edgepack_fleet.api.limits import limited
from edgepack_fleet.api.records import record
from edgepack_fleet.authority import every_list, issuer_of_devices, open_authorities
from edgepack_fleet.credentials import Papers, broker_address, membership_of, renew
from edgepack_fleet.errors import NotFoundError
from edgepack_fleet.membership import Status

router = APIRouter(prefix="/api/v1", tags=["enrolment"])

PEM_TYPE = "application/x-pem-file"
RETRY_SECONDS = 20.0
"""How often a device that waits asks again: a few of them behind one address stay within limits."""

Door = Annotated[str, Depends(limited("enrol"))]


class Approval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fingerprint of the key that was compared with what the device shows."""

    key: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Preauthorisation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device that is accepted when it asks with this key, given by its fingerprint."""

    device: str
    key: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    labels: dict[str, str] = {}


async def renewal_body(request: Request) -> bytes:
    """The envelope of a renewal, as it was sent."""
    return await read_body(request, LIMITS.message_bytes)


@router.post("/enrol", openapi_extra=returns(EnrolAnswer))
def enrol(
    who: Public, _: Door, here: Here, body: Annotated[EnrolRequest, Depends(JsonBody(EnrolRequest))]
) -> Response:
    """Ask to join, with a join token. While the answer is pending, ask the same again."""
    wish, papers = enrolment.read_wish(body), _papers(here)
    broker = broker_address(here.config, here.public_url)
    now_ms, mac_key = here.now_ms(), secrets.token_bytes(MAC_KEY_BYTES)
    with here.database.write() as session:
        outcome = enrolment.ask(session, wish, writer=here.writer, mac_key=mac_key, now_ms=now_ms)
        if outcome.new:
            detail = {"key": wish.key.fingerprint, "status": outcome.status.value}
            by = dataclasses.replace(who, name=f"join-token:{outcome.token}")
            record(
                session, by, at_ms=now_ms, action="device.enrol", subject=wish.device, detail=detail
            )
        reply = _waiting(wish, outcome, body.nonce)
        if outcome.status is Status.ACCEPTED:
            row = devices.get_device(session, wish.device)
            member = membership_of(session, row, papers, broker, now_ms=now_ms)
            reply = EnrolAnswer(status=Standing.ACCEPTED, nonce=body.nonce, member=member)
    here.wake()
    return _secret(answer(reply))


@router.post("/enrol/renew", openapi_extra=returns(RenewalAnswer))
def renewal(
    who: Public, _: Door, here: Here, raw: Annotated[bytes, Depends(renewal_body)]
) -> Response:
    """Renew a device's certificate, by an envelope that its key signed; it may have expired."""
    now_ms, papers = here.now_ms(), _papers(here)
    with here.database.write() as session:
        reply, certificate = renew(session, raw, papers, now_ms=now_ms)
        if certificate.issued_ms == now_ms:
            device = dataclasses.replace(who, name=f"device:{certificate.device}")
            record(
                session,
                device,
                at_ms=now_ms,
                action="device.renew",
                subject=certificate.device,
                detail={"serial": certificate.serial},
            )
    return answer(reply)


@router.get("/crl", include_in_schema=False)
def crl(_: Public, here: Here) -> Response:
    """The lists of revoked certificates, for brokers: one in PEM for each authority."""
    authorities = open_authorities(here.config.keys)
    if not authorities:
        raise NotFoundError(
            "this service issues no certificates: keys.authority is not set", code="no-authority"
        )
    with here.database.read() as session:
        pem = every_list(session, here.config, authorities, here.now_ms())
    return Response(pem, media_type=PEM_TYPE, headers={"Cache-Control": "no-cache"})


@router.get("/enrolments", openapi_extra=returns(enrolment.PendingView, many=True))
def pending(_: AsViewer, here: Here, after: Cursor = "", limit: Limit = 1000) -> Response:
    """List who waits to join or was rejected, by id."""
    with here.database.read() as session:
        found = enrolment.list_pending(session, after=after, limit=limit + 1)
    return page(found, limit, lambda one: one.device)


@router.get("/enrolments/{device}", openapi_extra=returns(enrolment.PendingView))
def waiting(_: AsViewer, here: Here, device: str) -> Response:
    """Who waits to join under an id."""
    with here.database.read() as session:
        found = enrolment.get_pending(session, device)
    return answer(found)


@router.post("/enrolments/{device}/approve", openapi_extra=returns(devices.DeviceView))
def approve(
    who: AsOperator,
    here: Here,
    device: str,
    body: Annotated[Approval, Depends(JsonBody(Approval))],
) -> Response:
    """Accept the device that waits under an id, if it asks with the key that was compared."""
    check_every_group(who)
    now_ms, mac_key = here.now_ms(), secrets.token_bytes(MAC_KEY_BYTES)
    with here.database.write() as session:
        row = enrolment.approve(
            session, device, body.key, writer=here.writer, mac_key=mac_key, now_ms=now_ms
        )
        detail = {"key": row.enrolment, "labels": dict(row.labels)}
        record(session, who, at_ms=now_ms, action="device.approve", subject=row.id, detail=detail)
        view = devices.view_device(session, row, now_ms=now_ms, lease_ms=lease_ms(here))
    here.wake()
    return answer(view)


@router.post("/enrolments/{device}/reject", openapi_extra=returns(enrolment.PendingView))
def reject(who: AsOperator, here: Here, device: str) -> Response:
    """Refuse the device that waits under an id."""
    check_every_group(who)
    now_ms = here.now_ms()
    with here.database.write() as session:
        detail = {"key": enrolment.reject(session, device, now_ms=now_ms).key}
        record(session, who, at_ms=now_ms, action="device.reject", subject=device, detail=detail)
        view = enrolment.get_pending(session, device)
    return answer(view)


@router.post("/preauthorised", status_code=204)
def preauthorise(
    who: AsOperator,
    here: Here,
    body: Annotated[Preauthorisation, Depends(JsonBody(Preauthorisation))],
) -> Response:
    """Announce a device by its key: it is accepted when it asks, with any join token."""
    check_every_group(who)
    now_ms = here.now_ms()
    with here.database.write() as session:
        enrolment.preauthorise(
            session, device=body.device, key=body.key, labels=body.labels, now_ms=now_ms
        )
        _announce(session, who, body, now_ms)
    return Response(status_code=204)


def _announce(session: Session, who: Caller, body: Preauthorisation, now_ms: int) -> None:
    detail = {"key": body.key, "labels": body.labels}
    action = "device.preauthorise"
    record(session, who, at_ms=now_ms, action=action, subject=body.device, detail=detail)


def _papers(here: Context) -> Papers:
    trust = here.keeper.trust
    return Papers(
        tenant=here.config.tenant,
        keyring=trust.file,
        authority=issuer_of_devices(here.config.keys, trust.keyring),
    )


def _waiting(wish: enrolment.Wish, outcome: enrolment.Outcome, nonce: str) -> EnrolAnswer:
    before = " again, because its id was a member before" if outcome.returning else ""
    words = (
        f"an operator must approve this device{before}: edgepack device approve {wish.device} "
        f"(its key is {wish.key.fingerprint})"
    )
    return EnrolAnswer(
        status=Standing.PENDING, nonce=nonce, words=words, retry_seconds=RETRY_SECONDS
    )


def _secret(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response

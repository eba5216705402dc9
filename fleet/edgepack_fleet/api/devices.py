"""Devices over REST: add, list, show, why, label, revoke, decommission."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends
from fastapi.responses import Response
from sqlalchemy.orm import Session

from edgepack_contract.messages import CandidateMode, CandidateReported
from edgepack_fleet import devices
from edgepack_fleet.api.access import AsAdmin, AsOperator, AsViewer, Caller, check_every_group
from edgepack_fleet.api.answers import Cursor, Limit, answer, page, returns
from edgepack_fleet.api.bodies import JsonBody
from edgepack_fleet.api.context import Context, Here
from edgepack_fleet.api.records import record
from edgepack_fleet.api.views import Why
from edgepack_fleet.db.schema import Device
from edgepack_fleet.enrolment import PendingView, get_pending
from edgepack_fleet.membership import Status
from edgepack_fleet.rollout.explain import why_device
from edgepack_fleet.rollouts import last_rollout_of

router = APIRouter(prefix="/api/v1/devices", tags=["devices"])


class NewDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device and the keys of its enrolment: a P-256 public key in PEM, a MAC key in hex."""

    id: str
    public_key: str
    mac_key: str
    labels: dict[str, str] = {}


@router.post("", status_code=201, openapi_extra=returns(devices.DeviceView, 201))
def add(
    who: AsAdmin, here: Here, body: Annotated[NewDevice, Depends(JsonBody(NewDevice))]
) -> Response:
    """Accept a device. The same device again is the same device."""
    now_ms = here.now_ms()
    with here.database.write() as session:
        row = devices.add_device(
            session,
            tenant=here.config.tenant,
            device=body.id,
            public_key_pem=body.public_key,
            mac_key_hex=body.mac_key,
            labels=body.labels,
            now_ms=now_ms,
        )
        detail = {"enrolment": row.enrolment, "labels": dict(row.labels)}
        record(
            session,
            who,
            at_ms=now_ms,
            action="device.add",
            subject=row.id,
            detail=detail,
        )
        view = devices.view_device(session, row, now_ms=now_ms, lease_ms=lease_ms(here))
    return answer(view, HTTPStatus.CREATED)


@router.get("", openapi_extra=returns(devices.DeviceView, many=True))
def index(_: AsViewer, here: Here, after: Cursor = "", limit: Limit = 1000) -> Response:
    """List devices by id with what they run."""
    with here.database.read() as session:
        views = devices.list_devices(
            session,
            now_ms=here.now_ms(),
            lease_ms=lease_ms(here),
            after=after,
            limit=limit + 1,
        )
    return page(views, limit, lambda view: view.id)


@router.get("/{device}", openapi_extra=returns(devices.DeviceView))
def show(_: AsViewer, here: Here, device: str) -> Response:
    """One device."""
    with here.database.read() as session:
        row = devices.get_device(session, device)
        view = devices.view_device(session, row, now_ms=here.now_ms(), lease_ms=lease_ms(here))
    return answer(dataclasses.replace(view, refused_messages=here.refused(device)))


class NewLabels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All labels that a device is to have."""

    labels: dict[str, str]


@router.post("/{device}/labels", openapi_extra=returns(devices.DeviceView))
def label(
    who: AsOperator,
    here: Here,
    device: str,
    body: Annotated[NewLabels, Depends(JsonBody(NewLabels))],
) -> Response:
    """Replace a device's labels."""
    check_every_group(who)
    return _change(
        who,
        here,
        "device.label",
        lambda session, _: devices.label_device(session, device, body.labels),
        {"labels": body.labels},
    )


@router.post("/{device}/revoke", openapi_extra=returns(devices.DeviceView))
def revoke(who: AsOperator, here: Here, device: str) -> Response:
    """End a device's membership at once; with a new key it can enrol again under its id."""
    check_every_group(who)
    return _change(
        who,
        here,
        "device.revoke",
        lambda session, now_ms: devices.revoke_device(session, device, now_ms=now_ms),
    )


@router.post("/{device}/decommission", openapi_extra=returns(devices.DeviceView))
def decommission(who: AsOperator, here: Here, device: str) -> Response:
    """End a device's membership for good, and clear what the broker keeps of it."""
    check_every_group(who)
    return _change(
        who,
        here,
        "device.decommission",
        lambda session, now_ms: devices.decommission_device(session, device, now_ms=now_ms),
    )


@router.get("/{device}/why", openapi_extra=returns(Why))
def why(_: AsViewer, here: Here, device: str) -> Response:
    """What a device runs and why, in words."""
    with here.database.read() as session:
        if devices.standing_of(session, device) in (Status.PENDING, Status.REJECTED):
            return answer(Why(why=_waiting_words(get_pending(session, device))))
        row = devices.get_device(session, device)
        view = devices.view_device(session, row, now_ms=here.now_ms(), lease_ms=lease_ms(here))
        last = last_rollout_of(session, device)
    last_words = "" if last is None else why_device(last, device)
    sentences = [*_device_words(view), last_words, _refused_words(here.refused(device))]
    return answer(Why(why=" ".join(filter(None, sentences))))


def _change(
    who: Caller,
    here: Context,
    action: str,
    change: Callable[[Session, int], Device],
    detail: dict[str, Any] | None = None,
) -> Response:
    """Do something to a device, write it down, and answer with what the device is now."""
    now_ms = here.now_ms()
    with here.database.write() as session:
        row = change(session, now_ms)
        said = detail or {"key": row.enrolment}
        record(session, who, at_ms=now_ms, action=action, subject=row.id, detail=said)
        view = devices.view_device(session, row, now_ms=now_ms, lease_ms=lease_ms(here))
    here.wake()
    return answer(view)


def _device_words(view: devices.DeviceView) -> list[str]:
    if view.status != devices.ACCEPTED:
        return [f"{view.id} was {view.status}: it is told nothing, and not heard."]
    sentences = [f"{view.id} is {view.presence}."]
    if view.clone_seen_ms is not None:
        sentences.append(
            f"A second machine with its identity was heard, last at {_moment(view.clone_seen_ms)}: "
            f"its folder was copied. Find the copy, or revoke {view.id} and enrol it anew."
        )
    for name, slot in sorted(view.slots.items()):
        runs = f"{slot.version} ({slot.running[:19]})" if slot.running else "nothing"
        phase = slot.phase.value.replace("_", " ")
        because = f": {slot.words}" if slot.words else ""
        sentences.append(f"Slot {name} runs {runs} and is {phase}{because}.")
        if slot.candidate is not None:
            sentences.append(_candidate_words(name, slot.candidate))
    if not view.slots:
        sentences.append("It has not reported what it runs.")
    if view.generation_seen < view.generation_desired:
        sentences.append(
            f"It has not reported on generation {view.generation_desired} of what it was told; the "
            f"last it reported on is {view.generation_seen}."
        )
    if view.refused:
        sentences.append(f"It refused what it was told: {view.refused}.")
    return sentences


def _candidate_words(slot: str, candidate: CandidateReported) -> str:
    one = candidate.version or (candidate.wanted or "nothing")[:19]
    sees = "answers" if candidate.mode is CandidateMode.SPLIT else "only sees"
    because = f": {candidate.words}" if candidate.words else ""
    return (
        f"Beside it in {slot} a candidate, {one}, which {sees} {100 * candidate.share:g} % of the "
        f"requests, is {candidate.phase.value.replace('_', ' ')}{because}."
    )


def _waiting_words(wish: PendingView) -> str:
    if wish.status == Status.REJECTED:
        return f"{wish.device} asked to join with key {wish.key} and was rejected."
    return (
        f"{wish.device} waits to join with key {wish.key} since {_moment(wish.asked_ms)}. Compare "
        f"the key with what the device shows, then: edgepack device approve {wish.device}"
    )


def _refused_words(refused: dict[str, int]) -> str:
    if not refused:
        return ""
    counts = ", ".join(f"{reason} {count}" for reason, count in refused.items())
    return f"Messages on its topics that were refused since the service started: {counts}."


def _moment(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def lease_ms(here: Context) -> int:
    """How long a device is online after it was last heard of, in milliseconds."""
    return int(here.config.timings.device_lease * 1000)

"""Groups over REST: create, list, show."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends
from fastapi.responses import Response
from sqlalchemy.orm import Session

from edgepack_fleet import groups
from edgepack_fleet.api.access import AsOperator, AsViewer, check_every_group
from edgepack_fleet.api.answers import answer, returns
from edgepack_fleet.api.bodies import JsonBody
from edgepack_fleet.api.context import Here
from edgepack_fleet.api.records import record
from edgepack_fleet.api.views import GroupView, group_view
from edgepack_fleet.db.schema import Group
from edgepack_fleet.errors import InvalidRequestError

router = APIRouter(prefix="/api/v1/groups", tags=["groups"])


class NewGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group by list or by labels. One of the two is absent or empty.

    ``labels`` given alone as ``{}`` select every device.
    """

    name: str
    devices: list[str] | None = None
    labels: dict[str, str] | None = None


@router.post("", status_code=201, openapi_extra=returns(GroupView, 201))
def create(
    who: AsOperator, here: Here, body: Annotated[NewGroup, Depends(JsonBody(NewGroup))]
) -> Response:
    """Create a group. The same group again is the same group.

    It takes somebody who is limited to no groups: whoever chooses what is in a group could reach
    any device with it.
    """
    check_every_group(who)
    now_ms = here.now_ms()
    labels, members = _selection(body)
    with here.database.write() as session:
        group = groups.create_group(
            session, name=body.name, labels=labels, members=members, now_ms=now_ms
        )
        record(
            session,
            who,
            at_ms=now_ms,
            action="group.create",
            subject=group.name,
            detail={"labels": labels, "devices": members},
        )
        view = _view(session, group)
    return answer(view, HTTPStatus.CREATED)


@router.get("", openapi_extra=returns(GroupView, many=True))
def index(_: AsViewer, here: Here) -> Response:
    """List groups by name with the devices in them now."""
    with here.database.read() as session:
        views = [_view(session, group) for group in groups.list_groups(session)]
    return answer({"items": views, "next": None})


@router.get("/{name}", openapi_extra=returns(GroupView))
def show(_: AsViewer, here: Here, name: str) -> Response:
    """One group."""
    with here.database.read() as session:
        return answer(_view(session, groups.get_group(session, name)))


def _view(session: Session, group: Group) -> GroupView:
    return group_view(group, [device.id for device in groups.group_members(session, group)])


def _selection(body: NewGroup) -> tuple[dict[str, str] | None, list[str] | None]:
    if body.devices is not None and body.labels is not None:
        if not body.devices and not body.labels:
            raise InvalidRequestError(
                "this group selects nothing: list devices or labels, or give 'labels': {} alone to "
                "select every device"
            )
        return body.labels or None, body.devices or None
    return body.labels, body.devices

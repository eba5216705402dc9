"""Groups of devices: by labels, or by list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_contract.names import is_id
from edgepack_fleet.db.schema import Device, Group
from edgepack_fleet.devices import ACCEPTED, check_labels, get_device
from edgepack_fleet.errors import ConflictError, InvalidRequestError, NotFoundError

MAX_MEMBERS = 100_000


def create_group(
    session: Session,
    *,
    name: str,
    labels: Mapping[str, str] | None = None,
    members: Sequence[str] | None = None,
    now_ms: int,
) -> Group:
    """Make a group of the devices that have every one of ``labels``, or of those listed.

    Empty ``labels`` select every device. The same group again is the same group.

    Raises:
        InvalidRequestError: The name is malformed, or not exactly one of the two is given.
        NotFoundError: A listed device does not exist.
        ConflictError: There is a group of this name with other devices.
    """
    if not is_id(name):
        raise InvalidRequestError(f"group name {name[:80]!r}: use 1 to 63 of a-z, 0-9 and '-'")
    if (labels is None) == (members is None):
        raise InvalidRequestError("a group has either labels or devices: give exactly one of them")
    wanted_labels = None if labels is None else check_labels(labels)
    wanted_members = None if members is None else _check_members(session, members)
    existing = session.get(Group, name)
    if existing is not None:
        if (existing.labels, existing.members) == (wanted_labels, wanted_members):
            return existing
        raise ConflictError(f"there is a group {name!r} with other devices; choose another name")
    group = Group(name=name, labels=wanted_labels, members=wanted_members, created_ms=now_ms)
    session.add(group)
    session.flush()
    return group


def get_group(session: Session, name: str) -> Group:
    """The group of this name.

    Raises:
        NotFoundError: There is none.
    """
    group = session.get(Group, name)
    if group is None:
        raise NotFoundError(f"there is no group {name[:80]!r}")
    return group


def list_groups(session: Session) -> list[Group]:
    """Every group, by name."""
    return list(session.scalars(select(Group).order_by(Group.name)))


def group_members(session: Session, group: Group) -> list[Device]:
    """The accepted devices of a group now, by id."""
    accepted = session.scalars(
        select(Device).where(Device.status == ACCEPTED).order_by(Device.id)
    ).all()
    return [device for device in accepted if is_member(group, device)]


def is_member(group: Group, device: Device) -> bool:
    """Whether a device belongs to a group."""
    if group.members is not None:
        return device.id in group.members
    return all(device.labels.get(key) == value for key, value in (group.labels or {}).items())


def _check_members(session: Session, members: Sequence[str]) -> list[str]:
    unique = sorted(set(members))
    if not 1 <= len(unique) <= MAX_MEMBERS:
        raise InvalidRequestError(f"a group lists 1 to {MAX_MEMBERS} devices")
    for device in unique:
        get_device(session, device)
    return unique

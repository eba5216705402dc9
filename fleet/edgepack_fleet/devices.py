"""Devices: who they are, and what they last said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from edgepack_contract.errors import SigningKeyError
from edgepack_contract.hardware import Hardware
from edgepack_contract.keys import PublicKey
from edgepack_contract.messages import Birth, Reported, SlotReported
from edgepack_contract.names import is_id
from edgepack_contract.sealing import MAC_KEY_BYTES
from edgepack_contract.states import Presence
from edgepack_contract.topics import RETAINED, Kind, device_topic
from edgepack_fleet.authority import revoke_certificates
from edgepack_fleet.db.schema import DesiredDocument, DesiredSlot, Device, EnrolmentRow
from edgepack_fleet.errors import ConflictError, InvalidRequestError, NotFoundError
from edgepack_fleet.membership import Status, Step, next_status, standing
from edgepack_fleet.outbox import Message, put

ACCEPTED = Status.ACCEPTED.value
MAX_LABELS = 64

_HEX_KEY = re.compile(rf"\A[0-9a-f]{{{2 * MAC_KEY_BYTES}}}\Z")
_LABEL_VALUE = re.compile(r"\A[\w .:/@+-]{0,63}\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device for people. Times are milliseconds since 1970 UTC.

    ``enrolment`` is the fingerprint of its key. ``clone_seen_ms`` is when a second holder of its
    identity was heard last. ``keyring_seen`` is the version of the keyring that it goes by.
    ``refused_messages`` counts what came on its topics and was not its own, or not in order, since
    the service started: shown for one device, not in lists.
    ``presence`` is ``online``, ``stale`` (it said online, but its lease ran out), ``offline``,
    ``lost`` or ``unknown`` (never heard of). ``generation_desired`` is what it was told last,
    ``generation_seen`` what it says it obeys.
    """

    id: str
    status: str
    labels: dict[str, str]
    presence: str
    last_seen_ms: int | None
    session: int
    hardware_class: str
    hardware: Hardware | None
    daemon: str | None
    generation_desired: int
    generation_seen: int
    refused: str | None
    desired: dict[str, str]
    slots: dict[str, SlotReported]
    created_ms: int
    enrolment: str
    certificate_expires_ms: int | None
    clone_seen_ms: int | None
    keyring_seen: int
    refused_messages: dict[str, int] = field(default_factory=dict)


def add_device(
    session: Session,
    *,
    tenant: str,
    device: str,
    public_key_pem: str,
    mac_key_hex: str,
    labels: Mapping[str, str],
    now_ms: int,
) -> Device:
    """Accept a device with its public key and MAC key. The same device again is the same device.

    Raises:
        InvalidRequestError: The id, a key or a label is malformed.
        ConflictError: There is a device of this id with other keys, or it was decommissioned.
    """
    if not is_id(device):
        raise InvalidRequestError(f"device id {device[:80]!r}: use 1 to 63 of a-z, 0-9 and '-'")
    if not _HEX_KEY.match(mac_key_hex):
        raise InvalidRequestError(f"mac_key must be {2 * MAC_KEY_BYTES} hex digits, lower case")
    try:
        public_key = PublicKey.from_pem(public_key_pem.encode(errors="replace"))
    except SigningKeyError as error:
        raise InvalidRequestError(f"public_key: {error}") from error
    mac_key, checked = bytes.fromhex(mac_key_hex), check_labels(labels)
    existing = session.get(Device, device)
    if existing is not None:
        _check_same(existing, public_key, mac_key)
        return existing
    session.execute(delete(EnrolmentRow).where(EnrolmentRow.device == device))
    row = Device(
        id=device,
        tenant=tenant,
        status=ACCEPTED,
        enrolment=public_key.fingerprint,
        public_key=public_key.pem.decode(),
        mac_key=mac_key,
        labels=checked,
        created_ms=now_ms,
    )
    session.add(row)
    session.flush()
    return row


def get_device(session: Session, device: str) -> Device:
    """The device of this id.

    Raises:
        NotFoundError: There is none.
    """
    row = session.get(Device, device)
    if row is None:
        raise NotFoundError(f"there is no device {device[:80]!r}")
    return row


def label_device(session: Session, device: str, labels: Mapping[str, str]) -> Device:
    """Replace a device's labels.

    Raises:
        NotFoundError: There is no such device.
        InvalidRequestError: A label is malformed.
    """
    row = get_device(session, device)
    row.labels = check_labels(labels)
    session.flush()
    return row


def revoke_device(session: Session, device: str, *, now_ms: int) -> Device:
    """End a device's membership at once: it is signed nothing more, heard no more, let in no more.

    What is known of it stays, and with a new key it can enrol again under its id.

    Raises:
        NotFoundError: There is no such device.
        ConflictError: It waits to join.
    """
    row = _expelled(session, device, Step.REVOKE, now_ms)
    _clear(session, row, [Kind.DESIRED], now_ms)
    return row


def decommission_device(session: Session, device: str, *, now_ms: int) -> Device:
    """End a device's membership for good, and clear what the broker keeps of it.

    Its record and its telemetry stay. A machine that later enrols under its id begins with nothing
    of what this one was told.

    Raises:
        NotFoundError: There is no such device.
        ConflictError: It waits to join.
    """
    row = _expelled(session, device, Step.DECOMMISSION, now_ms)
    _clear(session, row, sorted(RETAINED), now_ms)
    return row


def standing_of(session: Session, device: str) -> Status:
    """What an id is to the fleet."""
    row, wish = session.get(Device, device), session.get(EnrolmentRow, device)
    return standing(None if row is None else row.status, None if wish is None else wish.status)


def _expelled(session: Session, device: str, step: Step, now_ms: int) -> Device:
    after = next_status(standing_of(session, device), step, device)
    row = get_device(session, device)
    row.status = after.value
    revoke_certificates(session, device, now_ms=now_ms)
    session.flush()
    return row


def _clear(session: Session, row: Device, kinds: Sequence[Kind], now_ms: int) -> None:
    for kind in kinds:
        topic = device_topic(row.tenant, row.id, kind)
        # an empty retained message removes the one that the broker has
        put(session, Message(topic, b"", retained=True), now_ms=now_ms)
    session.flush()


def list_devices(
    session: Session, *, now_ms: int, lease_ms: int, after: str = "", limit: int = 1000
) -> list[DeviceView]:
    """Devices by id, starting after one."""
    rows = session.scalars(
        select(Device).where(Device.id > after).order_by(Device.id).limit(limit)
    ).all()
    return [view_device(session, row, now_ms=now_ms, lease_ms=lease_ms) for row in rows]


def view_device(session: Session, row: Device, *, now_ms: int, lease_ms: int) -> DeviceView:
    """A device as people see it."""
    document = session.get(DesiredDocument, row.id)
    reported, birth = last_reported(row), last_birth(row)
    wanted = session.scalars(select(DesiredSlot).where(DesiredSlot.device == row.id)).all()
    return DeviceView(
        id=row.id,
        status=row.status,
        labels=dict(row.labels),
        presence=presence(row, now_ms=now_ms, lease_ms=lease_ms),
        last_seen_ms=row.last_seen_ms,
        session=row.session,
        hardware_class=row.hardware_class,
        hardware=None if birth is None else birth.hardware,
        daemon=None if birth is None else birth.daemon,
        generation_desired=0 if document is None else document.generation,
        generation_seen=row.generation_seen,
        refused=row.refused,
        desired={slot.slot: slot.digest for slot in wanted},
        slots={} if reported is None else reported.slots,
        created_ms=row.created_ms,
        enrolment=row.enrolment,
        certificate_expires_ms=row.certificate_expires_ms,
        clone_seen_ms=row.clone_seen_ms,
        keyring_seen=0 if reported is None else reported.keyring,
    )


def presence(row: Device, *, now_ms: int, lease_ms: int) -> str:
    """The presence of a device by what it said and by the fleet's own lease."""
    if row.presence == Presence.ONLINE and not _lease_holds(row, now_ms, lease_ms):
        return "stale"
    return row.presence


def is_online(row: Device, *, now_ms: int, lease_ms: int) -> bool:
    """Whether a device said that it is online, and was heard of within its lease."""
    return row.presence == Presence.ONLINE and _lease_holds(row, now_ms, lease_ms)


def last_reported(row: Device) -> Reported | None:
    """What the device reported last."""
    return None if row.reported is None else msgspec.convert(row.reported, Reported)


def last_birth(row: Device) -> Birth | None:
    """How the device introduced itself last."""
    return None if row.birth is None else msgspec.convert(row.birth, Birth)


def hardware_class(hardware: Hardware) -> str:
    """What counts as one kind of machine: architecture and board or processor model."""
    return f"{hardware.architecture}/{hardware.model}"[:128]


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels whose keys are ids and whose values are short plain text.

    Raises:
        InvalidRequestError: One is not.
    """
    if len(labels) > MAX_LABELS:
        raise InvalidRequestError(f"a device has at most {MAX_LABELS} labels")
    for key, value in labels.items():
        if not is_id(key) or not _LABEL_VALUE.match(value):
            raise InvalidRequestError(
                f"label {key[:80]!r} = {value[:80]!r}: keys are 1 to 63 of a-z, 0-9 and '-', "
                "values at most 63 letters, digits, spaces and . _ : / @ + -"
            )
    return dict(sorted(labels.items()))


def _lease_holds(row: Device, now_ms: int, lease_ms: int) -> bool:
    return row.last_seen_ms is not None and now_ms - row.last_seen_ms <= lease_ms


def _check_same(existing: Device, public_key: PublicKey, mac_key: bytes) -> None:
    same = (existing.enrolment, existing.mac_key) == (public_key.fingerprint, mac_key)
    if not same or existing.status != ACCEPTED:
        raise ConflictError(
            f"there is a device {existing.id!r} ({existing.status}) with "
            f"{'these' if same else 'other'} keys; choose another id"
        )

"""How devices become members: wishes to join, approval, and what a member is given.

Who asks shows a join token and, by a certificate request, that it has the private key of the id it
wants. Every function works in the caller's transaction, which also writes the audit log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from edgepack_contract.certificates import read_request
from edgepack_contract.enrolment import EnrolRequest
from edgepack_contract.errors import SigningKeyError
from edgepack_contract.keys import PublicKey
from edgepack_contract.names import is_id
from edgepack_fleet.db.schema import (
    DesiredDocument,
    DesiredSlot,
    Device,
    EnrolmentRow,
    JoinTokenRow,
    PreauthorisedRow,
)
from edgepack_fleet.desired import DesiredWriter
from edgepack_fleet.devices import check_labels, standing_of
from edgepack_fleet.errors import ConflictError, InvalidRequestError, NotFoundError
from edgepack_fleet.join_tokens import Mode, use_join_token
from edgepack_fleet.membership import Status, Step, asking, next_status
from edgepack_fleet.tokens import secret_hash

MAX_PENDING = 10_000
PENDING_MS = 7 * 86_400_000
"""How long a wish is kept that nobody approves; then it needs a new token."""

_UNSETTLED = (Status.PENDING.value, Status.REJECTED.value)


@dataclass(frozen=True, slots=True)
class Wish:
    """A wish to join whose sender has the private key. ``token`` is a secret."""

    device: str
    key: PublicKey
    labels: Mapping[str, str]
    token: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a wish.

    Attributes:
        status: What the id is now.
        token: The name of the join token.
        new: Whether that is news; else it was so before.
        returning: Whether the id was a member before, so that no token alone lets it in.
    """

    status: Status
    token: str
    new: bool
    returning: bool


@dataclass(frozen=True, slots=True)
class PendingView:
    """Who waits to join, or was rejected. ``key`` is the fingerprint to compare at the device."""

    device: str
    status: str
    key: str
    labels: dict[str, str]
    token: str
    asked_ms: int
    expires_ms: int


def read_wish(request: EnrolRequest) -> Wish:
    """Check a request as far as that can be done without knowing anything.

    Raises:
        MalformedDocumentError: The certificate request is none, or its sender has not the key.
        InvalidRequestError: Its key, the id it names or a label is not acceptable.
    """
    try:
        asked = read_request(request.request.encode(errors="replace"))
    except SigningKeyError as error:
        raise InvalidRequestError(f"request: {error}", code=error.code) from error
    if not is_id(asked.common_name):
        raise InvalidRequestError(
            f"the request names {asked.common_name[:80]!r} as the device's id: use 1 to 63 of a-z, "
            "0-9 and '-'",
            code="bad-id",
        )
    return Wish(asked.common_name, asked.key, check_labels(request.labels), request.token)


def ask(
    session: Session, wish: Wish, *, writer: DesiredWriter, mac_key: bytes, now_ms: int
) -> Outcome:
    """Take a wish to join. The same key with the same token again is the same wish.

    Args:
        session: The transaction.
        wish: What was asked.
        writer: Tells a device that comes back what to run.
        mac_key: A new key, for a device that is accepted now.
        now_ms: The time.

    Raises:
        NotAdmittedError: The token is worthless (``bad-join-token``), or this key was rejected or
            revoked.
        ConflictError: The id or the key belongs to somebody else, or too many wait already.
    """
    _forget_old(session, now_ms)
    row, device = session.get(EnrolmentRow, wish.device), session.get(Device, wish.device)
    token = _entitled(session, wish, row, now_ms)
    expected = session.get(PreauthorisedRow, wish.key.fingerprint)
    if expected is not None and expected.device != wish.device:
        expected = None
    before = standing_of(session, wish.device)
    again = _is_again(wish.key.fingerprint, before, row, device)
    by_token = token is not None and token.mode == Mode.AUTO and device is None
    step = asking(admitted=by_token or expected is not None, again=again)
    after = next_status(before, step, wish.device)
    if row is None or not again:
        _refuse_used_key(session, wish)
        row = _new_row(wish, row)
    if token is not None:
        row.token, row.token_hash, row.asked_ms = token.name, token.hash, now_ms
        row.labels = check_labels(row.labels | token.labels)
    row.status = after.value
    session.add(row)
    if after is Status.ACCEPTED and before is not Status.ACCEPTED:
        row.labels = check_labels(row.labels | (expected.labels if expected is not None else {}))
        _accept(session, row, writer=writer, mac_key=mac_key, now_ms=now_ms)
    session.flush()
    if before is not Status.PENDING and after is Status.PENDING:
        _refuse_crowd(session)
    news = before is not after or not again
    return Outcome(after, row.token, new=news, returning=device is not None)


def approve(
    session: Session, device: str, key: str, *, writer: DesiredWriter, mac_key: bytes, now_ms: int
) -> Device:
    """Accept the device that waits under an id, if it has the key that was looked at.

    Raises:
        NotFoundError: Nobody asked.
        ConflictError: Nobody waits, or with another key.
    """
    before = standing_of(session, device)
    next_status(before, Step.APPROVE, device)
    member = session.get(Device, device)
    if before is Status.ACCEPTED and member is not None:
        _refuse_other_key(device, member.enrolment, key)
        return member
    row = session.get_one(EnrolmentRow, device)
    _refuse_other_key(device, row.key, key)
    return _accept(session, row, writer=writer, mac_key=mac_key, now_ms=now_ms)


def reject(session: Session, device: str, *, now_ms: int) -> EnrolmentRow:
    """Refuse the device that waits under an id. It is remembered as long as a wish is.

    Raises:
        NotFoundError: Nobody asked.
        ConflictError: It is a member, or nobody waits.
    """
    after = next_status(standing_of(session, device), Step.REJECT, device)
    row = session.get_one(EnrolmentRow, device)
    row.status, row.asked_ms = after.value, now_ms
    session.flush()
    return row


def preauthorise(
    session: Session, *, device: str, key: str, labels: Mapping[str, str], now_ms: int
) -> None:
    """Announce that a device will ask with this key; it is then accepted without waiting.

    A former announcement for the id is replaced.

    Raises:
        InvalidRequestError: The id or a label is malformed.
        ConflictError: The id is a member, or the key belongs to a device.
    """
    if not is_id(device):
        raise InvalidRequestError(f"device id {device[:80]!r}: use 1 to 63 of a-z, 0-9 and '-'")
    if standing_of(session, device) is Status.ACCEPTED:
        raise ConflictError(f"{device} is a member already", code="is-member")
    _refuse_key_of_device(session, key)
    session.execute(
        delete(PreauthorisedRow).where(
            (PreauthorisedRow.device == device) | (PreauthorisedRow.key == key)
        )
    )
    session.add(
        PreauthorisedRow(key=key, device=device, labels=check_labels(labels), created_ms=now_ms)
    )
    session.flush()


def list_pending(session: Session, *, after: str = "", limit: int = 1000) -> list[PendingView]:
    """Who waits or was rejected, by id, starting after one."""
    rows = session.scalars(
        select(EnrolmentRow)
        .where(EnrolmentRow.status.in_(_UNSETTLED), EnrolmentRow.device > after)
        .order_by(EnrolmentRow.device)
        .limit(limit)
    )
    return [_view(row) for row in rows]


def get_pending(session: Session, device: str) -> PendingView:
    """The wish to join under an id.

    Raises:
        NotFoundError: Nobody waits.
    """
    row = session.get(EnrolmentRow, device)
    if row is None or row.status not in _UNSETTLED:
        raise NotFoundError(f"nobody waits to join as {device[:80]!r}")
    return _view(row)


def _entitled(
    session: Session, wish: Wish, row: EnrolmentRow | None, now_ms: int
) -> JoinTokenRow | None:
    """The token of a wish, counted; None when this key has shown this token before."""
    shown = (wish.key.fingerprint, secret_hash(wish.token))
    if row is not None and (row.key, row.token_hash) == shown:
        return None
    return use_join_token(session, wish.token, now_ms=now_ms)


def _is_again(key: str, status: Status, row: EnrolmentRow | None, device: Device | None) -> bool:
    """Whether the key is the one that the status is about.

    The key of a device that was revoked is refused by that, whoever else waits under its id.
    """
    if device is not None and key == device.enrolment:
        if status is not Status.ACCEPTED:
            next_status(Status(device.status), Step.ASK_AGAIN, device.id)
        return True
    return row is not None and status in _UNSETTLED and key == row.key


def _refuse_used_key(session: Session, wish: Wish) -> None:
    used = session.scalars(
        select(Device.id).where(Device.enrolment == wish.key.fingerprint).limit(1)
    ).first()
    if used is not None and used != wish.device:
        raise _key_taken(used)


def _refuse_key_of_device(session: Session, key: str) -> None:
    used = session.scalars(select(Device.id).where(Device.enrolment == key).limit(1)).first()
    if used is not None:
        raise _key_taken(used)


def _key_taken(device: str) -> ConflictError:
    return ConflictError(
        f"this key is the one of device {device}; every device makes its own (was the image of a "
        "device copied?): enrol with a new one",
        code="key-taken",
    )


def _refuse_other_key(device: str, asked: str, looked_at: str) -> None:
    if asked != looked_at:
        raise ConflictError(
            f"{device} asks with key {asked}, not with {looked_at}: look again, and compare it "
            "with what the device shows",
            code="other-key",
        )


def _refuse_crowd(session: Session) -> None:
    waiting = session.scalar(
        select(func.count())
        .select_from(EnrolmentRow)
        .where(EnrolmentRow.status == Status.PENDING.value)
    )
    if (waiting or 0) > MAX_PENDING:
        raise ConflictError(
            f"{MAX_PENDING} devices wait for approval already; an operator must approve or reject "
            "some (edgepack device pending)",
            code="too-many-pending",
        )


def _forget_old(session: Session, now_ms: int) -> None:
    session.execute(
        delete(EnrolmentRow).where(
            EnrolmentRow.status.in_(_UNSETTLED), EnrolmentRow.asked_ms < now_ms - PENDING_MS
        )
    )


def _new_row(wish: Wish, row: EnrolmentRow | None) -> EnrolmentRow:
    fresh = row if row is not None else EnrolmentRow(device=wish.device)
    fresh.key, fresh.public_key = wish.key.fingerprint, wish.key.pem.decode()
    fresh.labels = dict(wish.labels)
    return fresh


def _accept(
    session: Session, row: EnrolmentRow, *, writer: DesiredWriter, mac_key: bytes, now_ms: int
) -> Device:
    """Make who asked a member: a new device, or the one of this id begun anew."""
    session.execute(delete(PreauthorisedRow).where(PreauthorisedRow.device == row.device))
    device = session.get(Device, row.device)
    if device is None:
        device = Device(id=row.device, tenant=writer.tenant, created_ms=now_ms, labels={})
    elif device.status == Status.DECOMMISSIONED:
        session.execute(delete(DesiredSlot).where(DesiredSlot.device == row.device))
        session.execute(delete(DesiredDocument).where(DesiredDocument.device == row.device))
        device.labels = {}
    # what the fleet said of the device before wins over what it proposes now
    device.labels = check_labels(row.labels | device.labels)
    device.enrolment, device.public_key, device.mac_key = row.key, row.public_key, mac_key
    device.status = row.status = Status.ACCEPTED.value
    _begin_anew(device)
    session.add(device)
    session.flush()
    writer.issue(session, row.device, now_ms=now_ms)
    return device


def _begin_anew(device: Device) -> None:
    """Forget what the former holder of the id said: sequences, sessions and reports are new."""
    device.presence = device.hardware_class = "unknown"
    device.session = device.state_sequence = device.birth_sequence = 0
    device.reported_sequence = device.health_sequence = 0
    device.generation_seen = device.epoch_seen = 0
    device.last_seen_ms = device.clock_offset_ms = device.birth_at_ms = None
    device.clone_seen_ms = device.certificate_expires_ms = None
    device.birth = device.reported = device.health = device.refused = None


def _view(row: EnrolmentRow) -> PendingView:
    return PendingView(
        device=row.device,
        status=row.status,
        key=row.key,
        labels=dict(row.labels),
        token=row.token,
        asked_ms=row.asked_ms,
        expires_ms=row.asked_ms + PENDING_MS,
    )

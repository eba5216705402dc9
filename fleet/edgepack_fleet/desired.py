"""What each device should run: slots in the database, one signed document per device.

The document is derived: slots plus the address of the bundle store plus the keyring's epoch. Its
generation grows when, and only when, what it asks for changes; the same generation is issued again
with a newer date before it expires. It is written in the transaction of the decision, and goes out
through the outbox after the commit.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from edgepack_contract.instructions import sign_desired, slots_digest
from edgepack_contract.keys import PrivateKey
from edgepack_contract.messages import Desired, Probation, Ref, SlotDesired
from edgepack_contract.topics import Kind, device_topic
from edgepack_fleet.db.schema import DesiredDocument, DesiredSlot, Device
from edgepack_fleet.devices import ACCEPTED, get_device
from edgepack_fleet.outbox import Message, put


@dataclass(frozen=True, slots=True)
class SlotWish:
    """What one slot of one device should run, and who decided it."""

    device: str
    slot: str
    bundle_name: str
    digest: str
    probation: Probation
    decided_by: str


@dataclass(frozen=True, slots=True)
class DesiredWriter:
    """Turns wishes into signed documents.

    Attributes:
        tenant: The tenant of every device.
        key: The fleet key, one of the keyring's.
        epoch: The keyring's epoch.
        base_url: Where devices pull bundles: ``http(s)://HOST[:PORT]``.
        ttl_ms: How long a document is valid.
        refresh_ms: At which age it is issued again.
    """

    tenant: str
    key: PrivateKey
    epoch: int
    base_url: str
    ttl_ms: int
    refresh_ms: int

    def wish(self, session: Session, wish: SlotWish, *, now_ms: int) -> int:
        """Record a wish, issue the document when it changed, and return its generation.

        Raises:
            NotFoundError: There is no such device.
        """
        get_device(session, wish.device)
        row = session.get(DesiredSlot, (wish.device, wish.slot))
        if row is None:
            row = DesiredSlot(device=wish.device, slot=wish.slot, retry_blocked=[])
            session.add(row)
        row.bundle_name, row.digest = wish.bundle_name, wish.digest
        row.probation = msgspec.to_builtins(wish.probation)
        row.decided_by, row.changed_ms = wish.decided_by, now_ms
        session.flush()
        self.issue(session, wish.device, now_ms=now_ms)
        return session.get_one(DesiredDocument, wish.device).generation

    def issue(self, session: Session, device: str, *, now_ms: int) -> bool:
        """Issue a device's document if it asks for something new or is due; say whether."""
        row = get_device(session, device)
        slots = self._slots(session, device)
        if not slots or row.status != ACCEPTED:
            return False
        last = session.get(DesiredDocument, device)
        desired = self._document(row, slots, last, now_ms)
        if last is not None and not self._is_due(desired, last, now_ms):
            return False
        self._store(session, desired, last, now_ms)
        return True

    def issue_due(self, session: Session, *, now_ms: int) -> int:
        """Issue what is old, and what a device that knows a later generation would refuse.

        Such a device has obeyed documents that this database has forgotten: it was restored from a
        backup. The documents of this database then continue after the device's generation.
        """
        document = DesiredDocument
        due = session.scalars(
            select(document.device)
            .join(Device, Device.id == document.device)
            .where(Device.status == ACCEPTED)
            .where(
                or_(
                    document.issued_ms <= now_ms - self.refresh_ms,
                    and_(
                        Device.epoch_seen == document.epoch,
                        Device.generation_seen > document.generation,
                    ),
                    and_(
                        Device.generation_seen == document.generation,
                        Device.refused.startswith("equivocation: "),
                    ),
                )
            )
        ).all()
        return sum(self.issue(session, device, now_ms=now_ms) for device in due)

    def issue_changed(self, session: Session, *, now_ms: int) -> int:
        """Issue every document that an earlier run wrote with another address, key or epoch."""
        devices = session.scalars(select(DesiredDocument.device)).all()
        return sum(self.issue(session, device, now_ms=now_ms) for device in devices)

    def _is_due(self, desired: Desired, last: DesiredDocument, now_ms: int) -> bool:
        return (
            desired.generation != last.generation
            or last.signed_by != self.key.public.fingerprint
            or now_ms >= last.issued_ms + self.refresh_ms
        )

    def _slots(self, session: Session, device: str) -> dict[str, SlotDesired]:
        rows = session.scalars(
            select(DesiredSlot).where(DesiredSlot.device == device).order_by(DesiredSlot.slot)
        )
        return {row.slot: self._slot(row) for row in rows}

    def _slot(self, row: DesiredSlot) -> SlotDesired:
        source = f"{self.base_url}/{row.bundle_name}"
        return SlotDesired(
            active=Ref(name=row.bundle_name, digest=row.digest, sources=[source]),
            probation=msgspec.convert(row.probation, Probation),
            retry_blocked=row.retry_blocked,
        )

    def _document(
        self,
        row: Device,
        slots: dict[str, SlotDesired],
        last: DesiredDocument | None,
        now_ms: int,
    ) -> Desired:
        # a date that is not newer would be refused as a replay after the clock was set back
        issued = now_ms if last is None else max(now_ms, last.issued_ms + 1)
        desired = Desired(
            tenant=self.tenant,
            device=row.id,
            enrolment=row.enrolment,
            epoch=self.epoch,
            generation=1 if last is None else last.generation,
            issued=issued,
            expires=issued + self.ttl_ms,
            slots=slots,
        )
        if last is None or not _is_same(desired, last) or _is_behind(row, last):
            seen = row.generation_seen if row.epoch_seen == self.epoch else 0
            generation = max(seen, 0 if last is None else last.generation) + 1
            desired = msgspec.structs.replace(desired, generation=generation)
        return desired

    def _store(
        self, session: Session, desired: Desired, last: DesiredDocument | None, now_ms: int
    ) -> None:
        row = last or DesiredDocument(device=desired.device)
        row.generation, row.epoch, row.enrolment = (
            desired.generation,
            desired.epoch,
            desired.enrolment,
        )
        row.slots_digest = slots_digest(desired)
        row.issued_ms, row.expires_ms = desired.issued, desired.expires
        row.topic = device_topic(self.tenant, desired.device, Kind.DESIRED)
        row.signed_by = self.key.public.fingerprint
        row.envelope = sign_desired(desired, self.key)
        session.add(row)
        put(session, Message(row.topic, row.envelope, retained=True), now_ms=now_ms)
        session.flush()


def put_all_again(session: Session, *, now_ms: int) -> int:
    """Publish every document again, the same bytes: what a broker retains is only a cache."""
    rows = session.execute(
        select(DesiredDocument.topic, DesiredDocument.envelope)
        .join(Device, Device.id == DesiredDocument.device)
        .where(Device.status == ACCEPTED)
    ).all()
    for topic, envelope in rows:
        put(session, Message(topic, envelope, retained=True), now_ms=now_ms)
    return len(rows)


def _is_same(desired: Desired, last: DesiredDocument) -> bool:
    return (slots_digest(desired), desired.epoch, desired.enrolment) == (
        last.slots_digest,
        last.epoch,
        last.enrolment,
    )


def _is_behind(row: Device, last: DesiredDocument) -> bool:
    """Whether the device knows this generation, or a later one, as something else."""
    if row.epoch_seen != last.epoch:
        return False
    # the words behind the code may be a stranger's
    equivocates = row.refused is not None and row.refused.startswith("equivocation: ")
    return row.generation_seen > last.generation or (
        row.generation_seen == last.generation and equivocates
    )

"""What each device should run: slots in the database, one signed document per device.

The document is derived: slots plus the address of the bundle store plus the keyring's epoch. Its
generation grows when, and only when, what it asks for changes, and begins anew in a new epoch; the
same generation is issued again with a newer date before it expires, and when another key signs. It
is written in the transaction of the decision, and goes out through the outbox after the commit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from sqlalchemy import ColumnElement, and_, or_, select, true
from sqlalchemy.orm import Session

from edgepack_contract.instructions import sign_desired, slots_digest
from edgepack_contract.messages import Desired, Probation, Ref, SlotDesired
from edgepack_contract.topics import Kind, device_topic
from edgepack_fleet.db.schema import DesiredDocument, DesiredSlot, Device
from edgepack_fleet.devices import ACCEPTED, get_device
from edgepack_fleet.outbox import Message, put
from edgepack_fleet.trust import Trust

BATCH = 200
"""Documents that are issued in one transaction: others wait for it."""


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
class Batch:
    """How many documents were issued, and behind which device there may be more; None if none."""

    issued: int
    last: str | None


@dataclass(frozen=True, slots=True)
class DesiredWriter:
    """Turns wishes into signed documents.

    Attributes:
        tenant: The tenant of every device.
        trusted: Gives the keyring in force and the fleet key; asked once for each document.
        base_url: Where devices pull bundles: ``http(s)://HOST[:PORT]``.
        ttl_ms: How long a document is valid.
        refresh_ms: At which age it is issued again.
    """

    tenant: str
    trusted: Callable[[], Trust]
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
        trust = self.trusted()
        last = session.get(DesiredDocument, device)
        desired = self._document(row, slots, last, trust.keyring.epoch, now_ms)
        if last is not None and not self._is_due(desired, last, trust, now_ms):
            return False
        self._store(session, desired, last, trust, now_ms)
        return True

    def issue_due(self, session: Session, *, now_ms: int, after: str = "") -> Batch:
        """Issue what is old, what another key or epoch signed, and what a device would refuse.

        A device refuses when it has obeyed documents that this database has forgotten, because it
        was restored from a backup. The documents of this database then continue after the device's
        generation. At most ``BATCH`` devices behind ``after`` are looked at.
        """
        document, trust = DesiredDocument, self.trusted()
        due = or_(
            document.issued_ms <= now_ms - self.refresh_ms,
            document.epoch != trust.keyring.epoch,
            document.signed_by != trust.key.public.fingerprint,
            and_(Device.epoch_seen == document.epoch, Device.generation_seen > document.generation),
            and_(
                Device.generation_seen == document.generation,
                Device.refused.startswith("equivocation: "),
            ),
        )
        return self._issue_batch(session, due, now_ms=now_ms, after=after)

    def issue_changed(self, session: Session, *, now_ms: int, after: str = "") -> Batch:
        """Issue what an earlier run wrote otherwise, with another address, key or epoch.

        At most ``BATCH`` devices behind ``after`` are looked at.
        """
        return self._issue_batch(session, true(), now_ms=now_ms, after=after)

    def _issue_batch(
        self, session: Session, due: ColumnElement[bool], *, now_ms: int, after: str
    ) -> Batch:
        devices = session.scalars(
            select(DesiredDocument.device)
            .join(Device, Device.id == DesiredDocument.device)
            .where(Device.status == ACCEPTED, DesiredDocument.device > after, due)
            .order_by(DesiredDocument.device)
            .limit(BATCH)
        ).all()
        issued = sum(self.issue(session, device, now_ms=now_ms) for device in devices)
        return Batch(issued, devices[-1] if len(devices) == BATCH else None)

    def _is_due(self, desired: Desired, last: DesiredDocument, trust: Trust, now_ms: int) -> bool:
        return (
            (desired.epoch, desired.generation) != (last.epoch, last.generation)
            or last.signed_by != trust.key.public.fingerprint
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
        epoch: int,
        now_ms: int,
    ) -> Desired:
        # a date that is not newer would be refused as a replay after the clock was set back
        issued = now_ms if last is None else max(now_ms, last.issued_ms + 1)
        desired = Desired(
            tenant=self.tenant,
            device=row.id,
            enrolment=row.enrolment,
            epoch=epoch,
            generation=1 if last is None else last.generation,
            issued=issued,
            expires=issued + self.ttl_ms,
            slots=slots,
        )
        if last is None or not _is_same(desired, last) or _is_behind(row, last):
            # a thief of the fleet key may have made devices obey any generation of an earlier epoch
            known = last.generation if last is not None and last.epoch == epoch else 0
            seen = row.generation_seen if row.epoch_seen == epoch else 0
            desired = msgspec.structs.replace(desired, generation=max(seen, known) + 1)
        return desired

    def _store(
        self,
        session: Session,
        desired: Desired,
        last: DesiredDocument | None,
        trust: Trust,
        now_ms: int,
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
        row.signed_by = trust.key.public.fingerprint
        row.envelope = sign_desired(desired, trust.key)
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

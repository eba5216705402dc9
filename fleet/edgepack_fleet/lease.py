"""The lease that makes one replica drive the rollouts.

One row per role: holder, epoch, expiry. The epoch grows with every change of holder, and every
driving transaction checks holder and epoch inside itself, so that a replica which was paused for a
minute and wakes up as a former holder cannot commit what it had in mind.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from edgepack_fleet.db.schema import LeaseRow
from edgepack_fleet.errors import LeaseLostError

DRIVER = "driver"


@dataclass(frozen=True, slots=True)
class Lease:
    """What a holder shows in every driving transaction."""

    name: str
    holder: str
    epoch: int


def acquire(
    session: Session, *, name: str, holder: str, now_ms: int, ttl_ms: int, alone: bool = False
) -> Lease | None:
    """Take or renew the lease.

    Args:
        session: A writing transaction.
        name: The role.
        holder: Who asks; unique to a run of a process.
        now_ms: The time.
        ttl_ms: How long it holds without a renewal.
        alone: The caller has proof that no other process can hold it (such as the lock of the
            database file), so a predecessor's lease need not run out first.

    Returns:
        The lease, or None while somebody else has it.
    """
    row = session.get(LeaseRow, name)
    if row is None:
        row = LeaseRow(name=name, holder=holder, epoch=1, expires_ms=now_ms + ttl_ms)
        session.add(row)
    elif row.holder == holder:
        row.expires_ms = now_ms + ttl_ms
    elif alone or row.expires_ms <= now_ms:
        row.holder, row.epoch, row.expires_ms = holder, row.epoch + 1, now_ms + ttl_ms
    else:
        return None
    session.flush()
    return Lease(name, holder, row.epoch)


def check(session: Session, lease: Lease, *, now_ms: int) -> None:
    """Refuse to go on when the lease is not held any more.

    Raises:
        LeaseLostError: Another replica took it, or it ran out.
    """
    row = session.get(LeaseRow, lease.name)
    held = row is not None and (row.holder, row.epoch) == (lease.holder, lease.epoch)
    if row is None or not held or row.expires_ms <= now_ms:
        raise LeaseLostError(
            f"{lease.holder} no longer holds the {lease.name} lease of epoch {lease.epoch}; "
            "nothing of this transaction is kept"
        )


def release(session: Session, lease: Lease, *, now_ms: int) -> None:
    """Give the lease back, so that a successor need not wait; the epoch stays."""
    row = session.get(LeaseRow, lease.name)
    if row is not None and (row.holder, row.epoch) == (lease.holder, lease.epoch):
        row.expires_ms = now_ms

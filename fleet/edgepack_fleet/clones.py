"""Two machines with one identity: how the fleet notices that a device's folder was copied.

A daemon's session grows with every start, so the fleet follows the newest session of a device. What
an older session says is late, normally. But what it says of a time when the newer one had begun, a
second holder of the keys has said.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from edgepack_fleet.auditlog import append_audit
from edgepack_fleet.db.schema import Device

TOLERANCE_MS = 60_000
"""How far the clock of a device and that of the fleet may be apart."""

FLEET = "fleet"
DAY_MS = 86_400_000


def is_second_holder(said_at_ms: int, *, began_ms: int | None, now_ms: int) -> bool:
    """Whether a message of an older session cannot be of the machine that has the newer one.

    A message that is dated in the future proves a wrong clock and nothing more.

    Args:
        said_at_ms: When the message says that it was made.
        began_ms: The latest at which the newer session can have begun, on both clocks.
        now_ms: The fleet's clock.
    """
    if began_ms is None:
        return False
    return began_ms + TOLERANCE_MS < said_at_ms <= now_ms + TOLERANCE_MS


def note_clone(session: Session, device: Device, *, now_ms: int) -> None:
    """Write down that a second holder was heard; in the audit log once a day."""
    last = device.clone_seen_ms
    device.clone_seen_ms = now_ms
    if last is None or last // DAY_MS != now_ms // DAY_MS:
        append_audit(
            session,
            at_ms=now_ms,
            actor=FLEET,
            action="device.clone",
            subject=device.id,
            detail={"enrolment": device.enrolment, "session": device.session},
        )

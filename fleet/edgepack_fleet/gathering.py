"""Evidence for a rollout's decisions, gathered from the database."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_fleet.db.schema import DesiredDocument, Device, Group
from edgepack_fleet.devices import ACCEPTED, is_online, last_reported
from edgepack_fleet.groups import is_member
from edgepack_fleet.rollout.evidence import DeviceEvidence, Evidence, wanted_blocks
from edgepack_fleet.rollout.model import Rollout
from edgepack_fleet.telemetry import count_crashes, load_blocks

CHUNK = 10_000
"""How many ids one query names at most; SQLite takes 32,766."""


def gather_evidence(session: Session, rollout: Rollout, *, now_ms: int, lease_ms: int) -> Evidence:
    """What is known of every device of a rollout, and the telemetry that its gates look at.

    Args:
        session: A reading transaction: all of it is of one moment.
        rollout: The rollout as it is stored.
        now_ms: The time.
        lease_ms: How long a device is online after it was last heard of.
    """
    names = sorted(rollout.updates)
    rows = _devices(session, names)
    generations = _generations(session, names)
    group = session.get(Group, rollout.group)
    crashes = count_crashes(session, rollout.digest, since_ms=rollout.started_ms or 0)
    devices = {
        name: _of_device(
            rows[name],
            rollout.slot,
            desired=generations.get(name, (0, 0)),
            online=is_online(rows[name], now_ms=now_ms, lease_ms=lease_ms),
            crashes=crashes.get(name, 0),
            removed=_is_removed(group, rows[name]),
        )
        for name in names
        if name in rows
    }
    return Evidence(devices, load_blocks(session, wanted_blocks(rollout)))


def _of_device(
    row: Device,
    slot: str,
    *,
    desired: tuple[int, int],
    online: bool,
    crashes: int,
    removed: bool,
) -> DeviceEvidence:
    reported = last_reported(row)
    epoch, generation = desired
    return DeviceEvidence(
        online=online,
        last_seen_ms=row.last_seen_ms,
        reported=None if reported is None else reported.slots.get(slot),
        # a generation of an earlier epoch says nothing about one of this epoch
        generation_seen=row.generation_seen if row.epoch_seen >= epoch else 0,
        generation_desired=generation,
        refused=row.refused,
        crashes=crashes,
        removed=removed,
    )


def _is_removed(group: Group | None, row: Device) -> bool:
    return row.status != ACCEPTED or (group is not None and not is_member(group, row))


def _devices(session: Session, names: list[str]) -> dict[str, Device]:
    found: dict[str, Device] = {}
    for start in range(0, len(names), CHUNK):
        rows = session.scalars(select(Device).where(Device.id.in_(names[start : start + CHUNK])))
        found |= {row.id: row for row in rows}
    return found


def _generations(session: Session, names: list[str]) -> dict[str, tuple[int, int]]:
    """Epoch and generation of the document that each device was last told to obey."""
    document = DesiredDocument
    found: dict[str, tuple[int, int]] = {}
    for start in range(0, len(names), CHUNK):
        rows = session.execute(
            select(document.device, document.epoch, document.generation).where(
                document.device.in_(names[start : start + CHUNK])
            )
        )
        found |= {device: (epoch, generation) for device, epoch, generation in rows}
    return found

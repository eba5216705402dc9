"""Whether devices can run a bundle, and what a bundle says that decides which gates apply."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_contract.description import Description
from edgepack_contract.errors import UnsupportedBundleError
from edgepack_contract.oci import ImageIndex, parse_index
from edgepack_contract.variants import select_variant
from edgepack_fleet.db.schema import Bundle, Device
from edgepack_fleet.devices import last_birth, last_reported
from edgepack_fleet.rollout.gates import BundleFacts
from edgepack_fleet.rollout.planning import Target
from edgepack_fleet.rollout.returning import WayBack, below_floor
from edgepack_fleet.trust import Trust


def incompatible_devices(
    bundle: Bundle, members: list[Device], ways: Sequence[WayBack]
) -> dict[str, str]:
    """Why a device cannot run a bundle, by device.

    A device that never said what it is may be able to: it is not among them.
    """
    index = parse_index(bundle.oci_index)
    reasons = {device.id: _misfit(index, device) for device in members}
    misfits = {device: reason for device, reason in reasons.items() if reason is not None}
    return below_floor(bundle.security_version, bundle.digest, ways) | misfits


def ways_back(session: Session, trust: Trust, members: list[Device], slot: str) -> list[WayBack]:
    """What devices that have reported run in a slot now, and what is known of it."""
    bundles = {
        one.digest: one for one in session.scalars(select(Bundle).where(Bundle.name == slot))
    }
    refusals = {digest: trust.unvouched(bundle) for digest, bundle in bundles.items()}
    found = []
    for device in members:
        reported = last_reported(device)
        if reported is None:
            continue
        here = reported.slots.get(slot)
        if here is None or here.running is None:
            found.append(WayBack(device.id))
            continue
        bundle = bundles.get(here.running)
        way = WayBack(
            device.id,
            running=here.running,
            version=here.version,
            security_version=None if bundle is None else bundle.security_version,
            refusal=refusals.get(here.running),
            floor=here.floor,
        )
        found.append(way)
    return found


def target_of(device: Device, slot: str) -> Target:
    """A device and what it runs in a slot now."""
    reported = last_reported(device)
    here = None if reported is None else reported.slots.get(slot)
    return Target(
        device=device.id,
        hardware_class=device.hardware_class,
        running=None if here is None else here.running,
        version=None if here is None else here.version,
    )


def bundle_facts(bundle: Bundle) -> BundleFacts:
    """What the description of the first variant says."""
    description = msgspec.convert(bundle.description, Description)
    kinds = {output.kind for output in description.outputs}
    return BundleFacts(
        classifies=description.task == "classification",
        has_scores=bool(kinds & {"probabilities", "scores"}),
        budget_declared=description.budgets.latency_ms is not None,
    )


def _misfit(index: ImageIndex, device: Device) -> str | None:
    birth = last_birth(device)
    if birth is None:
        return None
    try:
        select_variant(index, birth.hardware)
    except UnsupportedBundleError as error:
        return str(error)
    return None

"""Whether devices can run a bundle, and what a bundle says that decides which gates apply."""

from __future__ import annotations

import msgspec

from edgepack_contract.description import Description
from edgepack_contract.errors import UnsupportedBundleError
from edgepack_contract.oci import ImageIndex, parse_index
from edgepack_contract.variants import select_variant
from edgepack_fleet.db.schema import Bundle, Device
from edgepack_fleet.devices import last_birth, last_reported
from edgepack_fleet.rollout.gates import BundleFacts
from edgepack_fleet.rollout.planning import Target


def incompatible_devices(bundle: Bundle, members: list[Device]) -> dict[str, str]:
    """Why a device cannot run a bundle, by device.

    A device that never said what it is may be able to: it is not among them.
    """
    index = parse_index(bundle.oci_index)
    reasons = {device.id: _misfit(index, device) for device in members}
    return {device: reason for device, reason in reasons.items() if reason is not None}


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

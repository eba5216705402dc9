"""Why a slot is as it is, what would change that, and what a person can do: in sentences.

Pure: it goes by what :mod:`.view` shows, and by nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgepack_contract.states import Phase
from edgepack_runtime.activation.factory import EMPTIED_HERE
from edgepack_runtime.local.view import BundleView, DeviceView, SlotView


@dataclass(frozen=True, slots=True)
class Explanation:
    """What there is to say of a slot.

    Attributes:
        is_so: How it is, and why.
        changes: What would change it without anybody at the device.
        remedies: What somebody at the device can do.
    """

    is_so: list[str]
    changes: list[str]
    remedies: list[str]


_RETRY = "edgepack local install FILE --slot {slot} --retry-blocked"

_REMEDIES = {
    "disk-full": "free some space; `edgepack doctor` shows how much there is",
    "storage-fault": "check or replace the disk, then restart the daemon",
    "no-source": "give the bundle itself: edgepack local install FILE --slot {slot}",
    "source-unavailable": "check the network and the registry: edgepack doctor",
    "unknown-publisher": "the keyring does not name who signed it; sign it with a publisher of it",
    "unsigned": "sign the bundle: edgepack sign",
    "below-floor": "install a bundle whose security version is not less than the floor",
    "wrong-name": "use another slot for bundles of another name, or empty this one first: "
    "edgepack local factory-reset --slot {slot}",
    "blocked": f"if it shall be tried again: {_RETRY}",
    "no-memory": "end what else runs here, or build a smaller model",
    "latency-budget": "build it for this kind of hardware, or give it a larger budget",
    "golden-mismatch": "run `edgepack selftest` on its file here, and build it for this hardware",
    "unknown-state": "what is wanted comes again with the next order, or install a file",
}
"""What a code calls for; ``{slot}`` is the slot's name."""

_UNDER_WAY = {
    Phase.DOWNLOADING: "is being fetched",
    Phase.VERIFIED: "is fetched, and its bytes are read back",
    Phase.PROBING: "is tried in a process of its own",
    Phase.ACTIVATING: "is being loaded beside what answers now",
    Phase.PROBATION: "answers, and is watched; the one before comes back if it misbehaves",
}


def explain(slot: SlotView, device: DeviceView) -> Explanation:
    """Say why a slot is as it is."""
    so, changes, remedies = _phase(slot)
    if device.daemon is None:
        so.insert(0, "no daemon runs, so nothing answers; this is what the last one wrote down.")
        remedies.append("start the daemon: systemctl start edgepack, or edgepack run --config FILE")
    else:
        so += _links(slot, device)
    if slot.blocked:
        blocked = ", ".join(short(one) for one in slot.blocked[-3:])
        so.append(
            f"{len(slot.blocked)} bundles misbehaved here and are blocked ({blocked} last); they "
            "are not tried again by themselves."
        )
        changes.append("a signed order that names a blocked digest in retry_blocked releases it.")
    return Explanation(so, changes, remedies)


def short(digest: str) -> str:
    """A digest as people say it: its first twelve digits."""
    return digest.removeprefix("sha256:")[:12]


def named(bundle: BundleView | None) -> str:
    """A bundle as people say it."""
    if bundle is None:
        return "nothing"
    version = f" {bundle.version}" if bundle.version else ""
    return f"{bundle.name}{version} ({short(bundle.digest)})"


def _phase(slot: SlotView) -> tuple[list[str], list[str], list[str]]:
    reason = f"{slot.words} [{slot.code}]" if slot.words else slot.code
    remedies = [_REMEDIES[slot.code].format(slot=slot.name)] if slot.code in _REMEDIES else []
    match slot.phase:
        case Phase.IDLE:
            return _idle(slot)
        case Phase.SUCCEEDED:
            so = [f"{named(slot.active)} is what is wanted, and it passed its probation."]
            return so + ([f"of note: {reason}."] if reason else []), [], remedies
        case Phase.FAILED | Phase.REJECTED:
            verb = "refused" if slot.phase == Phase.REJECTED else "not installed"
            so = [f"{named(slot.wanted)} was {verb}: {reason}."]
            so.append(f"{named(slot.active)} was not touched." if slot.active else _NOTHING)
            return so, ["a newer order of the fleet is tried at once.", *_revival(slot)], remedies
        case Phase.FELL_BACK:
            so = [f"the newer bundle misbehaved, so {named(slot.active)} answers again: {reason}."]
            remedies.append(f"once the cause is found: {_RETRY.format(slot=slot.name)}")
            return so, ["a newer order of the fleet is tried at once."], remedies
        case Phase.SAFE_MODE:
            so = [f"safe mode: no bundle of this slot works, so it answers 503: {reason}."]
            remedies.append(f"edgepack local install FILE --slot {slot.name}")
            ends = ["a newer order, or a factory bundle that works, ends it."]
            return so, [*ends, *_revival(slot)], remedies
        case _:
            return _under_way(slot, reason)


_NOTHING = "the slot has nothing that answers."


def _revival(slot: SlotView) -> list[str]:
    if slot.lost is None:
        return []
    tried = f", {slot.revivals} times so far" if slot.revivals else ""
    return [f"{named(slot.lost)}, which worked last, is tried again from time to time{tried}."]


def _idle(slot: SlotView) -> tuple[list[str], list[str], list[str]]:
    if slot.code == EMPTIED_HERE:
        so = ["somebody at the device has emptied it; an order is not obeyed twice."]
    elif slot.generation:
        so = [f"the fleet wants it empty (order {slot.generation})."]
    else:
        so = ["nobody has asked for a bundle yet."]
    return (
        so,
        ["a newer order of the fleet fills it."],
        [f"edgepack local install FILE --slot {slot.name}"],
    )


def _under_way(slot: SlotView, reason: str) -> tuple[list[str], list[str], list[str]]:
    bundle = slot.trial or slot.wanted
    so = [f"{named(bundle)} {_UNDER_WAY[slot.phase]}."]
    if slot.phase == Phase.DOWNLOADING:
        so.append(f"{slot.progress:.0%} of it is there.")
    if reason:
        so.append(f"so far: {reason}.")
    if slot.attempts > 1:
        so.append(f"this is attempt {slot.attempts}; after the third it is given up and blocked.")
    if slot.pending:
        so.append(f"{named(slot.pending)} waits for the end of this.")
    if slot.active:
        so.append(f"until it has proven itself, the slot falls back to {named(slot.active)}.")
    else:
        so.append("nothing else works in this slot: if it fails, the slot is in safe mode.")
    return so, ["it goes on by itself."], []


def _links(slot: SlotView, device: DeviceView) -> list[str]:
    so = []
    if slot.live is not None and slot.live.factory_trouble:
        so.append(f"its factory bundle is of no use: {slot.live.factory_trouble}.")
    daemon, broker = device.daemon, device.broker
    if daemon is not None and daemon.refused:
        so.append(f"an order is refused: {daemon.refused}.")
    if broker is not None and broker.connected is False:
        so.append(f"there is no connection to the broker {broker.address}, so no order can come.")
    if daemon is not None and daemon.clock_behind:
        so.append("the clock is behind what signed documents prove; dated orders may be refused.")
    if slot.candidate is not None:
        one = slot.candidate
        of = f" of version {one.version}" if one.version else ""
        so.append(
            f"a candidate{of} is beside it ({one.mode}, {100 * one.share:g} %): {one.phase} "
            f"{one.words}".rstrip()
        )
    return so

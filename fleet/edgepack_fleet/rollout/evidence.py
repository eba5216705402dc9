"""What a rollout's decisions may look at, and nothing else.

Times are integer milliseconds since 1970 UTC. ``start_ms`` of a block is by the fleet's clock:
whoever builds the evidence corrects for a device whose clock is off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgepack_contract.messages import SlotReported
from edgepack_contract.window import Pairs, WindowBody, WindowRole
from edgepack_fleet.rollout.model import Rollout


@dataclass(frozen=True, slots=True)
class Block:
    """One telemetry window of one device that ran one bundle: the unit of time of the gates.

    Attributes:
        start_ms: When the window began.
        n: Requests, answered or failed; without those that were refused for the client's fault.
        errors: Requests that failed.
        nonfinite: Rows whose output was NaN or infinite.
        over_budget: Requests slower than the latency budget that the bundle declares.
        classes: Rows by predicted class, in the order of the bundle's labels; empty if none.
        score: Rows by the bin of their top score, over the fixed bins of the contract.
        pairs_against: Digest of the previous model that saw the same inputs, if one did.
        pairs_n: Rows that both models answered.
        pairs_agree: Of those, rows with the same answer.
        previous_classes: What the previous model answered on the same rows, by class; empty when
            the window does not tell.
        drifted: Whether the device says that its inputs differ from the reference; null: no data.
        role: Whether the bundle was the active model or a candidate beside it.
    """

    start_ms: int
    n: int
    errors: int = 0
    nonfinite: int = 0
    over_budget: int = 0
    classes: Sequence[int] = ()
    score: Sequence[int] = ()
    pairs_against: str | None = None
    pairs_n: int = 0
    pairs_agree: int = 0
    previous_classes: Sequence[int] = ()
    drifted: bool | None = None
    role: WindowRole = "active"


@dataclass(frozen=True, slots=True)
class DeviceEvidence:
    """What is known of one device now.

    Attributes:
        online: The fleet's own lease on the device holds.
        last_seen_ms: When it was last heard of.
        reported: Its last full report on the rollout's slot.
        generation_seen: The generation of the desired document that this report answers.
        generation_desired: The generation that the fleet last wrote for the device.
        refused: Code and words of the last desired document that the device did not obey.
        crashes: Crashes of the model or daemon with the new bundle, since the rollout started.
        removed: The device was decommissioned or left the group.
    """

    online: bool = False
    last_seen_ms: int | None = None
    reported: SlotReported | None = None
    generation_seen: int = 0
    generation_desired: int = 0
    refused: str | None = None
    crashes: int = 0
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """Devices by id, and their blocks by device and digest. Missing is missing, never zero."""

    devices: Mapping[str, DeviceEvidence] = field(default_factory=dict)
    blocks: Mapping[str, Mapping[str, Sequence[Block]]] = field(default_factory=dict)

    def device(self, device: str) -> DeviceEvidence:
        """What is known of a device, which may be nothing."""
        return self.devices.get(device, _UNKNOWN)


_UNKNOWN = DeviceEvidence()


_CLIENTS_FAULT = ("bad_request", "shape", "nonfinite_input")


def block_of(window: WindowBody, *, start_ms: int) -> Block:
    """What the gates see of a window; ``start_ms`` is its beginning by the fleet's clock.

    What the client did wrong is left out: it says nothing about a model.
    """
    kinds = window.errors_by_kind
    errors = sum(count for kind, count in kinds.items() if kind not in _CLIENTS_FAULT)
    pairs = window.pairs
    return Block(
        start_ms=start_ms,
        n=window.n + errors,
        errors=errors,
        nonfinite=kinds.get("nonfinite_output", 0),
        over_budget=window.over_budget,
        classes=window.outputs.classes,
        score=window.outputs.score,
        pairs_against=None if pairs is None else pairs.against,
        pairs_n=0 if pairs is None else pairs.n,
        pairs_agree=0 if pairs is None else pairs.agree,
        previous_classes=_previous_classes(window.outputs.classes, pairs),
        drifted=None if window.drift in (None, "no-data") else window.drift == "drift",
        role=window.role,
    )


def _previous_classes(classes: Sequence[int], pairs: Pairs | None) -> Sequence[int]:
    """The previous model's class counts on the same rows: the new one's, with flips undone."""
    if pairs is None or not classes or pairs.n != sum(classes) or pairs.flips_other:
        return ()
    counts = list(classes)
    for flip, count in pairs.flips.items():
        old, new = (int(index) for index in flip.split(">"))
        if max(old, new) >= len(counts):
            return ()
        counts[old] += count
        counts[new] -= count
    return counts if min(counts) >= 0 else ()


@dataclass(frozen=True, slots=True)
class BlockQuery:
    """Blocks that the gates will look at: of one device and digest, from ``start_ms`` on."""

    device: str
    digest: str
    from_ms: int


def wanted_blocks(rollout: Rollout) -> list[BlockQuery]:
    """Which blocks ``advance`` can use now: of the open stages that have not ended."""
    queries: list[BlockQuery] = []
    baseline_ms = int(rollout.options.baseline_seconds * 1000)
    for stage in rollout.stages:
        if stage.opened_ms is None or stage.finished_ms is not None:
            continue
        for device in stage.devices:
            queries.append(BlockQuery(device, rollout.digest, stage.opened_ms))
            previous = rollout.updates[device].from_digest
            if previous is not None and previous != rollout.digest:
                queries.append(BlockQuery(device, previous, stage.opened_ms - baseline_ms))
    return queries

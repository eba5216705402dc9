"""The two arms of a stage's comparisons: the new bundle, and what the same devices ran before.

Only a device's own past is its baseline. Its windows with the previous bundle count until the new
one answered for the first time, its windows with the new bundle from then on, probation included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgepack_fleet.rollout.clusters import Unit, make_unit
from edgepack_fleet.rollout.evidence import Block, Evidence
from edgepack_fleet.rollout.model import NOT_OURS, Rollout, Stage

Cells = Callable[[Block], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Arms:
    """Blocks by device: with the new bundle, and with the previous one before it."""

    new: dict[str, list[Block]]
    old: dict[str, list[Block]]
    previous: dict[str, str]

    def newest_ms(self) -> int | None:
        """When the newest window with the new bundle began."""
        return max((block.start_ms for part in self.new.values() for block in part), default=None)

    def sample_new(self, cells: Cells) -> list[Unit]:
        """The new arm as units over ``cells``."""
        return _units(self.new, cells)

    def sample_both(self, cells: Cells) -> tuple[list[Unit], list[Unit]]:
        """Both arms as units over ``cells``, of devices that are in both."""
        new, old = _units(self.new, cells), _units(self.old, cells)
        both = {unit.device for unit in new} & {unit.device for unit in old}
        return (
            [unit for unit in new if unit.device in both],
            [unit for unit in old if unit.device in both],
        )

    def sample_pairs(self) -> list[Unit]:
        """Pairs of the new model with the very bundle that the device ran before."""
        matching = {
            device: [block for block in blocks if block.pairs_against == self.previous.get(device)]
            for device, blocks in self.new.items()
        }
        return _units(
            matching, lambda block: (block.pairs_agree, block.pairs_n - block.pairs_agree)
        )


def collect(rollout: Rollout, stage: Stage, evidence: Evidence) -> Arms:
    """The arms of a stage that is open."""
    opened = stage.opened_ms or 0
    earliest = opened - int(rollout.options.baseline_seconds * 1000)
    new: dict[str, list[Block]] = {}
    old: dict[str, list[Block]] = {}
    previous: dict[str, str] = {}
    for device in stage.devices:
        update = rollout.updates[device]
        blocks = evidence.blocks.get(device, {})
        mine = [block for block in blocks.get(rollout.digest, ()) if block.start_ms >= opened]
        if update.state in NOT_OURS or not mine:
            continue
        new[device] = mine
        if update.from_digest is not None and update.from_digest != rollout.digest:
            first = min(block.start_ms for block in mine)
            before = blocks.get(update.from_digest, ())
            previous[device] = update.from_digest
            old[device] = [block for block in before if earliest <= block.start_ms < first]
    return Arms(new, old, previous)


def _units(arm: dict[str, list[Block]], cells: Cells) -> list[Unit]:
    units = [
        make_unit(device, block.start_ms, cells(block))
        for device, blocks in arm.items()
        for block in blocks
    ]
    return [unit for unit in units if unit.n > 0]

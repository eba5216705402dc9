"""Events are the truth, and a rollout is what they add up to.

Every change is made by writing an event and applying it, with the same function that replays a log,
so that a stored rollout and its replayed log cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET

from edgepack_fleet.rollout.model import (
    Change,
    Decision,
    DeviceUpdate,
    GateResult,
    Rollout,
    RolloutEvent,
    SetDesired,
    Stage,
    StageChange,
)

FLEET = "fleet"
"""The actor of what the fleet decides by itself."""


def replay(events: Iterable[RolloutEvent]) -> Rollout:
    """The rollout that a log, from its first event on, adds up to.

    Raises:
        ValueError: The log does not begin with a plan, or an event is missing or twice.
    """
    draft: Rollout | None = None
    for event in events:
        if draft is None:
            if not isinstance(event.change.rollout, Rollout) or event.sequence != 1:
                raise ValueError("the log does not begin with the plan of a rollout")
            draft = event.change.rollout
            continue
        if event.sequence != draft.sequence + 1:
            raise ValueError(f"event {event.sequence} follows event {draft.sequence}")
        draft = apply_change(draft, event.sequence, event.change)
    if draft is None:
        raise ValueError("the log is empty")
    return draft


def apply_change(rollout: Rollout, sequence: int, change: Change) -> Rollout:
    """The rollout after one more event."""
    fields = _set_fields(change, but=("rollout", "stages", "updates"))
    if isinstance(change.stages, list):
        stages = list(rollout.stages)
        for part in change.stages:
            stages[part.index] = _changed_stage(stages[part.index], part)
        fields["stages"] = stages
    if isinstance(change.updates, dict):
        fields["updates"] = {**rollout.updates, **change.updates}
    return msgspec.structs.replace(rollout, sequence=sequence, **fields)


def _changed_stage(stage: Stage, change: StageChange) -> Stage:
    fields = _set_fields(change, but=("index", "gates"))
    if isinstance(change.gates, list):
        fields["gates"] = _merged(stage.gates, change.gates)
    return msgspec.structs.replace(stage, **fields)


def _merged(gates: list[GateResult], changed: list[GateResult]) -> list[GateResult]:
    newer = {result.gate: result for result in changed}
    return [newer.get(result.gate, result) for result in gates]


def _set_fields(change: Change | StageChange, *, but: tuple[str, ...]) -> dict[str, Any]:
    plain = {name: getattr(change, name) for name in change.__struct_fields__ if name not in but}
    return {name: value for name, value in plain.items() if value is not UNSET}


class Journal:
    """A rollout in the middle of a decision: what changed so far, and what is to be done."""

    def __init__(self, rollout: Rollout, now_ms: int, actor: str = FLEET) -> None:
        self.rollout = rollout
        self.now_ms = now_ms
        self._actor = actor
        self._commands: dict[str, SetDesired] = {}
        self._events: list[RolloutEvent] = []

    @property
    def length(self) -> int:
        """How many events were written."""
        return len(self._events)

    def write(
        self,
        cause: str,
        words: str,
        change: Change | None = None,
        evidence: dict[str, Any] | None = None,
    ) -> None:
        """Write an event and apply what it changes."""
        event = RolloutEvent(
            sequence=self.rollout.sequence + 1,
            at=self.now_ms,
            actor=self._actor,
            cause=cause,
            words=words,
            evidence=evidence or {},
            change=change or Change(),
        )
        self._events.append(event)
        self.rollout = apply_change(self.rollout, event.sequence, event.change)

    def write_stage(
        self, cause: str, words: str, part: StageChange, evidence: dict[str, Any] | None = None
    ) -> None:
        """Write an event that changes one stage."""
        self.write(cause, words, Change(stages=[part]), evidence)

    def write_update(self, cause: str, words: str, device: str, update: DeviceUpdate) -> None:
        """Write an event that changes one device's part."""
        self.write(cause, words, Change(updates={device: update}), {"device": device})

    def command(self, device: str, digest: str, reason: str) -> None:
        """Have a device told what to run; of two commands in one decision the last one counts."""
        self._commands[device] = SetDesired(device, digest, reason)

    def decision(self) -> Decision:
        """All of it, to be committed together."""
        return Decision(self.rollout, tuple(self._commands.values()), tuple(self._events))

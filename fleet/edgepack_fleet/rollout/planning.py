"""Plan a rollout: who comes when, what is measured, and what cannot be, fixed before the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edgepack_contract.names import DEFAULT_TENANT
from edgepack_fleet.errors import InvalidRequestError
from edgepack_fleet.rollout.cohorts import stage_sizes, stratified_order
from edgepack_fleet.rollout.eventlog import FLEET
from edgepack_fleet.rollout.gates import BundleFacts, initial_results
from edgepack_fleet.rollout.model import (
    Change,
    Decision,
    DeviceUpdate,
    GateSpec,
    Rollout,
    RolloutEvent,
    RolloutOptions,
    Stage,
)
from edgepack_fleet.rollout.options import check_options, plan_gates


@dataclass(frozen=True, slots=True)
class Target:
    """A device that the rollout is for, and what it runs in the slot now, if anything."""

    device: str
    hardware_class: str = ""
    running: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What is rolled out, and where to."""

    id: str
    slot: str
    group: str
    bundle: str
    version: str
    digest: str
    facts: BundleFacts
    tenant: str = DEFAULT_TENANT


def plan(
    subject: Subject,
    targets: Sequence[Target],
    options: RolloutOptions,
    now_ms: int,
    *,
    actor: str = FLEET,
) -> Decision:
    """Plan a rollout; the decision holds the draft and the first event of its log.

    The seed of the order is ``options.seed``, or the rollout's id.

    Raises:
        InvalidRequestError: There is no device, one is there twice, or an option is out of range.
    """
    options = check_options(options)
    known = {target.device: target for target in targets}
    if not targets or len(known) != len(targets):
        raise InvalidRequestError(
            f"a rollout needs different devices, got {len(targets)}; look at the group "
            f"{subject.group!r}",
            code="bad-targets",
        )
    classes = {target.device: target.hardware_class for target in targets}
    order = stratified_order(classes, options.seed or subject.id)
    gates = plan_gates(options)
    stages = _stages(subject, known, order, options, gates)
    rollout = Rollout(
        id=subject.id,
        tenant=subject.tenant,
        slot=subject.slot,
        group=subject.group,
        bundle=subject.bundle,
        version=subject.version,
        digest=subject.digest,
        created_ms=now_ms,
        sequence=1,
        options=options,
        gates=gates,
        stages=stages,
        updates=_updates(stages, known, now_ms),
    )
    return Decision(rollout, (), (_planned(rollout, actor),))


def _stages(
    subject: Subject,
    known: dict[str, Target],
    order: list[str],
    options: RolloutOptions,
    gates: list[GateSpec],
) -> list[Stage]:
    stages: list[Stage] = []
    before = 0
    for index, (target, size) in enumerate(stage_sizes(options.stages, len(order))):
        devices = order[before:size]
        has_previous = any(known[name].running not in (None, subject.digest) for name in devices)
        results = initial_results(gates, subject.facts, has_previous=has_previous)
        stages.append(Stage(index=index, target=target, devices=devices, gates=results))
        before = size
    return stages


def _updates(stages: list[Stage], known: dict[str, Target], now_ms: int) -> dict[str, DeviceUpdate]:
    return {
        device: DeviceUpdate(
            stage=stage.index,
            from_digest=known[device].running,
            from_version=known[device].version,
            since_ms=now_ms,
        )
        for stage in stages
        for device in stage.devices
    }


def _planned(rollout: Rollout, actor: str) -> RolloutEvent:
    sizes = ", ".join(str(len(stage.devices)) for stage in rollout.stages)
    return RolloutEvent(
        sequence=1,
        at=rollout.created_ms,
        actor=actor,
        cause="planned",
        words=f"{rollout.bundle} {rollout.version} to {len(rollout.updates)} devices of "
        f"{rollout.group}, in stages of {sizes}",
        evidence={"seed": rollout.options.seed or rollout.id},
        change=Change(rollout=msgspec.structs.replace(rollout)),
    )

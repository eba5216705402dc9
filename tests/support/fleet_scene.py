"""A fleet in the middle of something, for the page and the stream: devices, bundles, rollouts."""

from __future__ import annotations

from typing import Any

import msgspec
from fleet_http import Fleet, bundle_file

from edgepack_contract.messages import Reported, SlotReported
from edgepack_contract.states import Phase, Presence, RolloutState, StageState, UpdateState, Verdict
from edgepack_fleet.db.schema import Device, RolloutRow
from edgepack_fleet.rollout.model import GateName, GateResult, Revert, Rollout

AGREEMENT = (
    "agreement with 1.0.0 is 11.2 % of 214 pairs; 99.9 % upper bound 17.9 % is below the limit 90 %"
)
OPTIONS = {"stages": ["1", "100%"], "soak_seconds": 8.0, "probation_seconds": 4.0}


def report(
    fleet: Fleet, device: str, digest: str, version: str, *, keyring: int = 0, **changes: Any
) -> None:
    """Make a device say what it runs, as the ingest would store it."""
    fields = {"phase": Phase.SUCCEEDED, "previous": None, "wanted": digest} | changes
    slot = SlotReported(running=digest, version=version, **fields)
    said = Reported(
        session=1,
        sequence=1,
        at=fleet.clock(),
        epoch=0,
        generation=1,
        slots={"digits": slot},
        keyring=keyring,
    )
    with fleet.context.database.write() as session:
        row = session.get_one(Device, device)
        row.reported = msgspec.to_builtins(said)
        row.presence, row.last_seen_ms = Presence.ONLINE.value, fleet.clock()
        row.generation_seen = 1


def push(fleet: Fleet, version: str) -> str:
    """Push a bundle and return its digest."""
    digest: str = fleet.push(bundle_file(fleet.folder, version=version)).json()["digest"]
    return digest


def start(fleet: Fleet, version: str, group: str = "all") -> str:
    """Start a rollout and return its id."""
    body = {"bundle": "digits", "version": version, "group": group, "options": OPTIONS}
    answer = fleet.client("operator").post("/api/v1/rollouts", json=body)
    rollout: str = answer.json()["id"]
    return rollout


def change_rollout(fleet: Fleet, rollout_id: str, **changes: Any) -> None:
    """Store a rollout with other fields, as the controller would after a decision."""
    with fleet.context.database.write() as session:
        row = session.get_one(RolloutRow, rollout_id)
        rollout = msgspec.json.decode(row.document, type=Rollout)
        changed = msgspec.structs.replace(rollout, **changes)
        row.document, row.state = msgspec.json.encode(changed), changed.state.value


def load(fleet: Fleet, rollout_id: str) -> Rollout:
    """A rollout as it is stored."""
    with fleet.context.database.read() as session:
        document = session.get_one(RolloutRow, rollout_id).document
    return msgspec.json.decode(document, type=Rollout)


def canary_failed(fleet: Fleet) -> str:
    """Five devices on 1.0.0; the canary of 1.1.0 fails on agreement and goes back."""
    old, new = push(fleet, "1.0.0"), push(fleet, "1.1.0")
    for number in range(1, 6):
        fleet.add_device(f"pi-{number}", site="hall-2")
        report(fleet, f"pi-{number}", old, "1.0.0")
    fleet.client("operator").post("/api/v1/groups", json={"name": "all", "labels": {}})
    rollout_id = start(fleet, "1.1.0")
    rollout = load(fleet, rollout_id)
    first, *later = rollout.stages
    (canary,) = first.devices
    report(fleet, canary, new, "1.1.0", previous=old, phase=Phase.PROBATION)
    gates = [
        GateResult(gate=GateName.INSTALL, verdict=Verdict.PASS, words="0 of 1 failed"),
        GateResult(gate=GateName.AGREEMENT, verdict=Verdict.FAIL, words=AGREEMENT),
        GateResult(
            gate=GateName.ACCURACY,
            verdict=Verdict.NOT_APPLICABLE,
            words="no ground truth was posted",
        ),
    ]
    now = fleet.clock()
    failed = msgspec.structs.replace(
        first, state=StageState.FAILED, gates=gates, opened_ms=now - 9000, finished_ms=now
    )
    update = msgspec.structs.replace(
        rollout.updates[canary],
        state=UpdateState.SUCCEEDED,
        from_digest=old,
        from_version="1.0.0",
        revert=Revert.ASKED,
    )
    change_rollout(
        fleet,
        rollout_id,
        state=RolloutState.ROLLING_BACK,
        reason=f"gate agreement failed: {AGREEMENT}",
        rollback_started_ms=now,
        stages=[failed, *later],
        updates=rollout.updates | {canary: update},
    )
    return rollout_id

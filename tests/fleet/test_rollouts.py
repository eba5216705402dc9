"""Rollouts in the database: who is in, what is refused, what an operator can do."""

from __future__ import annotations

import msgspec
import pytest
from fleet_devices import HARDWARE
from fleet_world import AT_ONCE, OPTIONS, World
from sqlalchemy import func, select

from edgepack_contract.description import Platform
from edgepack_contract.messages import Reported, SlotReported
from edgepack_contract.states import Phase, RolloutState, UpdateState, Verdict
from edgepack_fleet.db.schema import DesiredSlot, Device, RolloutRow
from edgepack_fleet.errors import (
    ConflictError,
    IncompatibleError,
    InvalidRequestError,
    NotFoundError,
)
from edgepack_fleet.groups import create_group
from edgepack_fleet.rollout.model import GateName
from edgepack_fleet.rollouts import (
    Action,
    Request,
    Verb,
    act_on_rollout,
    last_rollout_of,
    list_rollouts,
    load_rollout,
    plan_rollout,
    rollout_events,
)


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.digest = world.push("1.0.0")
    yield world
    world.close()


def plan(world, *, version="1.0.0", group="all", options=OPTIONS):
    with world.database.read() as session:
        request = Request("digits", version, group, options, "ann")
        return plan_rollout(session, world.writer, request, now_ms=world.now_ms)


def act(world, rollout_id, verb, **more):
    with world.database.write() as session:
        action = Action(verb=verb, actor="ann", **more)
        return act_on_rollout(session, world.writer, rollout_id, action, now_ms=world.now_ms)


def wishes(world):
    with world.database.read() as session:
        return dict(session.execute(select(DesiredSlot.device, DesiredSlot.digest)).all())


def states(world, rollout_id):
    return {update.state for update in world.rollout(rollout_id).updates.values()}


def test_a_plan_says_everything_and_stores_nothing(world):
    planned = plan(world)
    assert planned.rollout.state is RolloutState.DRAFT
    assert planned.rollout.id.startswith("digits-1-0-0-")
    assert [len(stage.devices) for stage in planned.rollout.stages] == [1, 2]
    assert planned.incompatible == {}
    with world.database.read() as session:
        assert session.scalar(select(func.count()).select_from(RolloutRow)) == 0


def test_what_the_bundle_does_not_have_is_fixed_at_plan_time(world):
    """A first install has no previous model; this bundle declares no latency budget."""
    results = {result.gate: result for result in plan(world).rollout.stages[0].gates}
    for gate in (GateName.AGREEMENT, GateName.ERRORS, GateName.LATENCY, GateName.ACCURACY):
        assert results[gate].verdict is Verdict.NOT_APPLICABLE
    assert results[GateName.INSTALL].verdict is Verdict.INCONCLUSIVE


def test_a_device_that_cannot_run_it_is_left_out_with_the_reason(world):
    arm = msgspec.structs.replace(HARDWARE, architecture="arm64", variant="v8", features=[])
    with world.database.write() as session:
        row = session.get_one(Device, "pi-2")
        row.birth = {**row.birth, "hardware": msgspec.to_builtins(arm)}
        session.get_one(Device, "pi-3").birth = None
    planned = plan(world)
    assert set(planned.rollout.updates) == {"pi-1", "pi-3"}
    assert "built for linux/amd64, this is linux/arm64" in planned.incompatible["pi-2"]
    assert planned.unheard == ["pi-3"]


def report(world, device, *, running, floor=0):
    """Write down that a device runs a bundle."""
    slot = SlotReported(
        phase=Phase.SUCCEEDED, running=running, version="1.0.0", previous=None, wanted=running,
        floor=floor,
    )  # fmt: skip
    reported = Reported(session=1, sequence=1, at=0, epoch=1, generation=1, slots={"digits": slot})
    with world.database.write() as session:
        session.get_one(Device, device).reported = msgspec.to_builtins(reported)


def test_what_could_not_be_rolled_back_is_said_beforehand(world):
    newer = world.push("2.0.0", security_version=9)
    report(world, "pi-1", running=world.digest)
    report(world, "pi-2", running=f"sha256:{'0' * 64}")
    report(world, "pi-3", running=newer)
    first, second = plan(world, version="2.0.0").warnings
    assert first.startswith("1 device (pi-2) can be rolled back only from what is on their own")
    assert second.startswith("1 device (pi-1) can be rolled back only to what they run now")
    assert second.endswith("security version 9")


def test_a_device_that_would_refuse_it_for_its_floor_is_left_out(world):
    newer = world.push("2.0.0", security_version=9)
    report(world, "pi-1", running=newer, floor=9)
    planned = plan(world)
    assert "below it; this bundle has 3" in planned.incompatible["pi-1"]
    assert set(planned.rollout.updates) == {"pi-2", "pi-3"}


def test_a_bundle_that_nobody_can_run_is_refused(world):
    world.push("2.0.0", platform=Platform(architecture="arm64"))
    with pytest.raises(IncompatibleError, match=r"pi-1.*arm64"):
        plan(world, version="2.0.0")


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"version": "9.9.9"}, NotFoundError, "edgepack bundle push"),
        ({"group": "none"}, NotFoundError, "no group"),
        ({"group": "empty"}, InvalidRequestError, "no devices"),
        (
            {"options": msgspec.structs.replace(OPTIONS, stages=["150%"])},
            InvalidRequestError,
            "150%",
        ),
        (
            {"options": msgspec.structs.replace(OPTIONS, soak_seconds=float("nan"))},
            InvalidRequestError,
            "finite",
        ),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_by_name(world, wrong, error, words):
    with world.database.write() as session:
        create_group(session, name="empty", labels={"site": "none"}, now_ms=world.now_ms)
    with pytest.raises(error, match=words):
        plan(world, **wrong)


def test_a_refused_start_leaves_nothing(world):
    world.start("1.0.0")
    with pytest.raises(ConflictError, match="3 of these devices"):
        world.start("1.0.0")
    with world.database.read() as session:
        assert session.scalar(select(func.count()).select_from(RolloutRow)) == 1


def test_groups_that_do_not_share_devices_may_go_at_once(world):
    with world.database.write() as session:
        create_group(session, name="a", members=["pi-1"], now_ms=world.now_ms)
        create_group(session, name="b", members=["pi-2", "pi-3"], now_ms=world.now_ms)
    assert world.start("1.0.0", group="a") != world.start("1.0.0", group="b")


def test_pause_and_resume(world):
    rollout_id = world.start("1.0.0")
    world.step()
    paused = act(world, rollout_id, Verb.PAUSE, reason="lunch")
    assert (paused.state, paused.reason) == (RolloutState.PAUSED, "paused by ann: lunch")
    for _ in range(20):
        world.step()
    assert len(wishes(world)) == 1
    act(world, rollout_id, Verb.RESUME)
    world.run(lambda: world.rollout(rollout_id).finished_ms is not None)
    assert len(wishes(world)) == 3


def test_promote_skips_the_gates_of_the_open_stage(world):
    rollout_id = world.start("1.0.0", msgspec.structs.replace(OPTIONS, soak_seconds=3600.0))
    world.run(lambda: world.rollout(rollout_id).stages[0].soak_started_ms is not None)
    act(world, rollout_id, Verb.PROMOTE, reason="seen enough")
    world.step()
    assert len(wishes(world)) == 3


def test_abort_keeps_or_reverts(world):
    world.roll_out("1.0.0", AT_ONCE)
    two = world.push("1.1.0")
    kept = world.start("1.1.0")
    world.run(lambda: UpdateState.SUCCEEDED in states(world, kept))
    assert act(world, kept, Verb.ABORT).state is RolloutState.ABORTED
    assert two in wishes(world).values()
    reverted = world.start("1.1.0")
    world.run(lambda: UpdateState.SUCCEEDED in states(world, reverted))
    assert act(world, reverted, Verb.ABORT, revert=True).state is RolloutState.ROLLING_BACK
    world.run(lambda: world.rollout(reverted).state is RolloutState.ROLLED_BACK)


def test_rollback_after_completion_and_not_behind_a_later_rollout(world):
    first = world.roll_out("1.0.0", AT_ONCE)
    world.push("1.1.0")
    second = world.roll_out("1.1.0", AT_ONCE)
    with pytest.raises(ConflictError, match=second):
        act(world, first, Verb.ROLLBACK)
    assert act(world, second, Verb.ROLLBACK).state is RolloutState.ROLLING_BACK
    world.run(lambda: world.rollout(second).state is RolloutState.ROLLED_BACK)
    assert set(wishes(world).values()) == {world.digest}


def test_an_action_on_something_older_than_what_is_there_is_refused(world):
    rollout_id = world.start("1.0.0")
    seen = world.rollout(rollout_id).sequence
    world.step()
    with pytest.raises(ConflictError) as refusal:
        act(world, rollout_id, Verb.PAUSE, expected_sequence=seen)
    assert refusal.value.code == "stale"
    now = world.rollout(rollout_id).sequence
    assert act(world, rollout_id, Verb.PAUSE, expected_sequence=now).state is RolloutState.PAUSED


@pytest.mark.parametrize("verb", list(Verb))
def test_actions_on_what_does_not_exist_or_has_ended_are_refused(world, verb):
    with pytest.raises(NotFoundError):
        act(world, "none", verb)
    rollout_id = world.start("1.0.0")
    act(world, rollout_id, Verb.ABORT)
    if verb is Verb.ROLLBACK:  # an aborted rollout may have left something behind
        assert act(world, rollout_id, verb).state is RolloutState.ROLLING_BACK
        return
    with pytest.raises(ConflictError):
        act(world, rollout_id, verb)


def test_looking_up(world):
    ids = []
    for _ in range(3):
        rollout_id = world.start("1.0.0")
        act(world, rollout_id, Verb.ABORT)
        ids.append(rollout_id)
        world.now_ms += 1
    with world.database.read() as session:
        assert [one.id for one in list_rollouts(session)] == ids[::-1]
        assert [one.id for one in list_rollouts(session, after=ids[2], limit=1)] == [ids[1]]
        assert last_rollout_of(session, "pi-1").id == ids[2]
        assert last_rollout_of(session, "pi-9") is None
        events = rollout_events(session, ids[0])
        assert [event.cause for event in events] == ["planned", "started", "aborted"]
        assert [event.sequence for event in rollout_events(session, ids[0], after=2)] == [3]
        for ask in (load_rollout, rollout_events):
            with pytest.raises(NotFoundError):
                ask(session, "none")
        with pytest.raises(NotFoundError):
            list_rollouts(session, after="none")


def test_the_probation_that_devices_are_told_is_that_of_the_options(world):
    world.start("1.0.0")
    world.step()
    with world.database.read() as session:
        probation = session.scalars(select(DesiredSlot.probation)).one()
    assert probation["seconds"] == OPTIONS.probation_seconds
    assert probation["shadow_seconds"] > OPTIONS.soak_seconds

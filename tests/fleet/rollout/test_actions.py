from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from rollout_simulation import NEW, OLD, Fleet

from edgepack_contract.states import RolloutState, StageState
from edgepack_fleet.errors import ConflictError
from edgepack_fleet.rollout import actions
from edgepack_fleet.rollout.model import Decision, Rollout

Action = Callable[[Rollout, int], Decision]

ACTIONS: dict[str, Action] = {
    "start": lambda rollout, now: actions.start(rollout, now, actor="ann"),
    "pause": lambda rollout, now: actions.pause(rollout, now, actor="ann"),
    "resume": lambda rollout, now: actions.resume(rollout, now, actor="ann"),
    "promote": lambda rollout, now: actions.promote(rollout, now, actor="ann"),
    "keep": lambda rollout, now: actions.abort(rollout, now, actor="ann", revert=False),
    "revert": lambda rollout, now: actions.abort(rollout, now, actor="ann", revert=True),
    "rollback": lambda rollout, now: actions.rollback(rollout, now, actor="ann"),
}

ALLOWED = {
    "start": {"draft": "running", "scheduled": "running"},
    "pause": {"running": "paused"},
    "resume": {"paused": "running"},
    "promote": {"running": "running", "paused": "running"},
    "keep": {
        "draft": "aborted", "scheduled": "aborted", "running": "aborted", "paused": "aborted",
    },
    "revert": {
        "draft": "aborted", "scheduled": "aborted", "running": "rolling_back",
        "paused": "rolling_back",
    },
    "rollback": {
        "running": "rolling_back", "paused": "rolling_back", "completed": "rolling_back",
        "completed_with_failures": "rolling_back", "aborted": "rolling_back",
    },
}  # fmt: skip


@pytest.mark.parametrize("state", list(RolloutState))
@pytest.mark.parametrize("action", list(ACTIONS))
def test_every_action_in_every_state(action: str, state: RolloutState):
    fleet = Fleet(3).start()
    fleet.tick(4)
    rollout = msgspec.structs.replace(fleet.rollout, state=state)
    after = ALLOWED[action].get(state.value)
    if after is None:
        with pytest.raises(ConflictError, match=f"is {state.value.replace('_', ' ')} and cannot"):
            ACTIONS[action](rollout, fleet.now_ms)
        return
    decision = ACTIONS[action](rollout, fleet.now_ms)
    assert decision.rollout.state.value == after
    assert [event.actor for event in decision.events] == ["ann"]
    assert decision.rollout.sequence == rollout.sequence + 1


def test_promote_skips_the_gates_and_goes_on():
    fleet = Fleet(3, rate=0).start()
    assert fleet.run().state is RolloutState.PAUSED
    fleet.take(actions.promote(fleet.rollout, fleet.now_ms, actor="ann", reason="looks fine"))
    assert fleet.rollout.stages[0].state is StageState.SKIPPED
    assert fleet.events()[-1].words == "stage 1 is skipped by ann: looks fine"
    fleet.tick()
    assert fleet.rollout.stages[1].state is StageState.DEPLOYING


def test_promoting_the_last_stage_completes_when_its_devices_have_settled():
    fleet = Fleet(2, rate=0).start()
    for _ in range(2):
        fleet.tick(2)
        fleet.take(actions.promote(fleet.rollout, fleet.now_ms, actor="ann"))
    assert fleet.rollout.state is RolloutState.RUNNING
    assert fleet.run().state is RolloutState.COMPLETED
    assert {device.running for device in fleet.devices.values()} == {NEW}


def test_nothing_can_be_promoted_before_a_stage_is_open():
    fleet = Fleet(2).start()
    with pytest.raises(ConflictError):
        actions.promote(fleet.rollout, fleet.now_ms, actor="ann")


def test_resume_gives_an_inconclusive_stage_its_wait_again():
    fleet = Fleet(2, rate=0).start()
    fleet.run()
    fleet.take(actions.resume(fleet.rollout, fleet.now_ms, actor="ann"))
    for device in fleet.devices.values():
        device.rate = 40
    fleet.tick(10)
    assert fleet.rollout.state is RolloutState.RUNNING
    assert fleet.rollout.stages[0].state is StageState.GATING


def test_resume_acknowledges_what_failed_so_far_and_no_more():
    fleet = Fleet(8).start()
    fleet.tick()
    (canary,) = fleet.rollout.stages[0].devices
    update = fleet.rollout.updates[canary]
    failed = msgspec.structs.replace(update, state="failed")
    updates = {**fleet.rollout.updates, canary: failed}
    paused = msgspec.structs.replace(fleet.rollout, state=RolloutState.PAUSED, updates=updates)
    resumed = actions.resume(paused, fleet.now_ms, actor="ann").rollout
    assert resumed.updates[canary].acknowledged
    assert sum(update.acknowledged for update in resumed.updates.values()) == 1


def test_abort_and_keep_revokes_what_nobody_acted_on():
    fleet = Fleet(6).start()
    while fleet.rollout.stages[1].state is StageState.WAITING:
        fleet.tick()
    offered = fleet.rollout.stages[1].devices
    fleet.take(actions.abort(fleet.rollout, fleet.now_ms, actor="ann", revert=False))
    assert fleet.rollout.state is RolloutState.ABORTED
    assert {command.digest for command in fleet.decisions[-1].commands} == {OLD}
    assert {command.device for command in fleet.decisions[-1].commands} == set(offered)
    fleet.tick(5)
    running = [device.running for device in fleet.devices.values()]
    assert (running.count(NEW), running.count(OLD)) == (1, 5)


def test_abort_and_revert_sends_everybody_back():
    fleet = Fleet(6).start()
    while fleet.rollout.stages[1].state is not StageState.SOAKING:
        fleet.tick()
    fleet.take(actions.abort(fleet.rollout, fleet.now_ms, actor="ann", revert=True, reason="no"))
    assert fleet.run().state is RolloutState.ROLLED_BACK
    assert fleet.rollout.reason == "aborted by ann: no"
    assert {device.running for device in fleet.devices.values()} == {OLD}


def test_a_completed_rollout_can_be_rolled_back():
    fleet = Fleet(2).start()
    fleet.run()
    fleet.take(actions.rollback(fleet.rollout, fleet.now_ms, actor="ann"))
    fleet.tick(10)
    assert fleet.rollout.state is RolloutState.ROLLED_BACK
    assert {device.running for device in fleet.devices.values()} == {OLD}

from __future__ import annotations

import msgspec
import pytest
from rollout_simulation import DEMO, Fleet, Model

from edgepack_contract.states import RolloutState, StageState
from edgepack_fleet.errors import NotFoundError
from edgepack_fleet.rollout import actions
from edgepack_fleet.rollout.explain import next_action, why_device, why_rollout


def test_a_rollback_is_explained_with_the_deciding_numbers():
    fleet = Fleet(5, model=Model(agreement=0.05)).start()
    rollout = fleet.run()
    words = why_rollout(rollout)
    assert "is rolled back. Stage 1 failed: agreement: agreement with 1.0.0 is 1" in words
    assert "below the limit 90 %" in words
    (canary,) = rollout.stages[0].devices
    assert "It is back on what it ran before." in why_device(rollout, canary)


def test_a_completed_rollout_is_explained():
    rollout = Fleet(2).start().run()
    assert "is completed. 2 of 2 devices run digits 1.1.0. Devices: 2 succeeded." in (
        why_rollout(rollout)
    )


def test_a_paused_rollout_says_what_it_waits_for():
    fleet = Fleet(2, rate=0).start()
    rollout = fleet.run()
    assert "It waits for agreement: no pairs so far, 200 are needed; " in why_rollout(rollout)
    assert next_action(rollout, fleet.now_ms).startswith("waits for resume, promote, abort")


def test_a_device_says_why_it_is_not_served_yet():
    fleet = Fleet(3, options=msgspec.structs.replace(DEMO, stages=["100%"], max_in_flight=1))
    assert "Nothing is offered while the rollout is draft." in why_device(fleet.rollout, "gw-1")
    fleet.start()
    fleet.tick()
    pending = [name for name, up in fleet.rollout.updates.items() if up.state == "pending"]
    assert "at most 1 devices install at the same time" in why_device(fleet.rollout, pending[0])
    offered = next(name for name in fleet.rollout.updates if name not in pending)
    assert "given up after 30 s without progress" in why_device(fleet.rollout, offered)


def test_a_device_of_a_later_stage_waits_for_the_stages_before():
    fleet = Fleet(3).start()
    fleet.tick()
    later = fleet.rollout.stages[1].devices[0]
    assert "the stages before it must pass first" in why_device(fleet.rollout, later)


def test_a_device_that_fell_back_says_so():
    fleet = Fleet(1, story="falls back").start()
    rollout = fleet.run()
    assert "is fell back." in why_device(rollout, "gw-1")
    assert "It left the new bundle on its own 1 times." in why_device(rollout, "gw-1")


def test_a_device_that_is_not_part_is_an_error():
    with pytest.raises(NotFoundError, match="'gw-9' is not part of rollout"):
        why_device(Fleet(1).rollout, "gw-9")


def test_the_next_action_in_every_state_of_a_run():
    fleet = Fleet(2)
    seen = {next_action(fleet.rollout, fleet.now_ms)}
    fleet.start()
    seen.add(next_action(fleet.rollout, fleet.now_ms))
    while fleet.rollout.state is RolloutState.RUNNING:
        fleet.tick()
        seen.add(next_action(fleet.rollout, fleet.now_ms))
    assert "starts when somebody starts it" in seen
    assert "stage 1 opens" in seen
    assert "stage 1 soaks for 8 s once its devices have settled" in seen
    assert "stage 1 is judged in 8 s" in seen
    assert "nothing; it has ended" in seen


def test_waiting_for_gates_names_them_and_the_end():
    fleet = Fleet(2, rate=0).start()
    while fleet.rollout.stages[0].state is not StageState.GATING:
        fleet.tick()
    words = next_action(fleet.rollout, fleet.now_ms)
    assert words == (
        "stage 1 waits for agreement, class_mix, confidence, errors, non_finite; pauses in 60 s"
    )


def test_a_rollback_says_when_it_ends():
    fleet = Fleet(1).start()
    fleet.tick(6)
    fleet.take(actions.rollback(fleet.rollout, fleet.now_ms, actor="ann"))
    assert next_action(fleet.rollout, fleet.now_ms) == (
        "ends when all devices are back, in 60 s at the latest"
    )

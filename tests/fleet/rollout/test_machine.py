"""What happens to a rollout, row by row of what can happen to a fleet."""

from __future__ import annotations

import msgspec
import pytest
from rollout_simulation import BAD, DEMO, NEW, OLD, Fleet, Model

from edgepack_contract.messages import SlotReported
from edgepack_contract.states import Phase, RolloutState, StageState, UpdateState, Verdict
from edgepack_fleet.errors import InvalidRequestError
from edgepack_fleet.rollout import actions
from edgepack_fleet.rollout.evidence import DeviceEvidence, Evidence
from edgepack_fleet.rollout.gates import BundleFacts
from edgepack_fleet.rollout.machine import Subject, advance, plan
from edgepack_fleet.rollout.model import (
    GateAction,
    GateName,
    GateOverride,
    Revert,
    RolloutOptions,
)


def options(**changes: object) -> RolloutOptions:
    return msgspec.structs.replace(DEMO, **changes)


def states(fleet: Fleet) -> list[str]:
    return sorted(update.state.value for update in fleet.rollout.updates.values())


def causes(fleet: Fleet) -> list[str]:
    return [event.cause for event in fleet.events()]


def canary(fleet: Fleet) -> str:
    return fleet.rollout.stages[0].devices[0]


# the two main roads


def test_a_good_bundle_goes_to_everybody_stage_by_stage():
    fleet = Fleet(5).start()
    rollout = fleet.run()
    assert rollout.state is RolloutState.COMPLETED
    assert [len(stage.devices) for stage in rollout.stages] == [1, 2, 2]
    assert [stage.state for stage in rollout.stages] == [StageState.PASSED] * 3
    assert {device.running for device in fleet.devices.values()} == {NEW}
    assert rollout.reason == "5 of 5 devices run digits 1.1.0"


def test_a_stage_passes_soon_after_its_soak():
    fleet = Fleet(5).start()
    stage = fleet.run().stages[0]
    assert stage.finished_ms - stage.soak_started_ms <= 1000 * (DEMO.soak_seconds + 5)
    assert stage.finished_ms - stage.soak_started_ms >= 1000 * DEMO.soak_seconds


def test_nobody_is_offered_the_bundle_before_the_stage_before_passed():
    fleet = Fleet(5).start()
    fleet.run()
    log = causes(fleet)
    assert log.count("stage-opened") == 3
    passed = [at for at, cause in enumerate(log) if cause == "stage-passed"]
    offered = [at for at, cause in enumerate(log) if cause == "device-offered"]
    assert sum(at < passed[0] for at in offered) == 1
    assert sum(at < passed[1] for at in offered) == 3


def test_a_bad_bundle_stops_at_the_canary_and_goes_back():
    fleet = Fleet(5, model=BAD).start()
    rollout = fleet.run()
    assert rollout.state is RolloutState.ROLLED_BACK
    assert rollout.stages[0].state is StageState.FAILED
    assert rollout.stages[1].state is StageState.WAITING
    assert {device.running for device in fleet.devices.values()} == {OLD}
    assert "class mix against 1.0.0: PSI" in rollout.reason
    assert rollout.updates[canary(fleet)].revert is Revert.DONE
    assert states(fleet) == ["cancelled"] * 5


def test_agreement_alone_stops_a_model_whose_mix_is_right():
    shuffled = Model(agreement=0.05)
    fleet = Fleet(5, model=shuffled).start()
    rollout = fleet.run()
    assert rollout.state is RolloutState.ROLLED_BACK
    assert rollout.reason.startswith("stage 1 failed: agreement: agreement with 1.0.0 is 1")
    assert "is below the limit 90 %" in rollout.reason
    opened = rollout.stages[0].opened_ms
    assert rollout.rollback_started_ms - opened <= 12_000


def test_errors_alone_stop_it():
    fleet = Fleet(1, model=Model(agreement=1.0, error_rate=0.2)).start()
    rollout = fleet.run()
    assert rollout.state is RolloutState.ROLLED_BACK
    assert "errors: errors against 1.0.0" in rollout.reason


def test_a_model_that_is_good_in_the_soak_and_bad_after_is_stopped_in_a_later_stage():
    fleet = Fleet(5).start()
    while fleet.rollout.stages[1].state is StageState.WAITING:
        fleet.tick()
    fleet.model = BAD
    rollout = fleet.run()
    assert rollout.state is RolloutState.ROLLED_BACK
    assert "stage 2 failed" in rollout.reason
    assert sum(update.revert is Revert.DONE for update in rollout.updates.values()) == 3
    assert {device.running for device in fleet.devices.values()} == {OLD}


# what devices do


def test_offline_at_the_offer_is_unreachable_after_the_deadline():
    fleet = Fleet(1, options=options(min_reported=0.0)).start()
    fleet.devices["gw-1"].online = False
    fleet.tick(31)
    update = fleet.rollout.updates["gw-1"]
    assert update.state is UpdateState.UNREACHABLE
    assert update.words == "offline while offered, for longer than 30 s"
    rollout = fleet.run()
    assert rollout.state is RolloutState.PAUSED
    assert "none runs the bundle" in rollout.reason


def test_who_comes_back_late_is_taken_in():
    fleet = Fleet(1, options=options(max_wait_seconds=600.0)).start()
    fleet.devices["gw-1"].online = False
    fleet.tick(40)
    assert states(fleet) == ["unreachable"]
    fleet.devices["gw-1"].online = True
    rollout = fleet.run()
    assert rollout.state is RolloutState.COMPLETED
    assert rollout.updates["gw-1"].attempt == 2


def test_one_unreachable_of_many_is_left_out():
    fleet = Fleet(6, options=options(stages=["100%"], min_reported=0.5)).start()
    fleet.devices["gw-2"].online = False
    rollout = fleet.run()
    assert rollout.state is RolloutState.COMPLETED_WITH_FAILURES
    assert rollout.reason.endswith("5 of 6 devices run digits 1.1.0; 1 do not")


def test_offline_in_the_middle_ends_with_a_reason():
    timeouts = {UpdateState.PROBATION: 20.0}
    fleet = Fleet(1, options=options(phase_timeouts=timeouts)).start()
    fleet.tick(3)
    assert states(fleet) == ["probation"]
    fleet.devices["gw-1"].online = False
    fleet.tick(25)
    assert fleet.rollout.updates["gw-1"].words == "offline while probation, for longer than 20 s"
    fleet.devices["gw-1"].online = True
    assert fleet.run().state is RolloutState.COMPLETED


def test_a_device_that_hangs_times_out_and_everybody_goes_back():
    timeouts = {UpdateState.DOWNLOADING: 20.0}
    fleet = Fleet(2, story="hangs", options=options(phase_timeouts=timeouts)).start()
    fleet.tick(25)
    update = fleet.rollout.updates[canary(fleet)]
    assert update.state is UpdateState.TIMED_OUT
    assert update.words == "no progress while downloading for longer than 20 s"
    assert fleet.rollout.state is not RolloutState.RUNNING
    assert "could not install (1 timeout-downloading)" in fleet.rollout.reason


def test_a_device_that_cannot_install_sends_everybody_back():
    fleet = Fleet(3).start()
    fleet.devices[canary(fleet)].story = "fails"
    rollout = fleet.run()
    assert rollout.state is RolloutState.ROLLED_BACK
    assert rollout.updates[canary(fleet)].state is UpdateState.FAILED
    assert "install: 1 of 1 devices could not install (1 failed)" in rollout.reason


def test_a_device_that_falls_back_sends_everybody_back():
    fleet = Fleet(3).start()
    fleet.tick()
    for device in fleet.devices.values():
        device.story = "falls back"
    rollout = fleet.run()
    assert rollout.state is RolloutState.ROLLED_BACK
    assert rollout.updates[canary(fleet)].state is UpdateState.FELL_BACK
    assert "fallback: 1 of 1 devices fell back" in rollout.reason


def test_success_is_what_is_running_and_another_digest_later_reopens_it():
    fleet = Fleet(2).start()
    while fleet.rollout.stages[0].state is not StageState.SOAKING:
        fleet.tick()
    device = fleet.devices[canary(fleet)]
    device.running, device.phase = OLD, Phase.FELL_BACK
    fleet.tick()
    assert fleet.rollout.updates[canary(fleet)].state is UpdateState.REGRESSED
    assert fleet.rollout.updates[canary(fleet)].fallbacks == 1
    assert fleet.rollout.state is RolloutState.ROLLING_BACK


def test_who_runs_it_already_is_told_apart():
    fleet = Fleet(2, running=NEW).start()
    fleet.tick(2)
    assert "already_installed" in states(fleet)
    rollout = fleet.run()
    assert rollout.state is RolloutState.COMPLETED
    assert set(states(fleet)) == {"already_installed"}
    assert all(device.told == NEW for device in fleet.devices.values())


def test_who_ran_it_already_is_not_sent_back():
    fleet = Fleet(2, options=options(stages=["100%"])).start()
    fleet.devices["gw-1"].running = fleet.devices["gw-1"].wanted = NEW
    fleet.devices["gw-1"].told = NEW
    fleet.tick(4)
    fleet.take(actions.rollback(fleet.rollout, fleet.now_ms, actor="ann"))
    rollout = fleet.run()
    assert rollout.state is RolloutState.ROLLED_BACK
    assert (fleet.devices["gw-1"].running, fleet.devices["gw-2"].running) == (NEW, OLD)


def test_a_device_that_leaves_is_counted_out():
    fleet = Fleet(3, options=options(stages=["100%"])).start()
    fleet.tick(2)
    fleet.devices["gw-2"].removed = True
    rollout = fleet.run()
    assert rollout.state is RolloutState.COMPLETED
    assert rollout.updates["gw-2"].state is UpdateState.REMOVED


def test_a_stage_that_everybody_left_is_skipped():
    fleet = Fleet(3).start()
    fleet.devices[canary(fleet)].removed = True
    rollout = fleet.run()
    assert rollout.stages[0].state is StageState.SKIPPED
    assert rollout.state is RolloutState.COMPLETED


def test_a_device_that_something_else_took_is_superseded():
    fleet = Fleet(2).start()
    while fleet.rollout.stages[0].state is not StageState.SOAKING:
        fleet.tick()
    other = "sha256:" + "c" * 64
    device = fleet.devices[canary(fleet)]
    device.tell(other)
    device.wanted = other
    device.generation_seen = device.generation_desired
    fleet.tick()
    assert fleet.rollout.updates[canary(fleet)].state is UpdateState.SUPERSEDED


def test_a_report_from_before_the_offer_does_not_answer_it():
    """The device failed on this very bundle once; only what it says to the new offer counts."""
    fleet = Fleet(1).start()
    stale = SlotReported(
        phase=Phase.FAILED, running=OLD, version="1.0.0", previous=None, wanted=NEW
    )
    before = DeviceEvidence(online=True, reported=stale, generation_seen=4, generation_desired=4)
    after = msgspec.structs.replace
    decision = advance(fleet.rollout, Evidence(devices={"gw-1": before}), fleet.now_ms)
    assert decision.rollout.updates["gw-1"].state is UpdateState.OFFERED
    unread = DeviceEvidence(online=True, reported=stale, generation_seen=4, generation_desired=5)
    later = advance(decision.rollout, Evidence(devices={"gw-1": unread}), fleet.now_ms + 1000)
    assert later.rollout.updates["gw-1"].state is UpdateState.OFFERED
    trying = after(stale, phase=Phase.DOWNLOADING)
    read = DeviceEvidence(online=True, reported=trying, generation_seen=5, generation_desired=5)
    later = advance(later.rollout, Evidence(devices={"gw-1": read}), fleet.now_ms + 2000)
    assert later.rollout.updates["gw-1"].state is UpdateState.DOWNLOADING


def test_a_device_that_refuses_its_orders_says_why():
    fleet = Fleet(1).start()
    fleet.tick()
    seen = DeviceEvidence(
        online=True, generation_seen=0, generation_desired=1, refused="untrusted: unknown key"
    )
    early = advance(fleet.rollout, Evidence(devices={"gw-1": seen}), fleet.now_ms + 5_000)
    assert early.rollout.updates["gw-1"].state is UpdateState.OFFERED
    slow = msgspec.structs.replace(fleet.rollout, options=RolloutOptions())
    late = advance(slow, Evidence(devices={"gw-1": seen}), fleet.now_ms + 61_000)
    assert late.rollout.updates["gw-1"].state is UpdateState.REJECTED
    assert "untrusted: unknown key" in late.rollout.updates["gw-1"].words


# gates that do not decide


def test_a_stage_without_traffic_pauses_and_says_what_is_missing():
    fleet = Fleet(2, rate=0).start()
    rollout = fleet.run()
    assert rollout.state is RolloutState.PAUSED
    assert rollout.stages[0].state is StageState.INCONCLUSIVE
    assert "errors: 0 new and 0 old of 500 requests each so far" in rollout.reason
    assert rollout.reason.startswith("stage 1 is inconclusive: agreement: no pairs so far")


def test_or_rolls_back_when_told_so():
    fleet = Fleet(2, rate=0, options=options(on_inconclusive="rollback")).start()
    rollout = fleet.run()
    assert rollout.state is RolloutState.ROLLED_BACK
    assert "inconclusive" in rollout.reason


def test_a_gate_can_pause_instead_and_resuming_acknowledges_it():
    pausing = {
        gate: GateOverride(action=GateAction.PAUSE)
        for gate in (GateName.AGREEMENT, GateName.CLASS_MIX, GateName.CONFIDENCE)
    }
    fleet = Fleet(1, model=BAD, options=options(gates=pausing)).start()
    rollout = fleet.run()
    assert rollout.state is RolloutState.PAUSED
    for _ in range(3):
        if fleet.rollout.state is RolloutState.PAUSED:
            fleet.take(actions.resume(fleet.rollout, fleet.now_ms, actor="ann"))
            fleet.run()
    assert fleet.rollout.state is RolloutState.COMPLETED
    acknowledged = [gate for gate in fleet.rollout.stages[0].gates if gate.acknowledged]
    assert {gate.verdict for gate in acknowledged} == {Verdict.FAIL}


def test_a_gate_that_fails_while_paused_still_sends_everybody_back():
    fleet = Fleet(5, model=BAD).start()
    fleet.tick(3)
    fleet.take(actions.pause(fleet.rollout, fleet.now_ms, actor="ann"))
    fleet.tick(10)
    assert fleet.rollout.state in (RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK)


def test_nothing_is_offered_while_paused():
    fleet = Fleet(5).start()
    fleet.tick(3)
    fleet.take(actions.pause(fleet.rollout, fleet.now_ms, actor="ann"))
    fleet.tick(60)
    assert fleet.rollout.state is RolloutState.PAUSED
    assert states(fleet).count("pending") == 4
    fleet.take(actions.resume(fleet.rollout, fleet.now_ms, actor="ann"))
    assert fleet.run().state is RolloutState.COMPLETED


# the way back


def test_a_rollback_that_a_device_does_not_follow_is_incomplete_until_it_does():
    fleet = Fleet(2, options=options(stages=["100%"])).start()
    fleet.tick(8)
    fleet.devices["gw-1"].online = False
    fleet.take(actions.rollback(fleet.rollout, fleet.now_ms, actor="ann", reason="smoke"))
    rollout = fleet.run()
    assert rollout.state is RolloutState.ROLLBACK_INCOMPLETE
    assert rollout.reason == "rolled back by ann: smoke"
    assert fleet.events()[-1].words.endswith("not back: gw-1")
    fleet.devices["gw-1"].online = True
    fleet.tick(10)
    assert fleet.rollout.state is RolloutState.ROLLED_BACK
    assert fleet.devices["gw-1"].running == OLD


def test_without_a_previous_bundle_a_device_keeps_what_runs():
    fleet = Fleet(2, running=None, model=Model(agreement=1.0, nonfinite_rate=0.1)).start()
    rollout = fleet.run()
    assert rollout.state is RolloutState.ROLLBACK_INCOMPLETE
    assert "non_finite" in rollout.reason
    assert rollout.updates[canary(fleet)].revert is Revert.IMPOSSIBLE
    assert "without a previous bundle, keeping what they run" in fleet.events()[-1].words
    assert fleet.devices[canary(fleet)].running == NEW


def test_a_first_install_completes_without_comparisons():
    fleet = Fleet(2, running=None).start()
    rollout = fleet.run()
    assert rollout.state is RolloutState.COMPLETED
    said = {gate.gate: gate.verdict for gate in rollout.stages[0].gates}
    assert said[GateName.AGREEMENT] is Verdict.NOT_APPLICABLE
    assert said[GateName.NON_FINITE] is Verdict.PASS


def test_devices_go_back_to_what_each_of_them_ran():
    other = "sha256:" + "d" * 64
    fleet = Fleet(2, options=options(stages=["100%"]))
    device = fleet.devices["gw-2"]
    device.running = device.wanted = device.told = other
    fleet.start()
    fleet.tick(6)
    fleet.take(actions.rollback(fleet.rollout, fleet.now_ms, actor="ann"))
    assert fleet.run().state is RolloutState.ROLLED_BACK
    assert fleet.devices["gw-1"].running == OLD
    assert fleet.devices["gw-2"].running == other


# limits


def test_no_more_than_max_in_flight_install_at_once():
    fleet = Fleet(12, options=options(stages=["100%"], max_in_flight=3)).start()
    busy = {"offered", "downloading", "probation"}
    most = 0
    while "pending" in states(fleet):
        fleet.tick()
        most = max(most, sum(state in busy for state in states(fleet)))
    assert most == 3
    assert fleet.run().state is RolloutState.COMPLETED


def test_devices_that_are_offline_do_not_starve_the_others():
    fleet = Fleet(6, options=options(stages=["100%"], max_in_flight=1, min_reported=0.1)).start()
    for name in ("gw-1", "gw-2", "gw-3"):
        fleet.devices[name].online = False
    rollout = fleet.run()
    assert rollout.state is RolloutState.COMPLETED_WITH_FAILURES
    assert states(fleet) == ["succeeded"] * 3 + ["unreachable"] * 3


def test_a_plan_needs_different_devices():
    fleet = Fleet(1)
    subject = Subject(
        id="x", slot="s", group="g", bundle="b", version="1.0.0", digest=NEW, facts=BundleFacts()
    )
    assert fleet.rollout.state is RolloutState.DRAFT
    with pytest.raises(InvalidRequestError, match="needs different devices"):
        plan(subject, [], DEMO, 0)


@pytest.mark.parametrize(
    "state", [state for state in RolloutState if state not in ("running", "paused", "rolling_back")]
)
def test_what_is_not_under_way_does_not_move(state: RolloutState):
    fleet = Fleet(2)
    late = {
        name: msgspec.structs.replace(update, revert=Revert.LATE)
        for name, update in fleet.rollout.updates.items()
    }
    still = msgspec.structs.replace(fleet.rollout, state=state, updates=late)
    decision = advance(still, Evidence(), fleet.now_ms + 10_000_000)
    assert decision.rollout == still
    assert decision.events == ()
    assert decision.commands == ()

"""Laws over random histories: the log is the rollout, ticks are idempotent, offers stay inside."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_simulation import BAD, DEMO, GOOD, NEW, Fleet

from edgepack_contract.states import RolloutState, StageState, UpdateState, Verdict
from edgepack_fleet.errors import ConflictError
from edgepack_fleet.rollout import actions
from edgepack_fleet.rollout.eventlog import replay
from edgepack_fleet.rollout.machine import advance
from edgepack_fleet.rollout.model import IN_FLIGHT, Decision, Rollout, RolloutEvent

STEPS = st.one_of(
    st.tuples(st.just("tick"), st.integers(1, 12)),
    st.tuples(st.sampled_from(["lose", "find", "remove", "regress"]), st.integers(1, 4)),
    st.tuples(st.sampled_from(["installs", "fails", "falls back", "hangs"]), st.integers(1, 4)),
    st.tuples(
        st.sampled_from(["pause", "resume", "promote", "rollback", "keep", "revert", "reload"]),
        st.just(0),
    ),
    st.tuples(st.sampled_from(["good", "bad"]), st.just(0)),
)


def do(fleet: Fleet, step: str, number: int) -> None:
    device = fleet.devices.get(f"gw-{number}")
    if step == "tick":
        for _ in range(number):
            fleet.tick()
            check_tick(fleet)
    elif step in ("good", "bad"):
        fleet.model = GOOD if step == "good" else BAD
    elif step == "reload":
        rollout = msgspec.json.decode(msgspec.json.encode(fleet.rollout), type=Rollout)
        fleet.decisions.append(Decision(rollout))
    elif device is None:
        operate(fleet, step)
    elif step in ("lose", "find"):
        device.online = step == "find"
    elif step == "remove":
        device.removed = True
    elif step == "regress" and device.previous is not None:
        device.running, device.previous = device.previous, None
    else:
        device.story = step


def operate(fleet: Fleet, step: str) -> None:
    now = fleet.now_ms
    try:
        if step in ("keep", "revert"):
            decision = actions.abort(fleet.rollout, now, actor="ann", revert=step == "revert")
        else:
            decision = getattr(actions, step)(fleet.rollout, now, actor="ann")
    except ConflictError:
        return
    fleet.take(decision)


def check_tick(fleet: Fleet) -> None:
    """After a tick, the same tick changes nothing, and offers stay inside their stages."""
    evidence = fleet.evidence()
    first = advance(fleet.rollout, evidence, fleet.now_ms)
    again = advance(first.rollout, evidence, fleet.now_ms)
    assert (again.rollout, again.events, again.commands) == (first.rollout, (), ())
    check_offers(fleet.rollout)
    back = fleet.rollout.state in (RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK)
    if back:
        assert all(command.digest != NEW for command in fleet.decisions[-1].commands)


def check_offers(rollout: Rollout) -> None:
    gone = {UpdateState.PENDING, UpdateState.CANCELLED, UpdateState.REMOVED}
    for stage in rollout.stages:
        before = rollout.stages[: stage.index]
        reached = any(rollout.updates[device].state not in gone for device in stage.devices)
        if reached:
            assert all(part.state in (StageState.PASSED, StageState.SKIPPED) for part in before)
        if stage.state is StageState.PASSED:
            undecided = [
                gate for gate in stage.gates
                if gate.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE) and not gate.acknowledged
            ]  # fmt: skip
            assert not undecided


@settings(max_examples=60)
@given(st.lists(STEPS, max_size=25), st.integers(0, 5))
def test_the_log_is_the_rollout(steps: list[tuple[str, int]], seed: int):
    options = msgspec.structs.replace(
        DEMO, max_wait_seconds=10.0, offer_deadline_seconds=8.0, rollback_deadline_seconds=15.0,
        phase_timeouts={UpdateState.DOWNLOADING: 6.0},
    )  # fmt: skip
    fleet = Fleet(4, seed=seed, options=options, history_s=15).start()
    for step, number in steps:
        do(fleet, step, number)
    raw = [msgspec.json.encode(event) for event in fleet.events()]
    events = [msgspec.json.decode(line, type=RolloutEvent) for line in raw]
    assert replay(events) == fleet.rollout
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert all(event.words and event.cause for event in events)


@settings(max_examples=30)
@given(st.lists(STEPS, max_size=15), st.integers(0, 5))
def test_every_rollout_ends_or_says_what_it_waits_for(steps: list[tuple[str, int]], seed: int):
    options = msgspec.structs.replace(
        DEMO, max_wait_seconds=10.0, offer_deadline_seconds=8.0, rollback_deadline_seconds=15.0,
        phase_timeouts=dict.fromkeys(IN_FLIGHT, 10.0),
    )  # fmt: skip
    fleet = Fleet(4, seed=seed, options=options, history_s=15).start()
    for step, number in steps:
        do(fleet, step, number)
    rollout = fleet.run(limit_s=400)
    assert rollout.state not in (RolloutState.RUNNING, RolloutState.ROLLING_BACK)
    assert rollout.reason


def test_a_log_with_a_hole_is_refused():
    fleet = Fleet(2).start()
    fleet.tick(5)
    events = fleet.events()
    with pytest.raises(ValueError, match="event 4 follows event 2"):
        replay([*events[:2], *events[3:]])
    with pytest.raises(ValueError, match="does not begin with the plan"):
        replay(events[1:])
    with pytest.raises(ValueError, match="is empty"):
        replay([])

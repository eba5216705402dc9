"""The controller: decisions out of the database, into the database, and nothing in between."""

from __future__ import annotations

import msgspec
import pytest
from fleet_world import AT_ONCE, OPTIONS, World
from sqlalchemy import func, select

from edgepack_contract.states import RolloutState, UpdateState, Verdict
from edgepack_fleet import controller as controller_module
from edgepack_fleet.auditing import verify_log
from edgepack_fleet.db.schema import OutboxRow, WindowRow
from edgepack_fleet.desired import put_all_again
from edgepack_fleet.errors import ConflictError
from edgepack_fleet.groups import create_group
from edgepack_fleet.rollouts import Action, Verb, act_on_rollout, replayed


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def settled(world):
    """A world whose devices have run 1.0.0 for a while."""
    world.one = world.push("1.0.0")
    first = world.roll_out("1.0.0", AT_ONCE)
    assert world.rollout(first).state is RolloutState.COMPLETED
    for _ in range(14):
        world.step()
    return world


def act(world, rollout_id, verb, **more):
    with world.database.write() as session:
        action = Action(verb=verb, actor="ann", **more)
        return act_on_rollout(session, world.writer, rollout_id, action, now_ms=world.now_ms)


def assert_log_is_whole(world, rollout_id):
    with world.database.read() as session:
        assert verify_log(session).broken == ()
        assert replayed(session, rollout_id) == world.rollout(rollout_id)


def test_a_good_bundle_reaches_everybody_stage_by_stage(settled):
    two = settled.push("1.1.0")
    rollout_id = settled.start("1.1.0")
    settled.step()
    offered = [device for device in settled.devices if device.wanted == two]
    assert len(offered) == 1
    settled.run(lambda: settled.rollout(rollout_id).finished_ms is not None)
    rollout = settled.rollout(rollout_id)
    assert rollout.state is RolloutState.COMPLETED
    assert {device.running for device in settled.devices} == {two}
    verdicts = {result.verdict for stage in rollout.stages for result in stage.gates}
    assert Verdict.FAIL not in verdicts
    assert_log_is_whole(settled, rollout_id)


def test_a_bad_bundle_is_taken_back_from_the_canary_with_the_reason_in_words(settled):
    bad = settled.push("1.2.0")
    for device in settled.devices:
        device.bad.add(bad)
    rollout_id = settled.roll_out("1.2.0")
    rollout = settled.rollout(rollout_id)
    assert rollout.state is RolloutState.ROLLED_BACK
    assert "agreement" in rollout.reason
    assert {device.running for device in settled.devices} == {settled.one}
    assert sum(bad in dict(map(reversed, device.told)) for device in settled.devices) == 1
    assert_log_is_whole(settled, rollout_id)


def test_a_bundle_that_a_device_rejects_goes_no_further(settled):
    broken = settled.push("1.2.0")
    for device in settled.devices:
        device.broken.add(broken)
    rollout = settled.rollout(settled.roll_out("1.2.0"))
    assert rollout.state is RolloutState.ROLLED_BACK
    failed = [update for update in rollout.updates.values() if update.code == "bad-signature"]
    assert [update.state for update in failed] == [UpdateState.REJECTED]


def test_generations_grow_by_what_is_asked_for_and_never_mean_two_things(settled):
    bad = settled.push("1.2.0")
    for device in settled.devices:
        device.bad.add(bad)
    settled.roll_out("1.2.0")
    for device in settled.devices:
        meanings = dict(device.told)
        assert sorted(meanings) == list(range(1, max(meanings) + 1))
        assert all(meanings[generation] == digest for generation, digest in device.told)


@pytest.mark.parametrize("version", ["1.1.0", "1.2.0"])
def test_restarted_at_every_step_it_ends_the_same(settled, version):
    """No restart loses a decision or makes one twice, wherever it comes."""
    digest = settled.push(version)
    if version == "1.2.0":
        for device in settled.devices:
            device.bad.add(digest)
    rollout_id = settled.start(version)
    for number in range(300):
        if settled.rollout(rollout_id).finished_ms is not None:
            break
        # as after kill -9: nothing is published or given back, the next run takes over
        settled.now_ms += 1000
        settled.controller.tick()
        settled.close()
        settled.open(holder=f"run-{number}")
        settled.step()
    good = version == "1.1.0"
    wanted = RolloutState.COMPLETED if good else RolloutState.ROLLED_BACK
    assert settled.rollout(rollout_id).state is wanted
    assert {device.running for device in settled.devices} == {digest if good else settled.one}
    for device in settled.devices:
        meanings = dict(device.told)
        assert all(meanings[generation] == told for generation, told in device.told)
    assert_log_is_whole(settled, rollout_id)


def test_an_offline_device_hears_of_it_when_it_is_back(settled):
    two = settled.push("1.1.0")
    away = settled.devices[-1]
    settled.lose(away)
    rollout_id = settled.start("1.1.0", msgspec.structs.replace(OPTIONS, min_reported=0.5))
    settled.run(lambda: settled.rollout(rollout_id).finished_ms is not None)
    before = settled.rollout(rollout_id)
    assert before.updates[away.name].state is UpdateState.UNREACHABLE
    away.offline = False
    with settled.database.write() as session:
        put_all_again(session, now_ms=settled.now_ms)  # what the broker has retained for it
    settled.run(lambda: away.running == two)


def test_a_tick_without_news_writes_nothing(settled):
    settled.push("1.1.0")
    rollout_id = settled.start("1.1.0")
    settled.step()
    settled.controller.tick()
    before = settled.rollout(rollout_id)
    settled.controller.tick()
    assert settled.rollout(rollout_id) == before


def test_without_the_lease_nothing_is_decided(settled):
    settled.push("1.1.0")
    rollout_id = settled.start("1.1.0")
    other = settled.make_controller("second")
    other.tick()
    assert not other.driving
    assert settled.rollout(rollout_id).stages[0].opened_ms is None
    settled.controller.stop()
    other.tick()
    assert other.driving
    assert settled.rollout(rollout_id).stages[0].opened_ms is not None
    settled.controller = other


def test_a_former_holder_that_wakes_up_in_mid_tick_commits_nothing(settled, monkeypatch):
    settled.push("1.1.0")
    rollout_id = settled.start("1.1.0")
    advance = controller_module.advance

    def slowly(rollout, evidence, now_ms):
        settled.make_controller("second").take_over()
        return advance(rollout, evidence, now_ms)

    monkeypatch.setattr(controller_module, "advance", slowly)
    with pytest.raises(controller_module.LeaseLostError):
        settled.controller.tick()
    assert settled.rollout(rollout_id).stages[0].opened_ms is None


def test_an_operator_who_is_faster_than_the_tick_wins(settled, monkeypatch):
    settled.push("1.1.0")
    rollout_id = settled.start("1.1.0")
    advance = controller_module.advance

    def slowly(rollout, evidence, now_ms):
        act(settled, rollout_id, Verb.PAUSE)
        return advance(rollout, evidence, now_ms)

    monkeypatch.setattr(controller_module, "advance", slowly)
    settled.controller.tick()
    monkeypatch.undo()
    rollout = settled.rollout(rollout_id)
    assert rollout.state is RolloutState.PAUSED
    assert rollout.stages[0].opened_ms is None
    assert_log_is_whole(settled, rollout_id)


def test_a_rollout_that_cannot_be_decided_is_paused_and_the_others_go_on(settled, monkeypatch):
    settled.push("1.1.0")
    with settled.database.write() as session:
        create_group(session, name="left", members=["pi-1"], now_ms=settled.now_ms)
        create_group(session, name="right", members=["pi-2", "pi-3"], now_ms=settled.now_ms)
    broken = settled.start("1.1.0", group="left")
    other = settled.start("1.1.0", group="right")
    advance = controller_module.advance

    def fails(rollout, evidence, now_ms):
        if rollout.id == broken:
            raise ZeroDivisionError("unforeseen")
        return advance(rollout, evidence, now_ms)

    monkeypatch.setattr(controller_module, "advance", fails)
    settled.run(lambda: settled.rollout(other).finished_ms is not None)
    assert settled.rollout(other).state is RolloutState.COMPLETED
    paused = settled.rollout(broken)
    assert paused.state is RolloutState.PAUSED
    assert "ZeroDivisionError: unforeseen" in paused.reason
    monkeypatch.undo()
    act(settled, broken, Verb.RESUME)
    settled.run(lambda: settled.rollout(broken).finished_ms is not None)
    assert settled.rollout(broken).state is RolloutState.COMPLETED
    assert_log_is_whole(settled, broken)


def test_what_is_kept_for_a_time_goes(settled):
    settled.now_ms += 3 * 86_400_000
    settled.controller.take_over()
    settled.controller.tick()
    with settled.database.read() as session:
        assert session.scalar(select(func.count()).select_from(WindowRow)) == 0
        kept = session.scalars(select(OutboxRow.published_ms)).all()
    assert set(kept) == {None}  # the refreshed documents, which are not published yet


def test_a_second_rollout_of_the_same_devices_is_refused(settled):
    settled.push("1.1.0")
    rollout_id = settled.start("1.1.0")
    with pytest.raises(ConflictError, match=rollout_id):
        settled.start("1.1.0")
    settled.run(lambda: settled.rollout(rollout_id).finished_ms is not None)
    again = settled.roll_out("1.1.0")
    states = {update.state for update in settled.rollout(again).updates.values()}
    assert states == {UpdateState.ALREADY_INSTALLED}

"""What worked last is tried again while nothing works: after a minute, and ever more rarely."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from msgspec.structs import replace
from slot_world import World, bundle, ranked

from edgepack_contract.states import Phase
from edgepack_runtime.activation.guard import Counters
from edgepack_runtime.activation.machine import MAX_ATTEMPTS
from edgepack_runtime.activation.parts import Timing

A, B = bundle("1.0.0"), bundle("1.1.0")


@pytest.fixture
def lost(world) -> World:
    """A slot whose only model would not load at the last start."""
    world.start()
    world.install(A)
    world.stop()
    world.temper.load_failures[A.digest] = MAX_ATTEMPTS
    world.start()
    assert (world.state.phase, world.host.serving) == (Phase.SAFE_MODE, None)
    return world


def wait(world: World, seconds: float) -> None:
    """Let the slot's thread attend to what comes for so long."""
    until = world.now + seconds
    while world.now < until:
        world.agent.turn()


def test_a_model_that_does_not_load_for_a_moment_comes_back(lost):
    lost.temper.source_failures = 100
    wait(lost, 150)
    lost.settle()
    assert (lost.state.phase, lost.host.serving) == (Phase.SUCCEEDED, A.digest)
    assert (lost.state.lost, lost.state.blocked) == (None, ())
    assert lost.host.events[-1] == ("installed", A.digest, "")
    assert lost.probed[-1] == "generic", "a child tries it first"


def test_it_is_kept_while_nothing_works(lost):
    assert lost.store.has(A.digest)
    assert lost.state.lost.bundle.digest == A.digest


def test_one_that_never_loads_is_tried_ever_more_rarely(lost):
    lost.temper.load_failures[A.digest] = 10**9
    tries = []
    for _ in range(10):
        done = lost.state.lost.tries
        while lost.state.lost.tries == done:
            lost.agent.turn()
        tries.append(lost.now)
        lost.settle()
        assert (lost.state.phase, lost.host.serving) == (Phase.SAFE_MODE, None)
    waits = [later - before for before, later in pairwise(tries)]
    assert 60 <= waits[0] <= 300
    assert all(1800 <= wait <= 5460 for wait in waits[-3:])


def test_one_that_does_badly_in_the_child_never_gets_to_the_daemon(lost):
    lost.temper.probe_codes[A.digest] = ["golden-mismatch"] * 3
    served = lost.host.served.copy()
    wait(lost, 600)
    lost.settle()
    assert lost.host.served == served
    assert lost.state.lost is not None
    wait(lost, 3 * 3600)
    lost.settle()
    assert (lost.state.phase, lost.host.serving) == (Phase.SUCCEEDED, A.digest)


def test_a_model_that_ended_the_process_at_each_start_is_kept_as_well(world):
    world.start()
    world.install(A)
    state = replace(world.state, starts=MAX_ATTEMPTS, clean=False)
    world.agent._parts.journal.save(state)
    world.start()
    assert (world.state.phase, world.state.code) == (Phase.SAFE_MODE, "crash-loop")
    wait(world, 150)
    world.settle()
    assert world.host.serving == A.digest


def test_a_restart_goes_on_waiting(lost):
    lost.stop()
    lost.start()
    assert lost.state.phase == Phase.SAFE_MODE
    wait(lost, 150)
    lost.settle()
    assert lost.host.serving == A.digest


def test_a_newer_order_goes_first_and_its_success_ends_it(lost):
    lost.install(B)
    assert (lost.state.lost, lost.store.has(A.digest)) == (None, False)
    wait(lost, 600)
    assert lost.host.serving == B.digest


def test_an_order_that_comes_as_its_time_does_goes_first(lost):
    lost.wish(B)
    lost.now += 600
    lost.run_to(Phase.SUCCEEDED)
    assert lost.host.serving == B.digest


def test_an_order_that_waits_for_room_is_tried_as_often_as_ever(lost):
    lost.calls.full = True
    lost.wish(B)
    lost.agent.turn()
    before = lost.now
    lost.agent.turn()
    assert lost.now - before == Timing().unwritten


def test_an_order_that_fails_does_not_end_it(lost):
    lost.temper.counters[B.digest] = Counters(requests=100, errors=50)
    lost.wish(B)
    lost.settle()
    assert lost.state.phase == Phase.SAFE_MODE
    wait(lost, 600)
    lost.settle()
    assert lost.host.serving == A.digest
    assert lost.state.blocked == (B.digest,)


def test_what_has_a_model_before_it_falls_back_to_that(world):
    world.start()
    world.install(A)
    world.install(B)
    world.stop()
    world.temper.load_failures[B.digest] = MAX_ATTEMPTS
    world.start()
    assert (world.state.phase, world.host.serving) == (Phase.FELL_BACK, A.digest)
    assert world.state.lost is None
    assert world.state.blocked == (B.digest,)


def test_one_that_is_revoked_is_not_tried_again(lost):
    lost.keyring = replace(lost.keyring, revoked_digests=[A.digest])
    wait(lost, 150)
    lost.settle()
    assert (lost.state.phase, lost.state.code) == (Phase.REJECTED, "revoked-digest")
    assert lost.state.lost is None
    assert not lost.store.has(A.digest)


def rot(world: World) -> None:
    """Alter a byte of the only model, as a bad card does, and start after an unclean end."""
    path = world.store.model(A.digest) / "model.onnx"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    world.start()
    assert (world.state.phase, world.host.serving) == (Phase.SAFE_MODE, None)


@pytest.fixture
def rotten(world) -> World:
    """A slot whose only model is damaged on the disk."""
    world.start()
    world.install(A)
    rot(world)
    return world


def test_damaged_files_are_fetched_again(rotten):
    wait(rotten, 1200)
    rotten.settle()
    assert (rotten.state.phase, rotten.host.serving) == (Phase.SUCCEEDED, A.digest)
    assert rotten.host.events[-2:] == [
        ("verify-failed", A.digest, "wrong-digest"), ("installed", A.digest, ""),
    ]  # fmt: skip
    assert rotten.state.lost is None


def test_what_read_badly_once_is_read_again_before_it_is_given_up(rotten):
    rotten.temper.source_failures = 10**6
    path = rotten.store.model(A.digest) / "model.onnx"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    wait(rotten, 150)
    rotten.settle()
    assert rotten.host.serving == A.digest


def test_damaged_files_are_fetched_whenever_the_fleet_is_there_again(rotten):
    rotten.temper.source_failures = 10**6
    wait(rotten, 7200)
    rotten.settle()
    assert (rotten.state.phase, rotten.state.lost.damaged) == (Phase.FAILED, True)
    rotten.temper.source_failures = 0
    wait(rotten, 7200)
    rotten.settle()
    assert rotten.host.serving == A.digest


def test_damaged_files_that_nobody_has_are_not_asked_for(rotten):
    rotten.temper.counters[B.digest] = Counters(requests=100, errors=50)
    wait(rotten, 150)
    rotten.settle()
    assert rotten.state.lost.damaged
    rotten.wish(B)
    rotten.settle()
    installs = rotten.state.install
    wait(rotten, 7200)
    assert (rotten.state.phase, rotten.state.install) == (Phase.SAFE_MODE, installs)


def test_one_that_nobody_wants_stays_away(lost):
    lost.temper.unwanted.add(A.digest)
    installs = lost.state.install
    wait(lost, 7200)
    assert (lost.state.phase, lost.state.install) == (Phase.SAFE_MODE, installs)


def test_a_floor_does_not_hold_it_back(lost):
    lost.agent._runner._floor_elsewhere = lambda name: {"digits": 99}[name]
    wait(lost, 150)
    lost.settle()
    assert (lost.state.phase, lost.host.serving) == (Phase.SUCCEEDED, A.digest)


def test_a_slot_that_is_emptied_forgets_it(lost):
    lost.agent.empty()
    lost.settle()
    assert (lost.state.phase, lost.state.lost) == (Phase.IDLE, None)
    assert not lost.store.has(A.digest)


def test_without_room_for_the_record_it_waits(lost):
    lost.calls.full = True
    wait(lost, 600)
    assert (lost.state.phase, lost.state.lost.tries) == (Phase.SAFE_MODE, 0)
    lost.calls.full = False
    wait(lost, 3600)
    lost.settle()
    assert lost.host.serving == A.digest


def test_the_waits_have_a_bound_however_often_it_was_tried():
    rng = random.Random(1)
    assert all(Timing().revival.delay(tried, rng) <= 5400 for tried in (1, 50, 10**6))


def test_of_ranked_variants_it_is_the_one_that_worked(world):
    choosy = ranked("2.9.0")
    world.temper.probe_codes["fast"] = ["latency-budget"]
    world.start()
    world.install(choosy)
    world.stop()
    world.temper.load_failures[choosy.digest] = MAX_ATTEMPTS
    world.temper.source_failures = 100
    world.probed.clear()
    world.start()
    wait(world, 150)
    world.settle()
    assert (world.host.serving, world.probed) == (choosy.digest, ["alt1"])

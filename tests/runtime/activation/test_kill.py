"""kill -9 at every change of the disk: a real process, really killed, and another one after it."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from slot_world import World, bundle

from edgepack_contract.states import Phase
from edgepack_runtime.activation.guard import Counters

A, B = bundle("1.0.0"), bundle("1.1.0")


def in_a_process(work, *, kill_at: int = 0) -> int:
    """Run ``work(calls hook)`` in a child; how it ended, as ``os.waitstatus_to_exitcode`` says."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def fault(_name, count):
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        work(fault)
    except BaseException:  # noqa: BLE001 - the child must not go on as a second pytest
        os._exit(1)
    os._exit(0)


def install(world: World, fault) -> None:
    world.calls.count = 0
    world.calls.fault = fault
    world.start()
    world.wish(B)
    world.settle()


def prepared(root, number: int = 0) -> World:
    """A device that runs A, its process ended."""
    template = root / "template"
    if not template.exists():
        world = World(template)
        world.start()
        world.install(A)
        world.stop()
    shutil.copytree(template, root / str(number))
    world = World(root / str(number))
    world.generation = 1
    return world


def changes_of(world: World) -> int:
    """How often an undisturbed install changes the disk."""
    install(world, None)
    return world.calls.count


@pytest.mark.parametrize(
    ("bad", "stride"), [(False, 1), (True, 4)], ids=["good model", "bad model"]
)
def test_killed_at_changes_of_the_disk(root, bad, stride):
    probe = prepared(root, 0)
    temper = Counters(requests=100, errors=100 * bad)
    probe.temper.counters[B.digest] = temper
    total = changes_of(probe)
    assert total > 60
    for kill_at in range(1, total + 1, stride):
        world = prepared(root, kill_at)
        world.temper.counters[B.digest] = temper
        ended = in_a_process(lambda fault, world=world: install(world, fault), kill_at=kill_at)
        assert ended == -signal.SIGKILL
        check_recovery(world, bad=bad, kill_at=kill_at)


def check_recovery(world: World, *, bad: bool, kill_at: int) -> None:
    world.calls.fault = None
    world.start()
    # whatever was under way, a model answers as soon as the process is up
    assert world.host.serving in (A.digest, B.digest), kill_at
    world.settle()
    # the wish came to the killed process; the fleet says it again to the new one
    world.wish(B)
    world.settle()
    expected = (Phase.FELL_BACK, A.digest) if bad else (Phase.SUCCEEDED, B.digest)
    assert (world.state.phase, world.host.serving) == expected, kill_at
    kept = {entry.name for entry in (world.root / "slots" / "main" / "store").iterdir()}
    good = {A.digest} if bad else {A.digest, B.digest}
    assert kept == {digest.removeprefix("sha256:") for digest in good}, kill_at
    assert not list((world.root / "slots" / "main" / "staging").iterdir()), kill_at
    assert not list(world.root.rglob("*.tmp-*")), kill_at


def test_killed_again_and_again_it_still_ends(root):
    world = prepared(root)
    kill_at = 7
    for _ in range(200):
        ended = in_a_process(lambda fault: resume(world, fault), kill_at=kill_at)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        kill_at += 3
    else:
        pytest.fail("it never came to an end")
    world.start()
    assert world.host.serving in (A.digest, B.digest)


def resume(world: World, fault) -> None:
    world.calls.count = 0
    world.calls.fault = fault
    world.start()
    world.wish(B)
    world.settle()

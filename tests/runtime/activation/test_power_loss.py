"""A power cut after every change of the disk during an install, with all that it may leave.

And the proof that this would be noticed: without any one kind of fsync the same check fails.
"""

from __future__ import annotations

import hashlib
import random
import re
import shutil

import pytest
from power_loss import Disk, RecordingCalls, materialise
from slot_world import World, bundle

from edgepack_contract.states import Phase
from edgepack_runtime.activation.guard import Counters

A, B = bundle("1.0.0", size=3000), bundle("1.1.0", size=3000)


class LostModelError(AssertionError):
    """A power cut left a device worse off than it may."""


@pytest.fixture
def before(root):
    """The disk of a device that runs A."""
    world = World(root / "before")
    world.start()
    world.install(A)
    world.stop()
    return world.root


def recorded(before, root, *, bad: bool) -> list[tuple]:
    """The changes of the disk that an install makes."""
    shutil.copytree(before, root / "recorded")
    world = World(root / "recorded")
    world.calls = RecordingCalls(world.root)
    world.generation = 1
    world.temper.counters[B.digest] = Counters(requests=100, errors=100 * bad)
    world.start()
    world.wish(B)
    world.settle()
    return world.calls.log


def survive(root, *, bad: bool, committed: bool) -> None:
    """What must hold on any disk that a power cut may leave."""
    world = World(root)
    world.boot = 2
    world.temper.counters[B.digest] = Counters(requests=100, errors=100 * bad)
    world.start()
    if world.host.serving not in (A.digest, B.digest):
        raise LostModelError(f"nothing answers: {world.state}")
    world.settle()
    if world.state.blocked not in ((), (B.digest,) if bad else ()):
        raise LostModelError(f"a good model is blocked: {world.state}")
    if committed and world.state.active and world.state.active.digest != B.digest:
        raise LostModelError(f"what succeeded is lost: {world.state}")
    world.generation = 1
    world.wish(B)
    world.settle()
    expected = (Phase.FELL_BACK, A.digest) if bad else (Phase.SUCCEEDED, B.digest)
    if (world.state.phase, world.host.serving) != expected:
        raise LostModelError(f"the install does not end well: {world.state}")


def check(before, root, log, *, bad: bool, samples: int, backwards: bool = False) -> int:
    """Cut the power after each prefix of ``log``; how many different disks that gave."""
    disk = Disk(before)
    cuts = []
    for number, op in enumerate(log):
        disk.apply(op)
        trees = disk.cuts(random.Random(number), samples=samples)
        cuts += [(number == len(log) - 1, tree) for tree in trees]
    seen: dict[str, dict] = {}
    for last, tree in reversed(cuts) if backwards else cuts:
        key = hashlib.sha256(repr((last, sorted(tree.items()))).encode()).hexdigest()
        if key in seen:
            continue
        seen[key] = tree
        place = root / "cut"
        materialise(tree, place)
        survive(place, bad=bad, committed=last and not bad)
        shutil.rmtree(place)
    return len(seen)


@pytest.mark.parametrize("bad", [False, True], ids=["good model", "bad model"])
def test_any_power_cut_leaves_a_working_model_and_the_install_ends_well(before, root, bad):
    log = recorded(before, root, bad=bad)
    assert len(log) > 100
    disks = check(before, root, log, bad=bad, samples=1)
    assert disks > 100


MISSING = [
    ("fsync", r"/CURRENT"),
    ("fsync", r"/model/"),
    ("fsync", r"/proof/"),
    ("fsync_dir", r"slots/main$"),
    ("fsync_dir", r"/model$"),
    ("fsync_dir", r"/proof$"),
    # a rename is durable with either folder, so that only both together are missed
    ("fsync_dir", r"/(store|staging)$"),
]


@pytest.mark.parametrize(("call", "where"), MISSING)
def test_without_one_kind_of_fsync_the_check_fails(before, root, call, where):
    log = recorded(before, root, bad=False)
    kept = [op for op in log if not (op[0] == call and re.search(where, op[1]))]
    assert len(kept) < len(log)
    with pytest.raises(LostModelError):
        check(before, root, kept, bad=False, samples=4, backwards=True)

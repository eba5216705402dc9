"""Power cuts at every moment of what a slot does, on a slice of the disks that they may leave.

``make power-loss`` tries all of them, cuts the power again while the device recovers, and leaves
out every single call that makes something durable. See docs/reliability.md.
"""

from __future__ import annotations

import inspect
import logging
import random

import pytest
from power_loss import Disk, Op, RecordingCalls, materialise, snapshot
from power_scenarios import (
    REDUNDANT,
    SCENARIOS,
    Recorded,
    cuts,
    kinds,
    loses,
    try_cut,
    try_damage,
)
from slot_world import TestCalls

from edgepack_runtime.storage.fsio import Syscalls

SLICE = 24
CUT_AGAIN = 3


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def recorded(name, root) -> Recorded:
    scenario = SCENARIOS[name]
    before = scenario.prepare(root / f"{name}-before")
    return Recorded(scenario, before, scenario.record(before, root / f"{name}-log"))


def spread(found: list, rng: random.Random) -> list:
    """Some of all, and always the last, which has everything that was promised."""
    return [*rng.sample(found[:-1], min(SLICE, len(found) - 1)), found[-1]]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_power_cut_loses_nothing_that_was_promised(name, root):
    one, rng = recorded(name, root), random.Random(name)
    found = list(cuts(one.before, one.log, rng, most=6))
    assert len(found) > 15
    for tree, promise in spread(found, rng):
        try_cut(one.scenario, tree, promise, root / "cut")
        try_damage(one.scenario, tree, promise, root / "cut")


@pytest.mark.parametrize("name", ["install", "crash-loop"])
def test_a_second_power_cut_while_it_recovers_loses_nothing_either(name, root):
    one, rng = recorded(name, root), random.Random(name)
    found = list(cuts(one.before, one.log, rng, most=6))
    for tree, promise in rng.sample(found, 4):
        log = try_cut(one.scenario, tree, promise, root / "cut", recording=True)
        again = list(cuts(tree, log, rng, most=4))
        for other, later in rng.sample(again, CUT_AGAIN):
            owed = promise if later is None else later
            try_cut(one.scenario, other, owed, root / "cut")


def test_without_any_one_kind_of_sync_or_rename_something_is_lost(root):
    some = [recorded("install", root), recorded("session", root)]
    found = kinds(some)
    assert len(found) > 20
    needed = [kind for kind in found if kind not in REDUNDANT]
    missed = [kind for kind in needed if not loses(some, kind, root, most=24)]
    assert not missed


def test_every_call_that_changes_a_disk_is_recorded():
    def public(of):
        return {name for name, _ in inspect.getmembers(of, inspect.isfunction) if name[0] != "_"}

    changing = public(Syscalls) - {"close"}
    assert changing <= set(vars(RecordingCalls)), "the model of power cuts must know them too"
    assert changing <= set(vars(TestCalls)), "tests must be able to break them"


def test_the_model_leaves_what_was_synced_and_any_of_the_rest(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    disk = Disk(snapshot(tmp_path))
    for op in (
        Op("create", "new"), Op("write", "new", b"new"), Op("fsync", "new"),
        Op("replace", "new", "old"),
    ):  # fmt: skip
        disk.apply(op)
    found = [tuple(sorted(tree.items())) for tree in disk.cuts(random.Random(1))]
    # the rename without the creation before it is the same as both
    assert set(found) == {
        (("old", b"old"),), (("old", b"new"),), (("new", b"new"), ("old", b"old")),
    }  # fmt: skip
    disk.apply(Op("fsync_dir", "."))
    assert list(disk.cuts(random.Random(1))) == [{"old": b"new"}]


def test_the_model_tears_what_was_written_last(tmp_path):
    disk = Disk(snapshot(tmp_path))
    for op in (
        Op("create", "f"), Op("write", "f", b"a" * 600), Op("fsync", "f"), Op("fsync_dir", "."),
        Op("write", "f", b"b" * 1024),
    ):  # fmt: skip
        disk.apply(op)
    found = {tree["f"] for tree in disk.cuts(random.Random(1))}
    whole = b"a" * 600
    assert found == {whole, whole + b"b" * 512, whole + b"b" * 1024, whole + bytes(1024)}


def test_recovery_that_runs_twice_changes_nothing_more(root):
    """What a start has put right stays as it is: the next start finds nothing to do."""
    one, rng = recorded("install", root), random.Random(1)
    found = list(cuts(one.before, one.log, rng, most=6))
    for number, (tree, promise) in enumerate(rng.sample(found, 5)):
        place = root / f"cut-{number}"
        materialise(tree, place)
        one.scenario.survive(place, promise)
        states = []
        for _ in range(2):
            world = one.scenario.world(place, boot=3)
            world.start()
            world.settle()
            world.stop()
            trees = {path: data for path, data in snapshot(place).items() if "CURRENT" not in path}
            states.append((world.state.active, world.state.phase, world.host.serving, trees))
        assert states[0] == states[1]

"""Starting over while no daemon runs: the same as with one, and it may be cut off anywhere."""

from __future__ import annotations

import pytest
from slot_world import Crash, World, bundle

from edgepack_contract.states import Phase
from edgepack_runtime.activation.history import History
from edgepack_runtime.activation.journal import Journal
from edgepack_runtime.capture.ring import Ring, segments
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.local.looking import stored_slots
from edgepack_runtime.local.stopped import reset_slots
from edgepack_runtime.storage.fsio import DurableFS

A, B = bundle("1.0.0"), bundle("1.1.0")


@pytest.fixture
def stopped(tmp_path) -> World:
    """A slot that ran A and B, captured something, and crashed."""
    world = World(tmp_path)
    world.start()
    world.install(A)
    world.install(B)
    Ring(DurableFS(world.calls), tmp_path / "capture", max_bytes=1 << 20).append([b"a"])
    return world


def reset(world, slots=None):
    return reset_slots(DurableFS(world.calls), world.root, slots)


def is_empty(world) -> bool:
    slot = world.root / "slots" / "main"
    state = Journal(DurableFS(), slot).peek().state
    left = [*(slot / "store").iterdir(), *(slot / "staging").iterdir()]
    return state.phase == Phase.IDLE and state.active is None and not left


def test_it_forgets_bundles_history_and_captures_and_keeps_floors_and_orders(stopped):
    before = stopped.state
    assert reset(stopped) == ["main"]
    (view,) = stored_slots(DurableFS(), stopped.root)
    assert (view.phase, view.code, view.active, view.previous) == (
        "idle",
        "emptied-here",
        None,
        None,
    )
    assert (view.floors, view.generation) == (before.floors, before.obeyed.generation)
    assert is_empty(stopped)
    assert History(DurableFS(), stopped.root / "slots" / "main").records() == []
    assert segments(stopped.root / "capture") == []
    stopped.start()
    stopped.settle()
    assert (stopped.host.events, stopped.host.serving) == ([], None)
    stopped.install(A)


def test_one_slot_alone_leaves_captures(stopped):
    reset(stopped, ["main"])
    assert len(segments(stopped.root / "capture")) == 1
    with pytest.raises(DeviceError, match="there is no slot 'nope'; there are: main"):
        reset(stopped, ["nope"])


def test_cut_off_anywhere_it_is_done_by_the_same_command_or_not_at_all(stopped):
    stop = stopped.calls.count

    def cut(_name, count):
        if count == stop:
            raise Crash

    stopped.calls.fault = cut
    cuts = 0
    while not cuts or cuts < 40:
        stop = stopped.calls.count + cuts + 1
        try:
            reset(stopped)
        except Crash:
            cuts += 1
            state = stored_slots(DurableFS(), stopped.root)[0]
            # what the record names is there whole, whenever it was cut
            assert state.active is None or (stopped.store.has(B.digest))
            continue
        break
    assert cuts > 5
    assert is_empty(stopped)


def test_looking_changes_nothing(stopped):
    slot = stopped.root / "slots" / "main"
    (slot / "CURRENT.tmp-1").touch()
    before = sorted(slot.rglob("*"))
    count = stopped.calls.count
    (view,) = stored_slots(DurableFS(stopped.calls), stopped.root)
    assert (view.active.version, view.previous.version) == ("1.1.0", "1.0.0")
    assert sorted(slot.rglob("*")) == before
    assert stopped.calls.count == count
    assert stored_slots(DurableFS(), stopped.root / "none") == []

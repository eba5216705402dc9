"""What a device does while its power may go at any moment, and what must hold afterwards."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from power_loss import (
    Disk,
    Op,
    RecordingCalls,
    Tree,
    key,
    materialise,
    snapshot,
    without,
)
from slot_world import Crash, Sample, World, bundle, ranked

from edgepack_contract.states import Phase
from edgepack_runtime.activation.guard import Counters
from edgepack_runtime.activation.machine import MAX_ATTEMPTS
from edgepack_runtime.activation.state import SlotState
from edgepack_runtime.process import next_session
from edgepack_runtime.storage.fsio import DurableFS

A, B, C = (bundle(version, size=3000) for version in ("1.0.0", "1.1.0", "1.2.0"))
LONG = bundle("1.3.0", size=200_000)
RANKED = ranked("1.4.0")
GARBAGE = bytes(700)
BAD = Counters(requests=100, errors=100)


class LostError(AssertionError):
    """A power cut left a device worse off than it may."""


@dataclass(frozen=True)
class Scenario:
    """Installs of one slot.

    Attributes:
        name: Its name.
        before: What was installed, one after the other.
        act: What goes on while the power may go.
        wish: What the fleet says again afterwards.
        ends: How that rests, and what answers then.
        bad: Whether the bundle wished for misbehaves.
        refused: Variants that do not pass their probe.
    """

    name: str
    before: tuple[Sample, ...]
    act: Callable[[World, Sample], None]
    wish: Sample
    ends: tuple[Phase, Sample]
    bad: bool = False
    refused: tuple[str, ...] = ()

    def prepare(self, root: Path) -> Tree:
        """The disk before."""
        world = World(root)
        world.start()
        for sample in self.before:
            world.install(sample)
        world.stop()
        return snapshot(root)

    def record(self, before: Tree, root: Path) -> list[Op]:
        """The changes of the disk that it makes, with what must not be lost from where on."""
        materialise(before, root)
        world = self.world(root, boot=1, calls=RecordingCalls(root))
        self.act(world, self.wish)
        return world.calls.log

    def world(self, root: Path, *, boot: int, calls: RecordingCalls | None = None) -> World:
        """A device on a disk; what its journal has saved is a promise from then on."""
        world = _PromisingWorld(root) if calls else World(root)
        world.boot, world.generation = boot, len(self.before)
        if calls:
            world.calls = calls
        if self.bad:
            world.temper.counters[self.wish.digest] = BAD
        for variant in self.refused:
            world.temper.probe_codes[variant] = ["golden-mismatch"] * 9
        return world

    def survive(self, root: Path, promise: object, *, recording: bool = False) -> list[Op]:
        """Start on a disk that a power cut may have left; what was promised must be there.

        Returns:
            The changes that the recovery made, when ``recording``.

        Raises:
            LostError: It is not, or nothing answers, or the install does not end well.
        """
        world = self.world(root, boot=2, calls=RecordingCalls(root) if recording else None)
        agent = world.boot_process()
        agent.open()
        self._kept(agent.state, promise)
        self._whole(root)
        agent.begin()
        self._answers(world)
        world.settle()
        world.generation = len(self.before)
        world.wish(self.wish)
        self._come_to_rest(world)
        phase, sample = self.ends
        if (world.state.phase, world.host.serving) != (phase, sample.digest):
            raise LostError(f"the install does not end well: {world.state}")
        if world.state.blocked != ((self.wish.digest,) if self.bad else ()):
            raise LostError(f"the wrong models are blocked: {world.state}")
        self._tidy(world)
        return world.calls.log if recording else []

    def survive_damage(self, root: Path, promise: object) -> None:
        """The same, when the record or its copy was destroyed: the other one is enough."""
        if not isinstance(promise, SlotState) or promise.seq < 2:
            return
        slot = root / "slots" / "main"
        copy = (slot / "CURRENT.prev").read_bytes()
        (slot / "CURRENT.prev").write_bytes(GARBAGE)
        agent = self.world(root, boot=2).boot_process()
        agent.open()
        if agent.state.seq < promise.seq:
            raise LostError(f"the record alone is not enough: {agent.state}")
        (slot / "CURRENT.prev").write_bytes(copy)
        (slot / "CURRENT").write_bytes(GARBAGE)
        world = self.world(root, boot=2)
        agent = world.boot_process()
        agent.open()
        # the copy is one step older
        if agent.state.seq < promise.seq - 1:
            raise LostError(f"the copy of the record is lost: {agent.state}")
        agent.begin()
        self._answers(world)

    def _answers(self, world: World) -> None:
        if self.before and world.host.serving is None:
            raise LostError(f"nothing answers: {world.state}")

    def _come_to_rest(self, world: World) -> None:
        world.settle()

    def _kept(self, state: SlotState, promise: object) -> None:
        if not isinstance(promise, SlotState):
            return
        if state.seq < promise.seq:
            raise LostError(f"what was written down is lost: {state}, {promise}")
        if state.obeyed.generation < promise.obeyed.generation:
            raise LostError("a document that was obeyed is forgotten")
        if any(state.floor(name) < floor for name, floor in promise.floors.items()):
            raise LostError(f"a floor has sunk: {state.floors}, {promise.floors}")

    def _whole(self, root: Path) -> None:
        """What is kept for people is old or new, and not half of anything."""
        for path in [*root.rglob("history.json"), *root.glob("slots/*/store/*/tried.json")]:
            try:
                json.loads(path.read_bytes())
            except ValueError as error:
                raise LostError(f"{path.name} is damaged: {error}") from error

    def _tidy(self, world: World) -> None:
        """Disk use is bounded: two bundles, and nothing half-way or forgotten."""
        slot = world.root / "slots" / "main"
        store = {f"sha256:{entry.name}" for entry in (slot / "store").iterdir()}
        good = {one.digest for one in (world.state.active, world.state.previous) if one}
        left = [*(slot / "staging").iterdir(), *world.root.rglob("*.tmp-*")]
        if store != good or left:
            raise LostError(f"the disk is not tidy: {store} {good} {left}")


class _PromisingWorld(World):
    """Writes into the log of its disk what its journal has promised."""

    def boot_process(self, **how):
        agent = super().boot_process(**how)
        journal = agent._parts.journal
        save = journal.save

        def promising(state):
            saved = save(state)
            self.calls.promise(saved)
            return saved

        journal.save = promising
        return agent


@dataclass(frozen=True)
class Revival(Scenario):
    """The only model did not load at a start; it is tried again while the power may go.

    Attributes:
        rotten: Whether its files are damaged.
    """

    rotten: bool = False

    def prepare(self, root: Path) -> Tree:
        """The disk after that start."""
        super().prepare(root)
        world = self.world(root, boot=1)
        world.temper.load_failures[self.wish.digest] = 0 if self.rotten else MAX_ATTEMPTS
        if self.rotten:
            world.start()
            path = world.store.model(self.wish.digest) / "model.onnx"
            path.write_bytes(path.read_bytes()[::-1])
        world.start()
        if self.rotten:
            world.run_to(Phase.REJECTED)
        world.stop()
        assert world.state.lost is not None
        assert world.state.lost.damaged == self.rotten
        return snapshot(root)

    def world(self, root: Path, *, boot: int, calls: RecordingCalls | None = None) -> World:
        """A device that reaches its fleet only where it has to."""
        world = super().world(root, boot=boot, calls=calls)
        world.temper.source_failures = 0 if self.rotten else 10**9
        return world

    def _answers(self, world: World) -> None:
        if world.host.serving is None and world.state.lost is None and world.state.trial is None:
            raise LostError(f"nothing answers or will: {world.state}")

    def _come_to_rest(self, world: World) -> None:
        _revive(world)


class SessionScenario:
    """The number of a run: it grows, also when the clock was set back."""

    name = "session"

    def prepare(self, root: Path) -> Tree:
        """A device that ran once."""
        root.mkdir(parents=True)
        next_session(DurableFS(RecordingCalls(root)), root, clock_ms=5_000_000)
        return snapshot(root)

    def record(self, before: Tree, root: Path) -> list[Op]:
        """Three more runs."""
        materialise(before, root)
        calls = RecordingCalls(root)
        for _ in range(3):
            calls.promise(next_session(DurableFS(calls), root, clock_ms=0))
        return calls.log

    def survive(self, root: Path, promise: object, *, recording: bool = False) -> list[Op]:
        """The next number is a new one."""
        calls = RecordingCalls(root)
        found = next_session(DurableFS(calls), root, clock_ms=0)
        if isinstance(promise, int) and found <= promise:
            raise LostError(f"run {found} comes after run {promise}")
        return []

    def survive_damage(self, root: Path, promise: object) -> None:
        """Nothing to add: the clock stands in for a file that is destroyed."""


def _install(world: World, wish: Sample) -> None:
    world.start()
    world.wish(wish)
    world.settle()


def _crash_loop(world: World, wish: Sample) -> None:
    """The process dies again and again while the new model is on trial."""
    world.start()
    world.wish(wish)
    world.run_to(Phase.PROBATION)
    for _ in range(3):
        world.start()
    world.settle()


def _interrupted(world: World, wish: Sample) -> None:
    """The process dies in the midst of a file and goes on with the rest."""
    world.start()
    world.wish(wish)

    def fault(name, _count):
        staged = sum(op.call == "write" and "model.onnx" in op.path for op in world.calls.log)
        if name == "write" and staged == 2:
            world.calls.fault = None
            raise Crash

    world.calls.fault = fault
    with contextlib.suppress(Crash):
        world.settle()
    assert world.calls.fault is None
    world.start()
    world.settle()


def _revive(world: World) -> None:
    """What worked last is tried until it works."""
    until = world.now + 4 * 3600
    while world.state.lost is not None and world.now < until:
        world.agent.turn()
    world.settle()


def _start_and_revive(world: World, _wish: Sample) -> None:
    world.start()
    _revive(world)


SUCCEEDED, FELL_BACK = Phase.SUCCEEDED, Phase.FELL_BACK
SCENARIOS = {
    one.name: one
    for one in (
        Scenario("first-install", (), _install, A, (SUCCEEDED, A)),
        Scenario("install", (A,), _install, B, (SUCCEEDED, B)),
        Scenario("fallback", (A,), _install, B, (FELL_BACK, A), bad=True),
        Scenario("crash-loop", (A,), _crash_loop, B, (FELL_BACK, A), bad=True),
        Scenario("third-install", (A, B), _install, C, (SUCCEEDED, C)),
        Scenario("resume", (A,), _interrupted, LONG, (SUCCEEDED, LONG)),
        Scenario("alternatives", (A,), _install, RANKED, (SUCCEEDED, RANKED), refused=("fast",)),
        Revival("revival", (A,), _start_and_revive, A, (SUCCEEDED, A)),
        Revival("fetched-anew", (A,), _start_and_revive, A, (SUCCEEDED, A), rotten=True),
        SessionScenario(),
    )
}


def cuts(
    before: Tree, log: list[Op], rng: random.Random, *, most: int | None = None
) -> Iterator[tuple[Tree, object]]:
    """Every different disk that a power cut during a log may leave, with what was promised."""
    disk, promise, seen = Disk(before), None, set[bytes]()
    for op in log:
        disk.apply(op)
        if op.call == "promise":
            promise = op.more
        for tree in disk.cuts(rng, most=most):
            name = key(tree, promise)
            if name not in seen:
                seen.add(name)
                yield tree, promise


def some_cuts(
    before: Tree, log: list[Op], rng: random.Random, number: int
) -> Iterator[tuple[Tree, object]]:
    """One disk after each of ``number`` calls of a log, chosen by chance."""
    disk, promise = Disk(before), None
    chosen = set(rng.sample(range(len(log)), min(number, len(log))))
    for position, op in enumerate(log):
        disk.apply(op)
        if op.call == "promise":
            promise = op.more
        if position in chosen:
            yield rng.choice(list(disk.cuts(rng, most=4))), promise


def try_cut(scenario, tree: Tree, promise: object, place: Path, *, recording=False) -> list[Op]:
    """Let a device live on with a disk.

    Raises:
        LostError: It does not do as it must.
    """
    materialise(tree, place)
    try:
        return scenario.survive(place, promise, recording=recording)
    except LostError:
        raise
    except Exception as error:
        raise LostError(f"it cannot go on: {error!r}") from error
    finally:
        shutil.rmtree(place)


def try_damage(scenario, tree: Tree, promise: object, place: Path) -> None:
    """The same with a destroyed record."""
    materialise(tree, place)
    try:
        scenario.survive_damage(place, promise)
    finally:
        shutil.rmtree(place)


DURABLE = ("fsync", "fdatasync", "fsync_dir", "replace")
"""The calls that make something durable, or let it appear at once."""

MUTANT_SAMPLES = 12
"""Without syncs much is pending at every moment; some of the disks are enough to find a loss."""

_AGAIN = "what was removed comes back whole and is removed again by the next start or install"
_TWICE = "synced when made, for a resumed download, and again before it is published"
_SOURCE = "a rename is sure with the folder it goes to; this is for file systems without a journal"
_WHOLE = "half of a removed bundle would be found by its digests; so nobody has to look"
REDUNDANT: dict[str, str] = {
    "fsync_dir slots/main by History.remember (atomic_write)": "the newest line, for people only",
    "fsync_dir slots/main/staging by Store.collect (remove_tree)": _AGAIN,
    "fsync_dir slots/main/staging by Store.collect (rename)": _AGAIN,
    "fsync_dir slots/main/staging by Store.publish (rename)": _SOURCE,
    "fsync_dir slots/main/staging by Store.remove (remove_tree)": _AGAIN,
    "fsync_dir slots/main/staging by Store.remove (rename)": _AGAIN,
    "fsync_dir slots/main/staging by Store.stage (make_dirs)": "a lost download begins anew",
    "fsync_dir slots/main/staging/<digest> by Store.publish (sync_tree)": _TWICE,
    "fsync_dir slots/main/staging/<digest> by Store.stage (make_dirs)": _TWICE,
    "fsync_dir slots/main/store by Store.collect (rename)": _SOURCE,
    "fsync_dir slots/main/store by Store.remove (rename)": _SOURCE,
    "replace slots/main/staging/<digest>.gone by Store.collect (rename)": _WHOLE,
    "replace slots/main/staging/<digest>.gone by Store.remove (rename)": _WHOLE,
}
"""Classes of calls without which nothing is lost, and why they are made all the same."""


@dataclass
class Recorded:
    """A scenario with the disk that it begins with and what it does to it."""

    scenario: Scenario | SessionScenario
    before: Tree
    log: list[Op]

    @cached_property
    def known(self) -> set[bytes]:
        """The disks that a cut may leave."""
        return {key(*pair) for pair in cuts(self.before, self.log, random.Random(1))}


def record_all(root: Path) -> list[Recorded]:
    """Every scenario, gone through once."""
    found = []
    for name, scenario in SCENARIOS.items():
        before = scenario.prepare(root / f"{name}-before")
        found.append(Recorded(scenario, before, scenario.record(before, root / f"{name}-log")))
    return found


def kinds(recorded: list[Recorded]) -> list[str]:
    """The classes of durable calls that the scenarios make."""
    return sorted({op.kind for one in recorded for op in one.log if op.call in DURABLE})


def loses(recorded: list[Recorded], kind: str, root: Path, *, most: int) -> str:
    """Whether the check notices that a class of calls is gone: what it finds, or nothing.

    Args:
        recorded: The scenarios.
        kind: The class of calls that is left out.
        root: Where to put disks.
        most: How many disks of each scenario to try at most, spread over all of them.
    """
    for one in recorded:
        if not any(op.kind == kind for op in one.log):
            continue
        log = without(one.log, kind)
        found = _worth_trying(one, log)
        # the last ones have everything that was promised; the others are spread over the whole
        for tree, promise in [*found[: -most // 2 : -1], *found[:: max(1, 2 * len(found) // most)]]:
            try:
                try_cut(one.scenario, tree, promise, root / "cut")
                try_damage(one.scenario, tree, promise, root / "cut")
            except LostError as error:
                return f"{one.scenario.name}: {error}"
    return ""


def _worth_trying(one: Recorded, log: list[Op]) -> list[tuple[Tree, object]]:
    """The disks that only the altered log can leave: on all others the check has passed."""
    found = cuts(one.before, log, random.Random(1), most=MUTANT_SAMPLES)
    return [pair for pair in found if key(*pair) not in one.known]

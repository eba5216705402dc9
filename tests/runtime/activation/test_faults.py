"""Every effect of an install and of a fallback, hurt in every way.

Each row says where it hurts and what must come of it: the reported phases, the model that answers
in the end, and whether the bundle is blocked. In all of them some verified model answers throughout
once there was one, and what answers is whole on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil

import pytest
from slot_world import Crash, World, bundle

from edgepack_contract.errors import MalformedBundleError, SourceError
from edgepack_contract.states import Phase
from edgepack_runtime.activation import events as ev
from edgepack_runtime.activation.guard import Counters
from edgepack_runtime.errors import DeviceError, StorageFaultError

A, B = bundle("1.0.0"), bundle("1.1.0")

EVERY = os.environ.get("EDGEPACK_EVERY") == "1"
"""Set by ``make power-loss``: each change of the disk fails once, not only some."""

WAY = "downloading verified probing activating probation succeeded"
FELL = "downloading verified probing activating probation fell_back"
INSTALL = [ev.Report, ev.Download, ev.Verify, ev.Probe, ev.Serve, ev.Watch, ev.Announce, ev.Collect]
FALLBACK = [ev.Serve, ev.Report, ev.Announce, ev.Collect]


@pytest.fixture
def running(world) -> World:
    world.start()
    world.install(A)
    world.host.phases.clear()
    return world


class Hook:
    """Does something at the first effect of a kind that comes after a moment."""

    def __init__(self, world, kind, *, since=lambda: True, before=None, after=None):
        self.world, self.kind, self.since = world, kind, since
        self.before, self.after = before, after
        self.hit = False
        self.perform = world.agent._runner.perform
        world.agent._runner.perform = self

    def __call__(self, effect):
        self.world.check()
        due = not self.hit and isinstance(effect, self.kind) and self.since()
        self.hit = self.hit or due
        if due and self.before:
            self.before()
        outcome = self.perform(effect)
        if due and self.after:
            self.after()
        return outcome


def crash():
    raise Crash


def settle_through_crashes(world: World) -> None:
    for _ in range(3):
        try:
            world.settle()
        except Crash:
            world.start()
            continue
        return
    raise AssertionError("it crashes again and again")


def check(world: World) -> None:
    serving = world.host.serving
    assert serving is not None
    assert (world.store.model(serving) / "model.onnx").stat().st_size == 100_000


@pytest.fixture(autouse=True)
def _watched(monkeypatch):
    monkeypatch.setattr(World, "check", check, raising=False)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", INSTALL)
def test_a_crash_around_an_effect_of_an_install_changes_nothing_in_the_end(running, kind, moment):
    hook = Hook(running, kind, **{moment: crash})
    running.wish(B)
    settle_through_crashes(running)
    assert hook.hit
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, B.digest)
    assert running.agent.status().previous == A.digest
    assert running.state.blocked == ()
    assert running.temper.told.count(("installed", B.digest, "")) in (1, 2)
    check(running)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", FALLBACK)
def test_a_crash_around_an_effect_of_a_fallback_changes_nothing_in_the_end(running, kind, moment):
    running.temper.counters[B.digest] = Counters(requests=100, errors=100)
    hook = Hook(
        running, kind, since=lambda: running.state.phase == Phase.FELL_BACK, **{moment: crash}
    )
    running.wish(B)
    settle_through_crashes(running)
    assert hook.hit
    assert (running.state.phase, running.host.serving) == (Phase.FELL_BACK, A.digest)
    assert running.state.blocked == (B.digest,)
    # told once, or twice when the process died before it knew that it had told
    assert running.temper.told.count(("fallback", B.digest, "errors")) in (1, 2)
    check(running)


def no_source(*_, **__):
    raise SourceError("gone", code="not-found")


def malformed(*_, **__):
    raise MalformedBundleError("altered", code="wrong-digest")


def broken_disk(*_, **__):
    raise StorageFaultError("the disk failed")


def spoil(world: World, kind: type) -> None:
    """Make the part behind an effect fail, for good."""
    parts, temper = world.agent._parts, world.temper
    match kind:
        case ev.Report:
            temper.reports_fail = True
        case ev.Announce:
            temper.events_fail = True
        case ev.Download:
            parts.installer.fetch = no_source
        case ev.Verify:
            parts.installer.verify = malformed
        case ev.Probe:
            temper.probe_codes[B.digest] = ["golden-mismatch"]
        case ev.Serve:
            temper.load_failures[B.digest] = 99
        case ev.Watch:
            parts.installer.describe = malformed
        case ev.Collect:
            parts.store.collect = broken_disk


ERRORS = [
    (ev.Report, "", Phase.SUCCEEDED, B, "", False),
    (ev.Download, "downloading failed", Phase.FAILED, A, "not-found", False),
    (ev.Verify, "downloading verified rejected", Phase.REJECTED, A, "wrong-digest", False),
    (ev.Probe, "downloading verified probing failed", Phase.FAILED, A, "golden-mismatch", True),
    (
        ev.Serve, "downloading verified probing activating fell_back", Phase.FELL_BACK, A,
        "load-failed", True,
    ),
    (ev.Watch, FELL, Phase.FELL_BACK, A, "internal", True),
    (ev.Announce, WAY, Phase.SUCCEEDED, B, "", False),
    (ev.Collect, WAY, Phase.SUCCEEDED, B, "", False),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "chain", "phase", "serving", "code", "blocked"), ERRORS)
def test_an_error_in_an_effect(running, kind, chain, phase, serving, code, blocked):
    spoil(running, kind)
    hook = Hook(running, kind)
    running.wish(B)
    running.settle()
    assert hook.hit
    assert " ".join(running.host.phases) == chain
    assert (running.state.phase, running.state.code) == (phase, code)
    assert running.host.serving == serving.digest
    assert running.state.is_blocked(B.digest) is blocked
    check(running)


FULL = [
    (ev.Report, "downloading failed", Phase.FAILED, A),
    (ev.Download, "downloading failed", Phase.FAILED, A),
    (ev.Verify, "downloading verified failed", Phase.FAILED, A),
    (ev.Probe, "downloading verified probing failed", Phase.FAILED, A),
    (ev.Serve, "downloading verified probing activating probation", Phase.PROBATION, B),
    (ev.Watch, "downloading verified probing activating probation", Phase.PROBATION, B),
    (ev.Announce, WAY, Phase.SUCCEEDED, B),
    (ev.Collect, WAY, Phase.SUCCEEDED, B),
]


@pytest.mark.parametrize(("kind", "chain", "phase", "serving"), FULL)
def test_a_disk_that_fills_up_at_an_effect(running, kind, chain, phase, serving):
    def fill():
        running.calls.full = True

    hook = Hook(running, kind, before=fill)
    running.wish(B)
    for _ in range(60):
        running.agent.turn()
    assert hook.hit
    assert " ".join(running.host.phases) == chain
    assert (running.state.phase, running.host.serving) == (phase, serving.digest)
    if phase != Phase.SUCCEEDED:
        assert running.agent.status().code == "disk-full"
    check(running)
    # with room again, and told again where it gave up, the install ends well
    running.calls.full = False
    if running.state.phase == Phase.FAILED:
        running.wish(B)
    running.settle()
    running.agent.turn()
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, B.digest)
    assert running.agent.status().code == ""
    running.start()
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, B.digest)


@pytest.mark.parametrize("trouble", ["full", "broken"])
def test_a_bad_model_is_not_kept_by_a_disk_that_takes_no_more(running, trouble):
    running.wish(B)
    running.run_to(Phase.PROBATION)
    setattr(running.calls, trouble, True)
    running.temper.counters[B.digest] = Counters(requests=100, errors=100)
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.FELL_BACK, A.digest)
    # the next process finds the trial in the journal, counts it, watches it and falls back again
    setattr(running.calls, trouble, False)
    running.start()
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.FELL_BACK, A.digest)
    assert running.state.blocked == (B.digest,)


def test_what_the_record_needs_stays_until_another_one_is_written(running):
    running.install(B)
    running.stop()
    running.calls.full = True
    running.temper.load_failures[B.digest] = 3
    running.start()
    assert (running.state.phase, running.host.serving) == (Phase.FELL_BACK, A.digest)
    assert running.store.has(B.digest)
    # the next process knows nothing of the fallback
    running.start()
    assert running.host.serving == B.digest
    running.temper.load_failures[B.digest] = 3
    running.start()
    running.calls.full = False
    running.agent.turn()
    assert running.host.serving == A.digest
    assert not running.store.has(B.digest)


@pytest.mark.parametrize("trouble", ["full", "broken"])
def test_a_trial_whose_attempt_cannot_be_counted_is_not_loaded(running, trouble):
    running.wish(B)
    running.run_to(Phase.PROBATION)
    setattr(running.calls, trouble, True)
    running.start()
    running.settle()
    assert running.host.served == [A.digest] * len(running.host.served)
    assert (running.state.phase, running.host.serving) == (Phase.FELL_BACK, A.digest)


@pytest.mark.parametrize("trouble", ["full", "broken"])
def test_a_wish_that_cannot_be_written_down_is_not_obeyed(running, trouble):
    setattr(running.calls, trouble, True)
    running.wish(B)
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, A.digest)
    assert running.agent.obeyed.generation == running.generation - 1
    assert running.host.reports[-1].code in ("disk-full", "storage-fault")


def test_an_order_that_found_no_room_is_taken_up_when_there_is_some(running):
    running.calls.full = True
    running.wish(B)
    running.settle()
    running.agent.turn()
    assert running.state.wanted_digest == A.digest
    said = running.host.reports[-1]
    assert said.code == "disk-full"
    assert said.words.startswith("what was ordered waits for room: ")
    running.calls.full = False
    running.agent.turn()
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, B.digest)
    assert running.host.reports[-1].code == ""


def test_a_newer_order_takes_the_place_of_one_that_found_no_room(running):
    running.calls.full = True
    running.wish(B)
    running.settle()
    running.calls.full = False
    running.wish(A)
    running.settle()
    running.agent.turn()
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, A.digest)


def broken_once(world: World, at: int, number: int):
    """The ``at``-th change of the disk from now on fails, and only that one."""

    def fault(_name, count):
        if count == at:
            raise OSError(number, os.strerror(number))

    world.calls.count, world.calls.fault = 0, fault


def changes(template, root, *, bad: bool) -> int:
    """How many changes of the disk an undisturbed start, install and end take."""
    world = of(template, root, bad=bad)
    world.calls.count = 0
    go_through(world)
    return world.calls.count


def of(template, root, *, bad: bool) -> World:
    shutil.copytree(template, root)
    world = World(root)
    world.generation = 1
    world.temper.counters[B.digest] = Counters(requests=100, errors=100 * bad)
    return world


def go_through(world: World) -> None:
    world.start()
    world.wish(B)
    # what a failed disk keeps from settling is not waited for
    for _ in range(40):
        world.agent.turn()
    world.stop()


@pytest.mark.parametrize("bad", [False, True], ids=["install", "fallback"])
@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EROFS", "EDQUOT", "EMFILE"])
def test_every_change_of_the_disk_may_fail(root, name, bad):
    template = root / "template"
    world = World(template)
    world.start()
    world.install(A)
    world.stop()
    total = changes(template, root / "probe", bad=bad)
    assert total > 100
    for at in range(1 + (0 if EVERY else len(name)), total + 1, 1 if EVERY else 19):
        place = root / str(at)
        world = of(template, place, bad=bad)
        broken_once(world, at, getattr(errno, name))
        with contextlib.suppress(DeviceError):
            # a start that cannot even make its folders ends with words, and is tried again
            go_through(world)
            assert world.host.serving in (A.digest, B.digest), at
        end_well_with_a_disk_that_works(world, bad=bad, at=at)
        shutil.rmtree(place)


def end_well_with_a_disk_that_works(world: World, *, bad: bool, at: int) -> None:
    world.calls.fault = None
    world.start()
    assert world.host.serving in (A.digest, B.digest), at
    world.settle()
    world.generation = 1
    world.wish(B)
    world.settle()
    if world.state.phase == Phase.FAILED:
        world.wish(B)
        world.settle()
    expected = (Phase.FELL_BACK, A.digest) if bad else (Phase.SUCCEEDED, B.digest)
    assert (world.state.phase, world.host.serving) == expected, (at, world.state)
    assert world.state.blocked == ((B.digest,) if bad else ()), at
    assert not list(world.root.rglob("*.tmp-*")), at
    assert not list((world.root / "slots" / "main" / "staging").iterdir()), at


def test_a_blocked_bundle_is_never_installed_again_by_itself(running):
    running.temper.counters[B.digest] = Counters(requests=100, errors=100)
    running.wish(B)
    running.settle()
    assert running.state.blocked == (B.digest,)
    served = len(running.host.served)
    for _ in range(3):
        running.wish(B)
        running.settle()
        running.start()
        running.settle()
        assert running.state.blocked == (B.digest,)
        assert B.digest not in running.host.served
    assert served
    running.temper.counters.clear()
    running.wish(B, retry_blocked=(B.digest,))
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, B.digest)


def test_the_disk_holds_two_bundles_however_many_were_installed(running):
    used = []
    for number in range(2, 8):
        running.install(bundle(f"1.{number}.0", security_version=3))
        entries = running.root.rglob("*")
        used.append(sum(one.stat().st_size for one in entries if one.is_file()))
        assert len(list((running.root / "slots" / "main" / "store").iterdir())) == 2
    assert max(used[1:]) < 1.2 * min(used[1:])

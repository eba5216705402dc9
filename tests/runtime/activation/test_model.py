"""Anything in any order: wishes, crashes, power cuts, restarts, a disk that fills and empties."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from slot_world import World, bundle, ranked

from edgepack_contract.states import Phase
from edgepack_runtime.activation.guard import Counters
from edgepack_runtime.activation.machine import MAX_ATTEMPTS
from edgepack_runtime.activation.state import RESTING

SIZE = 2000
FINE = (bundle("1.0.0", size=SIZE), bundle("1.1.0", size=SIZE), bundle("1.2.0", size=SIZE))
ERRS, UNLOADABLE, WRONG = (bundle(f"2.{n}.0", size=SIZE) for n in range(3))
CHOOSY = ranked("2.9.0")
"""Its best variant does badly here, the next one well."""
BUNDLES = (*FINE, ERRS, UNLOADABLE, WRONG, CHOOSY)
GOOD = {sample.digest for sample in (*FINE, CHOOSY)}


class SlotLife(RuleBasedStateMachine):
    """A device against what it must never do."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.root = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.world = World(self.root)
        self.world.temper.counters[ERRS.digest] = Counters(requests=100, errors=50)
        self.world.temper.load_failures[UNLOADABLE.digest] = 10**9
        self.world.temper.probe_codes[WRONG.digest] = ["golden-mismatch"] * 10**4
        self.world.temper.probe_codes["fast"] = ["latency-budget"] * 10**4
        self.world.start()
        self.asked = None
        self.proven = False
        self.floor = self.seq = 0

    @rule(sample=st.sampled_from(BUNDLES), release=st.booleans())
    def wish(self, sample, release):
        self.world.wish(sample, retry_blocked=[sample.digest] * release)
        if not self.world.calls.full:
            self.asked = sample.digest

    @rule(turns=st.integers(1, 12))
    def go_on(self, turns):
        for _ in range(turns):
            self.world.agent.turn()

    @rule()
    def crash(self):
        self._deliver()
        self.world.start()

    @rule()
    def cut_power(self):
        self._deliver()
        self.world.start(crashed_boot=True)

    @rule()
    def restart(self):
        self._deliver()
        self.world.stop()
        self.world.start()

    @precondition(lambda self: self.world.state.phase in RESTING)
    @rule()
    def restart_short_of_memory(self):
        """Nothing loads at this start, all of it again when the machine has been left alone."""
        self._deliver()
        self.world.stop()
        self.world.temper.load_failures.update(dict.fromkeys(GOOD, MAX_ATTEMPTS))
        self.world.start()
        self.world.temper.load_failures.update(dict.fromkeys(GOOD, 0))

    @rule()
    def fill_disk(self):
        self._deliver()
        self.world.calls.full = True

    @precondition(lambda self: self.world.calls.full)
    @rule()
    def free_disk(self):
        self.world.calls.full = False
        self.world.agent.turn()

    @precondition(lambda self: not self.world.calls.full)
    @rule()
    def settle(self):
        self.world.settle()
        self._wait_for_what_is_lost()
        state, serving = self.world.state, self.world.host.serving
        if serving is not None:
            assert (state.active and state.active.digest) == serving
        if self.asked in GOOD and state.wanted_digest == self.asked:
            reasons = ("crash-loop", "disk-full", "blocked", "storage-fault")
            assert serving == self.asked or state.code in reasons, state
        if state.phase == Phase.SUCCEEDED:
            assert serving in GOOD
        if state.code in ("errors", "load-failed", "golden-mismatch", "crash-loop"):
            assert state.phase in (Phase.FELL_BACK, Phase.FAILED, Phase.SAFE_MODE)
            assert state.wanted_digest in state.blocked or state.phase == Phase.FAILED
        kept = {one.name for one in (self.root / "slots" / "main" / "store").iterdir()}
        assert kept <= {digest.removeprefix("sha256:") for digest in state.keep}

    @invariant()
    def some_model_answers_once_one_has_succeeded(self):
        state = self.world.state
        self.proven = self.proven or state.active is not None
        none_left = state.lost is not None or not GOOD - set(state.blocked)
        assert self.world.host.serving is not None or not self.proven or none_left

    @invariant()
    def nothing_bad_becomes_the_good_model(self):
        state = self.world.state
        for one in (state.active, state.previous):
            assert one is None or one.digest in GOOD

    @invariant()
    def the_variant_that_did_well_is_the_one_that_serves(self):
        if self.world.host.serving == CHOOSY.digest:
            found = (self.world.store.model(CHOOSY.digest) / "edgepack.json").read_bytes()
            assert msgspec.json.decode(found)["variant"] == "alt1"

    @invariant()
    def what_is_blocked_does_not_answer(self):
        assert self.world.host.serving not in self.world.state.blocked

    @invariant()
    def floors_and_numbers_only_grow(self):
        state = self.world.state
        floor = state.floor("digits")
        assert floor >= self.floor
        self.floor = floor
        if not self.world.calls.full:
            assert state.seq >= self.seq
            self.seq = state.seq

    def _wait_for_what_is_lost(self):
        until = self.world.now + 4 * 3600
        while self.world.state.lost is not None and self.world.now < until:
            self.world.agent.turn()
        assert self.world.state.lost is None
        self.world.settle()

    def _deliver(self):
        """A wish that waits in memory is gone with the process; the fleet would say it again."""
        while self.world.agent._inbox.waiting:
            self.world.agent.turn()

    def teardown(self):
        shutil.rmtree(self.root)


SlotLife.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestSlotLife = SlotLife.TestCase

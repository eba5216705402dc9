"""One slot's own thread: writes down what the table decides, then does it, and survives all of it.

Order of attention: effects that are due, then wishes, then outcomes, then the clock. So a newer
wish takes over between any two steps of an install, and a download stops for it half-way.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from edgepack_contract.errors import EdgepackError
from edgepack_contract.instructions import Obeyed
from edgepack_contract.messages import EventKind, Probation, Ref, SlotDesired, SlotReported
from edgepack_contract.states import Phase
from edgepack_runtime.activation.effects import EffectRunner, Surroundings
from edgepack_runtime.activation.events import (
    Announce,
    Announced,
    Collect,
    Effect,
    Event,
    Loaded,
    LoadFailed,
    Outcome,
    Recalled,
    Report,
    Revived,
    Started,
    Stopped,
    Wished,
)
from edgepack_runtime.activation.factory import PROBATION, is_due, lacks_model
from edgepack_runtime.activation.history import figures_of, record_of
from edgepack_runtime.activation.inbox import Inbox
from edgepack_runtime.activation.machine import step
from edgepack_runtime.activation.parts import SlotParts, Timing
from edgepack_runtime.activation.revival import lost_wish
from edgepack_runtime.activation.state import (
    REVOKED,
    TRIAL,
    Installed,
    SlotState,
    belonging,
    fits_journal,
    short_words,
)
from edgepack_runtime.activation.unwritten import instead_of, worth_waiting
from edgepack_runtime.errors import DeviceError, WaitingSourceError

logger = logging.getLogger(__name__)

_AT_ONCE = (Loaded, LoadFailed, Announced, Recalled)
"""Outcomes that belong to the effect before; the others let a newer wish go first."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person at the device asked a slot for.

    Attributes:
        ticket: The slot has taken notice when :attr:`SlotAgent.attended` is not less.
        bundle: What it shall run, None for nothing.
        resumes: Whether a restart goes on with it; a long path is not written down.
    """

    ticket: int
    bundle: Installed | None = None
    resumes: bool = True


class SlotAgent:
    """Installs, watches and falls back for one slot.

    Args:
        slot: Its name.
        parts: What it is made of.
        boot_id: Tells one boot of the machine from another.
        timing: How to wait.
        owner: The pinned fingerprint of the owners.
        enrolment: The fingerprint of the device's key.
    """

    def __init__(
        self,
        slot: str,
        parts: SlotParts,
        *,
        boot_id: str,
        timing: Timing | None = None,
        owner: str = "",
        enrolment: str = "",
    ) -> None:
        self.slot = slot
        self._parts, self._boot_id = parts, boot_id
        self._owner, self._enrolment = owner, enrolment
        self._timing = timing or Timing()
        self._inbox = Inbox()
        self._wait = self._timing.wait or self._inbox.wait
        around = Surroundings(
            waiting=lambda: self._inbox.waiting,
            wait=self._wait,
            state=lambda: self._state,
            keep=lambda: self._state.keep | self._written.keep,
            status=self.status,
        )
        self._runner = EffectRunner(parts, self._timing, around)
        self._outcomes: deque[Outcome] = deque()
        self._trouble: DeviceError | None = None
        self._unwritten: Wished | None = None
        self._revival: float | None = None
        self._state = self._written = SlotState()
        self.factory_trouble = ""
        self.attended = 0
        self._thread: threading.Thread | None = None

    @property
    def obeyed(self) -> Obeyed:
        """The last document that this slot obeyed, durable."""
        return self._state.obeyed

    @property
    def state(self) -> SlotState:
        """The slot's state as it is now."""
        return self._state

    @property
    def alive(self) -> bool:
        """Whether the slot's thread runs; when not, the daemon should end and be started anew."""
        return self._thread is not None and self._thread.is_alive()

    def open(self) -> None:
        """Read the journal and prepare the folders.

        Raises:
            DiskFullError: No room even for folders.
            StorageFaultError: The disk failed.
        """
        found = self._parts.journal.load()
        self._parts.store.prepare()
        self._written = found.state
        self._state = belonging(found.state, owner=self._owner, enrolment=self._enrolment)
        self._runner.suspicious = not found.fresh and not found.state.clean

    def start(self) -> None:
        """Open, and go on in a thread of its own; what was under way is resumed.

        Raises:
            DiskFullError: No room even for folders.
            StorageFaultError: The disk failed.
        """
        self.open()
        self._thread = threading.Thread(target=self.run, name=f"slot-{self.slot}", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread, marking the end as clean; waits at most ``timeout`` seconds.

        A thread that does not end in time is left to die with the process: an unclean end.
        """
        self._inbox.stop()
        if self._thread:
            self._thread.join(timeout)

    def wish(self, desired: SlotDesired, obeyed: Obeyed) -> None:
        """Hand over what an accepted desired document says of this slot.

        Args:
            desired: The slot's part of the document.
            obeyed: The document, as it is to be remembered with the wish.
        """
        ref = desired.active
        if ref is not None:
            # a file of this machine is named by whoever is at this machine, not from afar
            urls = [one for one in ref.sources if one.startswith(("http://", "https://"))]
            ref = Ref(name=ref.name, digest=ref.digest, sources=urls)
        self._inbox.put(
            Wished(
                ref,
                obeyed=obeyed,
                probation=desired.probation,
                retry_blocked=tuple(desired.retry_blocked),
            )
        )

    def install_local(
        self, path: Path, *, probation: Probation | None = None, retry_blocked: bool = False
    ) -> Asked:
        """Install a bundle file of this machine, without the fleet.

        What the fleet wants later takes its place.

        Args:
            path: The file; it must stay until the install is over, which a restart does not end.
            probation: How long to watch it.
            retry_blocked: Try it even if it misbehaved here before.

        Raises:
            BundleError: It is malformed, or the keyring does not vouch for it.
            SourceError: It cannot be read.
        """
        bundle = self._parts.installer.identify(path)
        source = str(path.absolute())
        # also when it is too long for the journal
        self._runner.local[bundle.digest] = source
        released = (bundle.digest,) if retry_blocked else ()
        ref = Ref(name=bundle.name, digest=bundle.digest, sources=[source])
        watched = probation or Probation()
        ticket = self._inbox.put(Wished(ref, probation=watched, retry_blocked=released))
        return Asked(ticket, bundle, fits_journal(source))

    def roll_back(self, *, probation: Probation | None = None) -> Asked:
        """Go back to the bundle before, which is in the store; a trial that is on ends for it.

        It is verified, probed and watched again. The floor does not hold it back, a revocation
        does.

        Args:
            probation: How long to watch it.

        Raises:
            DeviceError: There is no bundle before (code ``no-previous``).
        """
        state = self._state
        before = state.active if state.phase in TRIAL else state.previous
        if before is None:
            raise DeviceError(
                f"slot {self.slot} has no bundle to go back to: it keeps one after a second bundle "
                "has succeeded; install a file instead",
                code="no-previous",
            )
        ref = Ref(name=before.name, digest=before.digest, sources=[])
        return Asked(self._inbox.put(Wished(ref, probation=probation or Probation())), before)

    def empty(self) -> None:
        """Let go of every bundle; what was blocked, the history and the orders stay known."""
        self._inbox.put(Wished(None))

    def reset(self) -> Asked:
        """Forget the bundles, what was blocked, and the history; floors and orders stay known.

        Raises:
            StorageFaultError: The disk failed.
        """
        self._parts.history.clear()
        blocked = self._state.blocked
        return Asked(self._inbox.put(Wished(None, retry_blocked=blocked)))

    def status(self) -> SlotReported:
        """How the slot is now."""
        state, serving = self._state, self._runner.serving
        known = {one.digest: one for one in (state.active, state.previous, state.trial) if one}
        on_trial = state.trial is not None and serving == state.trial.digest
        before = state.active if on_trial else state.previous
        wish = state.pending or state.wanted
        code, words = self._explained(state, serving)
        return SlotReported(
            phase=state.phase,
            running=serving,
            version=known[serving].version if serving in known else None,
            previous=before.digest if before else None,
            wanted=wish.ref.digest if wish else None,
            progress=self._runner.progress if state.phase == Phase.DOWNLOADING else 0.0,
            code=code,
            words=words,
            blocked=list(state.blocked),
            exercised=state.exercised,
            floor=state.floor(state.name),
        )

    def _explained(self, state: SlotState, serving: str | None) -> tuple[str, str]:
        """Code and words of what there is to say of the slot now."""
        if self._trouble:
            waits = "what was ordered waits for room: " if self._unwritten else ""
            return self._trouble.code, short_words(f"{waits}{self._trouble}")
        if self._runner.waits:
            return WaitingSourceError.default_code, short_words(self._runner.waits)
        revoked = self._parts.installer.revoked(serving) if serving else None
        if revoked and (state.phase == Phase.SUCCEEDED or not state.code):
            words = "what runs is revoked; it goes on until there is something else to run"
            return REVOKED, short_words(f"{words}: {revoked}")
        return state.code, state.words

    def run(self) -> None:
        """Begin, attend to what comes until asked to stop, and end cleanly."""
        try:
            self.begin()
            while not self._inbox.stopping:
                self.turn()
            self.finish()
        except Exception:
            # The outer boundary of the slot's thread. What is served goes on being served; the
            # daemon sees that the thread is gone and starts anew, which resumes from the journal.
            told = {"event": "slot_thread_ended", "slot": self.slot}
            logger.critical("the thread of slot %s ended", self.slot, exc_info=True, extra=told)

    def begin(self) -> None:
        """Take up what the journal says was under way."""
        before = self._state
        crashed = self._runner.suspicious and before.boot_id == self._boot_id
        self._advance(Started(self._boot_id))
        if crashed:
            self._tell_crash(before)
        self._plan_revival()

    def finish(self) -> None:
        """Write down that the process ends on purpose."""
        self._advance(Stopped())

    def turn(self) -> None:
        """Attend to one thing: a wish, an outcome, or the clock."""
        wished = self._inbox.take()
        if wished:
            self._advance(wished)
            self.attended += 1
        elif self._outcomes:
            self._advance(self._outcomes.popleft())
        elif not self._take_factory() and not self._wait(self._patience()):
            self._look()

    def _patience(self) -> float:
        runner, timing = self._runner, self._timing
        if runner.watch is not None or runner.shadow_ends is not None:
            return timing.watching
        most = timing.unwritten if self._unwritten else timing.idle
        return (
            most if self._revival is None else min(most, max(0.0, self._revival - timing.clock()))
        )

    def _take_factory(self) -> bool:
        """Ask for the factory bundle when nothing works and it may; whether that was done."""
        path = self._parts.factory
        if path is None or not lacks_model(self._state) or not path.is_file():
            return False
        try:
            digest = self._parts.installer.identify(path).digest
            if is_due(self._state, digest):
                self.install_local(path, probation=PROBATION)
                return True
        except EdgepackError as error:
            self._say_factory(f"{path} cannot be taken: {error}")
        return False

    def _say_factory(self, words: str) -> None:
        # it is looked at again and again for as long as nothing works
        if words != self.factory_trouble:
            self.factory_trouble = words
            told = {"event": "factory_refused", "slot": self.slot}
            logger.warning("slot %s: %s", self.slot, words, extra=told)

    def _look(self) -> None:
        if self._trouble:
            self._write_again()
        if self._unwritten and not self._trouble:
            self._advance(self._unwritten)
        outcome = self._runner.look()
        if outcome:
            self._advance(outcome)
        self._plan_revival()
        if self._revival is not None and self._timing.clock() >= self._revival:
            self._revival = None
            self._advance(Revived())

    def _plan_revival(self) -> None:
        """Set the time at which what worked last is tried again, if nothing works."""
        lost, timing = self._state.lost, self._timing
        due = lost_wish(self._state) is not None
        if lost is None or not due or not self._parts.host.wants(lost.bundle.digest):
            self._revival = None
        elif self._revival is None:
            wait = timing.revival.delay(lost.tries + 1, timing.rng)
            self._revival = timing.clock() + wait

    def _advance(self, event: Event) -> None:
        before, taken = self._state, step(self._state, event)
        try:
            self._write(taken.state)
        except DeviceError as error:
            self._trouble = error
            self._unwritten = worth_waiting(event, error) or self._unwritten
            instead = instead_of(event, taken.state, error)
            if instead is None:
                told = {"event": "step_unwritten", "slot": self.slot}
                logger.exception("a step of slot %s was not written", self.slot, extra=told)
                self._runner.perform(Report())
                return
            if instead is event or isinstance(event, Started):
                self._state = taken.state
            if instead is not event:
                self._advance(instead)
                return
        if isinstance(event, Wished):
            self._unwritten = None
        self._do(taken.effects, before)

    def _write(self, state: SlotState) -> None:
        if state != self._state:
            self._state = self._written = self._parts.journal.save(state)
            self._trouble = None

    def _write_again(self) -> None:
        try:
            self._state = self._written = self._parts.journal.save(self._state)
        except DeviceError as error:
            self._trouble = error
        else:
            self._trouble = None
            self._runner.perform(Report())
            # until now a restart would have needed what the slot has left behind
            self._runner.perform(Collect())

    def _do(self, effects: tuple[Effect, ...], before: SlotState) -> None:
        if self._state.phase != Phase.PROBATION:
            self._runner.watch = None
        for effect in effects:
            if isinstance(effect, Announce):
                self._remember(effect, before)
            outcome = self._runner.perform(effect)
            if isinstance(outcome, _AT_ONCE):
                self._advance(outcome)
            elif outcome:
                self._outcomes.append(outcome)

    def _tell_crash(self, before: SlotState) -> None:
        last = before.trial if before.phase in TRIAL else before.active
        words = f"the daemon ended without notice while this slot was {before.phase}"
        digest = last.digest if last else None
        crash = Announce(self._state.install, EventKind.CRASH, digest, "crash", words)
        self._remember(crash, before)
        self._runner.perform(crash)

    def _remember(self, end: Announce, before: SlotState) -> None:
        """Add to the history. That it cannot be kept changes nothing."""
        at, figures = self._timing.now_ms(), figures_of(self._runner.evidence(end.digest))
        record = record_of(end, before, self._state, at=at, figures=figures)
        try:
            self._parts.history.remember(record)
        except DeviceError as error:
            told = {"event": "history_unwritten", "slot": self.slot}
            logger.warning("slot %s: the history lacks an entry: %s", self.slot, error, extra=told)

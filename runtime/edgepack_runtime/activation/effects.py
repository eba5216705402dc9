"""Doing what the install table asks for: each effect ends in at most one outcome.

Nothing here decides: errors become outcomes, and the table says what they lead to. Every effect may
run twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edgepack_contract.errors import BundleError, EdgepackError, MalformedBundleError
from edgepack_contract.messages import SlotReported
from edgepack_runtime.activation.events import (
    Announce,
    Announced,
    Collect,
    Download,
    Downloaded,
    Effect,
    Failed,
    Interrupted,
    Loaded,
    LoadFailed,
    Outcome,
    ProbationTripped,
    Probe,
    Probed,
    ProbeFailed,
    Recall,
    Recalled,
    Refused,
    Report,
    Serve,
    Unserve,
    Verified,
    Verify,
    Watch,
)
from edgepack_runtime.activation.figures import Tried, as_evidence, keep_tried, read_tried
from edgepack_runtime.activation.installer import Fetched
from edgepack_runtime.activation.parts import SlotParts, Timing
from edgepack_runtime.activation.state import SlotState
from edgepack_runtime.activation.watch import ProbationWatch
from edgepack_runtime.errors import (
    DiskFullError,
    InterruptedInstallError,
    LostModelError,
    TransientSourceError,
    WaitingSourceError,
)
from edgepack_runtime.inference.probe import REFUSING, ProbeResult

logger = logging.getLogger(__name__)

_MACHINE_CODES = frozenset({"probe-timeout", "probe-memory"})
"""A busy machine can cause these too, so the probe is tried again."""

_PROGRESS_STEP = 0.1


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the slot's thread lends to an effect.

    ``waiting`` says whether something newer has come, ``wait`` waits for that at most some seconds
    and says the same. ``state`` and ``status`` are how the slot is now, inside and to the outside;
    ``keep`` are the digests that this state needs, and the one that is on the disk.
    """

    waiting: Callable[[], bool]
    wait: Callable[[float], bool]
    state: Callable[[], SlotState]
    keep: Callable[[], frozenset[str]]
    status: Callable[[], SlotReported]


class EffectRunner:
    """Runs the effects of one slot.

    Args:
        parts: What the slot is made of.
        timing: How to wait.
        around: What the slot's thread lends.
    """

    def __init__(self, parts: SlotParts, timing: Timing, around: Surroundings) -> None:
        self._store, self._installer, self._host = parts.store, parts.installer, parts.host
        self._floor_elsewhere = parts.floor_elsewhere
        self._probe, self._timing, self._around = parts.probe, timing, around
        self._proven: set[str] = set()
        self._variant = ""
        self._evidence: dict[str, Any] = {}
        self._memory_before: int | None = None
        self.suspicious = False
        self.serving: str | None = None
        self.progress = 0.0
        self.waits = ""
        self.watch: ProbationWatch | None = None
        self.shadow_ends: float | None = None
        self.local: dict[str, str] = {}

    def evidence(self, digest: str | None) -> dict[str, Any]:
        """What was measured: of the model that was watched last, and of what a bundle has."""
        tried = read_tried(self._store.model(digest)) if digest else []
        return self._evidence | ({"alternatives": as_evidence(tried)} if tried else {})

    def perform(self, effect: Effect) -> Outcome | None:
        """Do what an effect asks; what came of it, if anything can come of it."""
        try:
            return self._perform(effect)
        except LostModelError:
            # a start of the process knows how to get a model back, or the one before it
            raise
        except Exception as error:
            # The outer boundary of the slot's thread: whatever a part of the daemon or a library
            # does wrong ends this effect, never the thread that keeps a model serving.
            logger.exception(
                "effect %s failed", type(effect).__name__, extra={"event": "effect_failed"}
            )
            return _mishap(effect, error)

    def _perform(self, effect: Effect) -> Outcome | None:
        match effect:
            case Download():
                return self._download(effect)
            case Verify():
                return self._verify(effect)
            case Probe():
                return self._try_out(effect)
            case Serve():
                return self._serve(effect)
            case Announce():
                return self._announce(effect)
            case Recall():
                return Recalled(effect.install)
            case Unserve() | Watch() | Collect() | Report():
                self._do(effect)
                return None

    def _do(self, effect: Unserve | Watch | Collect | Report) -> None:
        """The effects that nothing can come of."""
        match effect:
            case Unserve():
                self._leave()
                self._host.unserve()
                self.serving = None
            case Watch():
                self.watch = self._begin_watch(effect)
            case Collect():
                self._collect()
            case Report():
                self._host.report(self._around.status())

    def _download(self, effect: Download) -> Outcome:
        try:
            return self._downloaded(effect)
        except InterruptedInstallError:
            return Interrupted(effect.install)
        except BundleError as error:
            return _refusal(effect, error)
        except EdgepackError as error:
            return Failed(effect.install, error.code, str(error))

    def _downloaded(self, effect: Download) -> Outcome:
        """Fetch the bundle, again when what was in the way may have passed."""
        backoff, tried, collected = self._timing.backoff, 0, False
        while True:
            try:
                found = self._fetch(effect)
                self._variant = found.variant
                floor = self._floor_elsewhere(found.bundle.name)
                places = (found.alternative, found.alternatives)
                return Downloaded(effect.install, found.bundle, floor, *places)
            except WaitingSourceError as error:
                self._wait_allowed(error)
            except TransientSourceError as error:
                tried += 1
                if tried >= backoff.tries:
                    return Failed(effect.install, error.code, f"{error}; tried {tried} times")
                logger.info(
                    "download waits after try %d: %s", tried, error,
                    extra={"event": "download_waits"},
                )  # fmt: skip
                self._pause(backoff.delay(tried, self._timing.rng))
            except DiskFullError:
                if collected or not self._collect():
                    raise
                collected = True

    def _pause(self, seconds: float) -> None:
        if self._around.wait(seconds):
            raise InterruptedInstallError("something newer is wanted")

    def _wait_allowed(self, error: WaitingSourceError) -> None:
        """Wait until it is time to look whether a source may be asked again."""
        self.waits = str(error)
        logger.info("download waits: %s", error, extra={"event": "download_waits"})
        self.perform(Report())
        try:
            self._pause(self._timing.backoff.longest)
        finally:
            self.waits = ""

    def _fetch(self, effect: Download) -> Fetched:
        ref, path = effect.ref, self.local.get(effect.ref.digest)
        if path:
            ref = replace(ref, sources=[path, *ref.sources])
        self.progress = 0.0
        return self._installer.fetch(
            ref,
            alternative=effect.alternative,
            interrupted=self._around.waiting,
            progress=self._on_progress,
        )

    def _on_progress(self, share: float) -> None:
        due = share >= self.progress + _PROGRESS_STEP
        if due:
            self.progress = share
            self.perform(Report())

    def _verify(self, effect: Verify) -> Outcome:
        try:
            self._installer.verify(effect.ref)
        except BundleError as error:
            return _refusal(effect, error)
        except EdgepackError as error:
            return Failed(effect.install, error.code, str(error))
        self._proven.add(effect.ref.digest)
        return Verified(effect.install)

    def _try_out(self, effect: Probe) -> Outcome:
        folder, alone = self._store.model(effect.digest), False
        result = self._probe(folder)
        if result.code == "probe-memory" and self._host.make_room(folder):
            result, alone = self._probe_alone(folder), True
        keep_tried(self._store.fs, folder, Tried(variant=self._variant, result=result))
        if result.ok:
            return Probed(effect.install, f"{self._variant} was chosen")
        if result.code in REFUSING:
            return Refused(effect.install, result.code, result.words)
        several = self._around.state().alternatives > 1
        words = f"{self._variant}: {result.words or result.code}" if several else result.words
        transient = result.code in _MACHINE_CODES and not alone
        return ProbeFailed(effect.install, result.code, words, transient=transient)

    def _probe_alone(self, folder: Path) -> ProbeResult:
        """Probe while the good model has given way; it answers again whatever came of that."""
        try:
            return self._probe(folder)
        finally:
            self._bring_back()

    def _bring_back(self) -> None:
        digest = self.serving
        if digest is None:
            return
        try:
            self._host.serve(self._store.model(digest), digest, keep_previous=False)
        except (EdgepackError, TimeoutError) as error:
            words = f"the model that gave way for a trial does not come back: {error}"
            raise LostModelError(words) from error

    def _serve(self, effect: Serve) -> Outcome:
        self._leave()
        try:
            if not effect.resumed:
                self._installer.refuse_revoked(effect.digest)
            if self.suspicious and effect.digest not in self._proven:
                self._installer.check_bytes(effect.digest)
                self._proven.add(effect.digest)
            folder = self._store.model(effect.digest)
            if effect.keep_previous:
                # only of a trial: going back to a good model must not depend on any figure
                self._memory_before = self._host.counters().memory_bytes
            self._host.serve(folder, effect.digest, keep_previous=effect.keep_previous)
        except EdgepackError as error:
            final = isinstance(error, BundleError)
            return LoadFailed(
                effect.install, effect.digest, error.code, str(error), final, effect.resumed
            )
        self.serving = effect.digest
        return Loaded(effect.install, effect.digest)

    def look(self) -> Outcome | None:
        """Attend to what runs by the clock: the probation, and the end of the reverse shadow."""
        now = self._timing.clock()
        try:
            if self.shadow_ends is not None and now >= self.shadow_ends:
                self.shadow_ends = None
                self._host.end_shadow()
            return self._take_pulse(now)
        except Exception as error:
            # As in perform: the thread goes on. A probation that cannot be watched has not passed.
            logger.exception("watching failed", extra={"event": "watch_failed"})
            return self.watch.lost(error) if self.watch else None

    def _take_pulse(self, now: float) -> Outcome | None:
        if self.watch is None:
            return None
        outcome = self.watch.tick(now)
        if outcome:
            self._evidence = self.watch.evidence()
        return outcome

    def _leave(self) -> None:
        self.watch = None
        self.shadow_ends = None

    def _begin_watch(self, effect: Watch) -> ProbationWatch:
        budgets = self._installer.describe(effect.digest).budgets
        self._evidence = {}
        self.shadow_ends = self._timing.clock() + effect.probation.shadow_seconds
        return ProbationWatch(
            self._host,
            install=effect.install,
            probation=effect.probation,
            memory_bytes=budgets.memory_bytes,
            memory_before=self._memory_before,
            now=self._timing.clock(),
        )

    def _collect(self) -> list[str]:
        """Remove every bundle that is not needed; the digests of what went."""
        gone = self._store.collect(self._around.keep())
        for digest in gone:
            self._proven.discard(digest)
            self.local.pop(digest, None)
        return gone

    def _announce(self, effect: Announce) -> Outcome:
        self._host.event(
            effect.kind,
            digest=effect.digest,
            code=effect.code,
            words=effect.words,
            evidence=self.evidence(effect.digest),
        )
        return Announced(effect.install)


def _refusal(effect: Download | Verify, error: BundleError) -> Refused:
    damaged = isinstance(error, MalformedBundleError)
    return Refused(effect.install, error.code, str(error), damaged)


def _mishap(effect: Effect, error: Exception) -> Outcome | None:
    words = f"{type(error).__name__}: {error}"
    match effect:
        case Download() | Verify():
            return Failed(effect.install, "internal", words)
        case Probe():
            return ProbeFailed(effect.install, "internal", words, transient=True)
        case Serve():
            return LoadFailed(effect.install, effect.digest, "load-failed", words)
        case Watch():
            return ProbationTripped(effect.install, "internal", words)
        case _:
            return None

"""What an install asks of the serving side of its slot, for the active model and the candidate.

The install's thread calls these; what touches the slot is handed to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from edgepack_contract.errors import EdgepackError
from edgepack_contract.messages import CandidateMode, Event, EventKind, SlotReported
from edgepack_runtime import machine_state, memory
from edgepack_runtime.activation.guard import Counters
from edgepack_runtime.inference.errors import ModelLoadError
from edgepack_runtime.inference.variant import read_description
from edgepack_runtime.serving.batching import why_not_batched
from edgepack_runtime.serving.candidate import Candidate
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.place import Place
from edgepack_runtime.serving.shadow import yield_to_others
from edgepack_runtime.serving.slot import Slot

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOP_SECONDS = 30.0
EVENT_SECONDS = 30.0
GONE_SECONDS = 60.0
"""The last request of a model that lets go of its memory has come to its deadline by then."""

NO_MEMORY = "no-memory"
_ENDS_BADLY = frozenset({EventKind.FALLBACK, EventKind.FAILED, EventKind.VERIFY_FAILED})
STOPPED_FIRST = (
    "memory is too short for two models, so the one that answers has stopped while the next one is "
    "tried or loaded; requests get 503 meanwhile"
)


class ServingHost:
    """What an install asks of the daemon; see :class:`~edgepack_runtime.activation.host.SlotHost`.

    Args:
        place: Where the model goes.
        loop: The event loop that it lives on.
        session: This run of the daemon.
        keep_event: Keeps an event durably.
        changed: Called on the loop when the slot's report changes.
        now_ms: Wall clock, milliseconds since 1970 UTC.
        threads: Threads of a model whose bundle leaves them to the device.
    """

    def __init__(
        self,
        place: Place,
        *,
        loop: asyncio.AbstractEventLoop,
        session: int,
        keep_event: Callable[[Event], Future[int]],
        changed: Callable[[], None],
        now_ms: Callable[[], int],
        threads: int = 1,
    ) -> None:
        self._place = place
        self._loop = loop
        self._session = session
        self._keep_event = keep_event
        self._changed = changed
        self._now_ms = now_ms
        self.threads = threads
        self._notes: dict[str, Any] = {}

    @property
    def words(self) -> str:
        """What there is to say of the place beside the install, empty when nothing."""
        return ""

    def serve(self, folder: Path, digest: str, *, keep_previous: bool) -> None:
        """Load, warm and switch, or take back the previous model when that is what is wanted."""
        if self._on_loop(lambda: self._is_active(digest) or self._take_back(digest)):
            return
        keep_previous = self._make_room(folder) and keep_previous
        self._load(folder, digest, keep_previous=keep_previous)

    def wants(self, _digest: str) -> bool:
        """What worked last is better than nothing."""
        return True

    def make_room(self, _folder: Path) -> bool:
        """Nothing gives way for a model that is only tried."""
        return False

    def unserve(self) -> None:
        """Hold no model."""
        self._on_loop(self._place.clear)

    def _make_room(self, _folder: Path) -> bool:
        """Have what stands in the way give way; whether the former model can stay loaded."""
        return True

    def _load(self, folder: Path, digest: str, *, keep_previous: bool) -> None:
        serving = self._on_loop(lambda: self._place.active) is not None
        loading = partial(load_model, folder, digest, threads=self.threads)
        model = yielding(loading) if serving and self.threads == 1 else loading()
        if self._place.joins:
            self._settle_joining(model)
        self._on_loop(lambda: self._switch(model, keep_previous=keep_previous))

    def _switch(self, model: ServingModel, *, keep_previous: bool) -> None:
        self._place.swap(model, keep_previous=keep_previous)

    def _settle_joining(self, model: ServingModel) -> None:
        why = why_not_batched(model)
        model.joinable = why is None
        if why is not None:
            logger.warning(
                "requests to slot %s are not joined: %s", self._place.name, why,
                extra={"event": "not_batched", "slot": self._place.name},
            )  # fmt: skip

    def counters(self) -> Counters:
        """The active model's counts, with the memory of this process."""
        found = self._on_loop(self._place.counters)
        return Counters(
            requests=found.requests,
            errors=found.errors,
            nonfinite=found.nonfinite,
            identical_inputs=found.identical_inputs,
            over_budget=found.over_budget,
            memory_bytes=machine_state.look(Path("/")).memory_rss_bytes,
        )

    def throttled(self) -> bool:
        """Whether the processor is slowed down now."""
        return bool(machine_state.look(Path("/")).throttled)

    def run_golden(self) -> None:
        """Check the active model against its golden rows.

        Raises:
            ModelLoadError: It answers otherwise, or there is none.
        """
        model = self._on_loop(lambda: self._place.active)
        if model is None:
            raise ModelLoadError("no model is active", code="no-model")
        result = model.check_golden()
        if not result.ok:
            raise ModelLoadError(f"golden rows differ: {result.words}", code="golden-mismatch")

    def end_shadow(self) -> None:
        """Let go of the previous model."""
        self._on_loop(self._place.end_shadow)

    def report(self, reported: SlotReported) -> None:
        """Tell the loop that there is news; it asks for the status itself, which is the newest."""
        logger.info(
            "slot %s: %s", self._place.name, f"{reported.phase} {reported.words}".rstrip(),
            extra={"event": "slot_phase", "slot": self._place.name, "phase": reported.phase.value},
        )  # fmt: skip
        self._loop.call_soon_threadsafe(self._changed)

    def event(
        self,
        kind: EventKind,
        *,
        digest: str | None,
        code: str,
        words: str,
        evidence: dict[str, Any],
    ) -> None:
        """Keep an event for the fleet; waits until it is on the disk."""
        event = Event(
            session=self._session,
            sequence=0,
            at=self._now_ms(),
            slot=self._place.name,
            kind=kind,
            digest=digest,
            code=code,
            words=words,
            evidence=evidence | self._notes,
        )
        try:
            self._keep_event(event).result(EVENT_SECONDS)
        except (EdgepackError, TimeoutError) as error:
            # A report that cannot be kept must never undo what it reports.
            logger.warning("event lost: %s", error, extra={"event": "event_lost"})

    def _is_active(self, digest: str) -> bool:
        active = self._place.active
        return active is not None and active.digest == digest

    def _take_back(self, digest: str) -> bool:
        previous = self._place.previous
        return previous is not None and previous.digest == digest and self._place.fall_back()

    def _wait_for(self, let_go: Callable[[], None]) -> None:
        """Let go of models, and wait until their memory is back."""
        self._on_loop(let_go)
        self._on_loop(lambda: self._place.gone).result(GONE_SECONDS)

    def _on_loop(self, work: Callable[[], T]) -> T:
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(work())
            except BaseException as error:  # noqa: BLE001 - carried to the thread that asked
                result.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return result.result(LOOP_SECONDS)


class ActiveHost(ServingHost):
    """The host of the model that answers, which goes before everything else in the slot.

    Args:
        slot: The slot.
        give_way: Drops the candidate, for the reason given.
        more: As for :class:`ServingHost`.
    """

    def __init__(self, slot: Slot, give_way: Callable[[str, str], None], **more: Any) -> None:
        super().__init__(slot, **more)
        self._slot, self._give_way = slot, give_way

    @property
    def words(self) -> str:
        """That nothing answers while the next model is loaded, because memory is short."""
        return STOPPED_FIRST if self._slot.gave_way else ""

    def serve(self, folder: Path, digest: str, *, keep_previous: bool) -> None:
        """As for every host; a candidate that is loaded already becomes the active model."""
        if self._on_loop(lambda: self._take_over(folder, digest, keep_previous=keep_previous)):
            return
        try:
            super().serve(folder, digest, keep_previous=keep_previous)
        finally:
            if self._on_loop(lambda: self._slot.active) is not None:
                self._slot.gave_way = False

    def _take_over(self, folder: Path, digest: str, *, keep_previous: bool) -> bool:
        loaded = self._slot.candidate.active
        if loaded is None or loaded.digest != digest or self._is_active(digest):
            return False
        if loaded.description.variant != read_description(folder).variant:
            return False
        self._slot.take_over(keep_previous=keep_previous)
        return True

    def make_room(self, folder: Path) -> bool:
        """Stop the active model, and first all that stands beside it, if that is in the way."""
        return self._on_loop(lambda: self._slot.active) is not None and not self._make_room(folder)

    def _make_room(self, folder: Path) -> bool:
        if self._on_loop(lambda: self._slot.active) is None:
            return True
        self._notes = {}
        if memory.fits(folder):
            return True
        if self._on_loop(lambda: self._slot.candidate.active) is not None:
            self._give_way(NO_MEMORY, "the next active model needs the memory")
            self._wait_for(self._slot.candidate.clear)
        if memory.fits(folder):
            return True
        self._wait_for(self._slot.end_shadow)
        if memory.fits(folder):
            return True
        logger.warning(
            "too little memory for two models: the old one stops first",
            extra={"event": "stop_first", "slot": self._slot.name},
        )
        self._slot.gave_way = True
        self._notes = {"stopped_first": True}
        self._loop.call_soon_threadsafe(self._changed)
        self._wait_for(self._slot.clear)
        return False


class CandidateHost(ServingHost):
    """The host of a candidate: it takes only room that is left, and runs only what is wanted.

    Args:
        candidate: Its place.
        wanted: Gives the digest of the bundle that is wanted now.
        more: As for :class:`ServingHost`.
    """

    def __init__(self, candidate: Candidate, wanted: Callable[[], str | None], **more: Any) -> None:
        super().__init__(candidate, **more)
        self._candidate, self._wanted = candidate, wanted
        self._notes = {"candidate": True}

    def serve(self, folder: Path, digest: str, *, keep_previous: bool) -> None:
        """Load the candidate; one from before that its agent would fall back to stays away."""
        if not self.wants(digest):
            self.unserve()
            return
        super().serve(folder, digest, keep_previous=keep_previous)

    def wants(self, digest: str) -> bool:
        """Nobody misses a candidate from before."""
        return digest == self._wanted()

    def event(
        self,
        kind: EventKind,
        *,
        digest: str | None,
        code: str,
        words: str,
        evidence: dict[str, Any],
    ) -> None:
        """As for every host; of a split that has ended also who answers its share now.

        The candidate before, which went on until then, has nobody who wants it any more.
        """
        place = self._candidate
        if kind in _ENDS_BADLY and self._on_loop(self._leave_unwanted):
            self._loop.call_soon_threadsafe(self._changed)
        if kind in _ENDS_BADLY and place.mode is CandidateMode.SPLIT and place.active is None:
            whose = f"the active model answers the share of {place.share:.0%} that it had"
            words = "; ".join(filter(None, (words, whose)))
        super().event(kind, digest=digest, code=code, words=words, evidence=evidence)

    def _leave_unwanted(self) -> bool:
        model = self._candidate.active
        unwanted = model is not None and model.digest != self._wanted()
        if unwanted:
            self._candidate.clear()
        return unwanted

    def _switch(self, model: ServingModel, *, keep_previous: bool) -> None:
        # it may have been dropped while it was loaded
        if model.digest == self._wanted():
            super()._switch(model, keep_previous=keep_previous)
        else:
            model.release()

    def _make_room(self, folder: Path) -> bool:
        if not memory.fits(folder):
            # the candidate before answers nobody that the active model cannot answer
            self._wait_for(self._place.clear)
        if not memory.fits(folder):
            need = memory.needed_bytes(folder) + memory.RESERVE_BYTES
            raise ModelLoadError(
                f"a candidate is loaded beside the active model, and takes {need} bytes with the "
                f"reserve, but {memory.available_bytes()} are free",
                code=NO_MEMORY,
            )
        return True


def load_model(folder: Path, digest: str, *, threads: int) -> ServingModel:
    """Load a model; see :meth:`ServingModel.load`."""
    return ServingModel.load(folder, digest, default_threads=threads)


def yielding(work: Callable[[], T]) -> T:
    """Do something in a thread of low priority, which keeps that priority to its end."""
    result: Future[T] = Future()

    def run() -> None:
        yield_to_others()
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - carried to the thread that asked
            result.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return result.result()

"""One slot of the daemon: the serving side that an install asks for things, and its thread.

The install's thread calls :class:`ServingHost`; what touches the slot is handed to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgepack_contract.description import MODEL_DATA_PATH, MODEL_PATH
from edgepack_contract.errors import EdgepackError
from edgepack_contract.messages import Event, EventKind, SlotBirth, SlotReported
from edgepack_contract.reference import reference_id
from edgepack_contract.states import Phase
from edgepack_contract.window import DriftVerdict
from edgepack_runtime import machine_state
from edgepack_runtime.activation.agent import SlotAgent
from edgepack_runtime.activation.guard import Counters
from edgepack_runtime.inference.errors import ModelLoadError
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.slot import Slot
from edgepack_runtime.telemetry.horizons import DriftReport

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOP_SECONDS = 30.0
EVENT_SECONDS = 30.0
RESERVE_BYTES = 64 * 1024 * 1024
LOAD_FACTOR = 3
"""A model takes up to this many times its file while it is being loaded."""


class ServingHost:
    """What an install asks of the daemon; see :class:`~edgepack_runtime.activation.host.SlotHost`.

    Args:
        slot: The slot that serves.
        loop: The event loop that it lives on.
        session: This run of the daemon.
        keep_event: Keeps an event durably.
        changed: Called on the loop when the slot's report changes.
        now_ms: Wall clock, milliseconds since 1970 UTC.
    """

    def __init__(
        self,
        slot: Slot,
        *,
        loop: asyncio.AbstractEventLoop,
        session: int,
        keep_event: Callable[[Event], Future[int]],
        changed: Callable[[], None],
        now_ms: Callable[[], int],
    ) -> None:
        self._slot = slot
        self._loop = loop
        self._session = session
        self._keep_event = keep_event
        self._changed = changed
        self._now_ms = now_ms

    def serve(self, folder: Path, digest: str, *, keep_previous: bool) -> None:
        """Load, warm and switch, or take back the previous model when that is what is wanted."""
        if self._on_loop(lambda: self._is_active(digest) or self._take_back(digest)):
            return
        if self._slot.active is not None and not _fits(folder):
            logger.warning(
                "too little memory for two models: the old one stops first",
                extra={"event": "stop_first", "slot": self._slot.name},
            )
            self._on_loop(self._slot.clear)
            keep_previous = False
        model = ServingModel.load(folder, digest)
        self._on_loop(lambda: self._slot.swap(model, keep_previous=keep_previous))

    def unserve(self) -> None:
        """Hold no model."""
        self._on_loop(self._slot.clear)

    def counters(self) -> Counters:
        """The active model's counts, with the memory of this process."""
        found = self._on_loop(self._slot.counters)
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
        model = self._on_loop(lambda: self._slot.active)
        if model is None:
            raise ModelLoadError("no model is active", code="no-model")
        result = model.check_golden()
        if not result.ok:
            raise ModelLoadError(f"golden rows differ: {result.words}", code="golden-mismatch")

    def end_shadow(self) -> None:
        """Let go of the previous model."""
        self._on_loop(self._slot.end_shadow)

    def report(self, reported: SlotReported) -> None:
        """Tell the loop that there is news; it asks for the status itself, which is the newest."""
        logger.info(
            "slot %s: %s %s", self._slot.name, reported.phase, reported.words,
            extra={"event": "slot_phase", "slot": self._slot.name, "phase": reported.phase.value},
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
            slot=self._slot.name,
            kind=kind,
            digest=digest,
            code=code,
            words=words,
            evidence=evidence,
        )
        try:
            self._keep_event(event).result(EVENT_SECONDS)
        except (EdgepackError, TimeoutError) as error:
            # A report that cannot be kept must never undo what it reports.
            logger.warning("event lost: %s", error, extra={"event": "event_lost"})

    def _is_active(self, digest: str) -> bool:
        active = self._slot.active
        return active is not None and active.digest == digest

    def _take_back(self, digest: str) -> bool:
        previous = self._slot.previous
        return previous is not None and previous.digest == digest and self._slot.fall_back()

    def _on_loop(self, work: Callable[[], T]) -> T:
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(work())
            except BaseException as error:  # noqa: BLE001 - carried to the thread that asked
                result.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return result.result(LOOP_SECONDS)


@dataclass(slots=True)
class SlotRuntime:
    """A slot with the thread that installs into it."""

    slot: Slot
    agent: SlotAgent
    alpha: float = 1e-6
    drift: DriftVerdict | None = None

    @property
    def in_probation(self) -> bool:
        """Whether the device is watching a new model."""
        return self.agent.state.phase == Phase.PROBATION

    def birth(self) -> SlotBirth | None:
        """What the slot runs, None when it is nothing."""
        model = self.slot.active
        if model is None:
            return None
        return SlotBirth(
            bundle=model.description.name,
            version=model.version,
            digest=model.digest,
            variant=model.description.variant,
            reference=reference_id(model.reference) if model.reference else "",
        )

    async def newly_drifted(self) -> DriftReport | None:
        """Judge the inputs of the active model; the report when they have changed just now."""
        tenure = self.slot.tenure
        evidence = tenure.aggregator.drift_evidence() if tenure else None
        if tenure is None or evidence is None:
            return None
        report = await asyncio.to_thread(evidence.judge, self.alpha)
        tenure.aggregator.settle(report)
        before, self.drift = self.drift, report.verdict
        return report if report.verdict == "drift" and before != "drift" else None


def now_ms() -> int:
    """Wall clock, milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def _fits(folder: Path) -> bool:
    available = machine_state.look(folder).memory_available_bytes
    if available is None:
        return True
    files = [folder / MODEL_PATH, folder / MODEL_DATA_PATH]
    size = sum(file.stat().st_size for file in files if file.exists())
    return LOAD_FACTOR * size + RESERVE_BYTES <= available

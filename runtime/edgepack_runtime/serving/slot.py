"""A slot: the place of one model, and the only thing that a swap changes.

Every method is called on the event loop's thread. A request takes a *lease* on whatever model is
active when it arrives and finishes on that one, so replacing the model is one assignment; the old
one is let go of when its last lease is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from edgepack_contract.window import ErrorKind, WindowBody
from edgepack_runtime.capture.recorder import Capture
from edgepack_runtime.inference.session import Tensor, trim_memory
from edgepack_runtime.serving.codec import Payload, PredictRequest
from edgepack_runtime.serving.counting import Durations, ModelCounts, SlotCounters, SlotTotals
from edgepack_runtime.serving.errors import NoModelError, OverloadError, UnknownModelError
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.shadow import Pair, ReverseShadow, comparable
from edgepack_runtime.telemetry.aggregate import SlotAggregator

T = TypeVar("T")

POOL_THREADS = 2
MOST_WAITING = 64
SHADOW_STOP_SECONDS = 5.0


@dataclass(slots=True)
class Tenure:
    """One model's time as the active one of a slot.

    Attributes:
        model: The model.
        aggregator: Counts its windows.
        since_ms: When it became active, milliseconds since 1970 UTC.
        counts: What probation watches.
        in_flight: Leases that are out.
    """

    model: ServingModel
    aggregator: SlotAggregator
    since_ms: int
    counts: ModelCounts = field(default_factory=ModelCounts)
    in_flight: int = 0


class Slot:
    """The place of one model.

    Args:
        name: The slot's name, which is the model's name in URLs.
        now_ms: Wall clock, milliseconds since 1970 UTC.
        rng: Chooses what the reverse shadow samples.
        most_waiting: How many requests may wait for or run in the pool.

    Attributes:
        unloaded: Whether somebody asked that nothing is answered until they ask otherwise; the
            model stays where it is.
    """

    def __init__(
        self,
        name: str,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        rng: random.Random | None = None,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self.name = name
        self.totals = SlotTotals()
        self.unloaded = False
        self.last_prediction_ms: int | None = None
        self.capture: Capture | None = None
        self._now_ms = now_ms
        self._rng = rng or random.Random()  # noqa: S311 - a sample, not a secret
        self._most_waiting = most_waiting
        self._waiting = 0
        self._active: Tenure | None = None
        self._previous: ServingModel | None = None
        self._shadow: ReverseShadow | None = None
        self._ending_comparison = False
        self._open: list[Tenure] = []
        self._doomed: list[ServingModel] = []
        self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix=f"slot-{name}")

    @property
    def ready(self) -> bool:
        """Whether a request would be answered."""
        return self._active is not None and not self.unloaded

    @property
    def why_unready(self) -> str:
        """In words, for whoever asks while it is not."""
        if self.unloaded:
            load = f"POST /v2/repository/models/{self.name}/load"
            return f"model {self.name!r} was unloaded by request; {load} lets it answer again"
        return f"model {self.name!r} has no bundle that can serve right now"

    @property
    def active(self) -> ServingModel | None:
        """The model that answers."""
        return self._active.model if self._active else None

    @property
    def previous(self) -> ServingModel | None:
        """The model that answered before and is still loaded, for comparison and fallback."""
        return self._previous

    @property
    def tenure(self) -> Tenure | None:
        """The active model with its counts."""
        return self._active

    @property
    def shadow(self) -> ReverseShadow | None:
        """The comparison that is going on, if any."""
        return self._shadow

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return sum(tenure.in_flight for tenure in self._open)

    def counters(self) -> SlotCounters:
        """What probation watches; zeros without a model."""
        return self._active.counts.snapshot() if self._active else SlotCounters()

    def swap(self, new: ServingModel, *, keep_previous: bool, share: float = 1.0) -> None:
        """Let ``new`` answer from now on.

        Args:
            new: A loaded model.
            keep_previous: Keep the old one loaded: for :meth:`fall_back`, and to see a ``share`` of
                the inputs in reverse shadow where the two can be compared.
            share: 0 to 1; all of them during probation.
        """
        old = self._active
        self.end_shadow()
        self._active = self._begin(new)
        self.totals.swaps += 1
        if old is None or old.model is new:
            return
        if not keep_previous:
            self._let_go(old.model)
            return
        self._previous = old.model
        if comparable(new, old.model):
            self._start_shadow(self._active, old.model, share)

    def fall_back(self) -> bool:
        """Let the previous model answer again, at once; False when it is no longer loaded."""
        previous, failed = self._previous, self._active
        if previous is None or failed is None:
            return False
        self._stop_shadow()
        self._previous = None
        self._active = self._begin(previous)
        self.totals.swaps += 1
        self._let_go(failed.model)
        return True

    def end_shadow(self) -> None:
        """End the comparison and let go of the previous model."""
        self._stop_shadow()
        previous, self._previous = self._previous, None
        if previous is not None:
            self._let_go(previous)

    def clear(self) -> None:
        """Hold no model: requests get 503 until the next swap."""
        self.end_shadow()
        active, self._active = self._active, None
        if active is not None:
            self._let_go(active.model)

    async def close(self) -> None:
        """Let go of everything and wait for the threads."""
        shadow = self._shadow
        self.clear()
        if shadow is not None:
            await asyncio.to_thread(shadow.join, SHADOW_STOP_SECONDS)
        await asyncio.to_thread(self._pool.shutdown)

    def lease(self, payload: Payload, version: str | None = None) -> Tenure:
        """Take the model that is to answer a request; :meth:`give_back` must follow.

        Args:
            payload: The request; its key or body decides which model of a split answers.
            version: The version that must answer, None for whichever is due.

        Raises:
            NoModelError: There is none.
            UnknownModelError: No model of that version answers here; counted as refused.
        """
        if self._active is None or self.unloaded:
            self.totals.unavailable += 1
            raise NoModelError(self.why_unready)
        serving = self._active.model.version
        if version is not None and version != serving:
            self.refused(self._active, "bad_request")
            words = f"model {self.name!r} has no version {version[:80]!r}; {serving} is serving"
            raise UnknownModelError(words)
        self._active.in_flight += 1
        return self._active

    def give_back(self, tenure: Tenure) -> None:
        """End a lease."""
        tenure.in_flight -= 1
        if self._doomed and not tenure.in_flight:
            self._release_idle()

    async def in_pool(self, work: Callable[[], T]) -> T:
        """Run something slow in one of the slot's threads.

        Raises:
            OverloadError: Too many wait already.
        """
        if self._waiting >= self._most_waiting:
            raise OverloadError(f"{self._waiting} requests wait for model {self.name!r} already")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting -= 1

    def answered(
        self,
        tenure: Tenure,
        request: PredictRequest,
        outputs: dict[str, Tensor],
        durations: Durations,
        *,
        finite: bool,
    ) -> None:
        """Count one answer, and let the previous model see the same input."""
        seconds, rows, model = durations.seconds, request.rows, tenure.model
        self.last_prediction_ms = self._now_ms()
        self.totals.count(rows, seconds)
        tenure.aggregator.record(request.feeds, outputs, seconds)
        tenure.counts.answered(
            request.feeds,
            model.float_bytes(outputs),
            rows,
            durations,
            over_budget=model.over_budget(seconds, rows),
            finite=finite,
        )
        if self._shadow is not None and tenure is self._active:
            self._shadow.offer(request.feeds, outputs)
        if self.capture is not None:
            self.capture.offer(model, request, outputs)

    def refused(self, tenure: Tenure, kind: ErrorKind) -> None:
        """Count a request that never reached the model."""
        self.totals.errors[kind] += 1
        tenure.aggregator.record_error(kind)

    def refused_early(self, kind: ErrorKind) -> None:
        """Count a request that was refused before it had a model: its body could not be read."""
        self.totals.errors[kind] += 1
        if self._active is not None:
            self._active.aggregator.record_error(kind)

    def failed(self, tenure: Tenure, kind: ErrorKind, elapsed_ns: int) -> None:
        """Count a request that the model failed."""
        self.refused(tenure, kind)
        tenure.counts.failed(kind, elapsed_ns)

    def roll(self, *, probation: bool = False, throttled: bool = False) -> list[WindowBody]:
        """Close the open windows: that of the active model, and the last one of each before it."""
        now_ms, bodies = self._now_ms(), []
        for tenure in list(self._open):
            if tenure is self._active:
                bodies.append(
                    tenure.aggregator.roll(now_ms, probation=probation, throttled=throttled)
                )
            elif not tenure.in_flight:
                self._open.remove(tenure)
                bodies.append(tenure.aggregator.roll(now_ms, throttled=throttled))
        if self._ending_comparison and self._active is not None:
            self._active.aggregator.compare_with(None)
        self._ending_comparison = False
        return bodies

    def _begin(self, model: ServingModel) -> Tenure:
        now_ms = self._now_ms()
        aggregator = SlotAggregator(
            self.name, model.digest, model.description, model.reference, now_ms
        )
        tenure = Tenure(model, aggregator, now_ms)
        self._open.append(tenure)
        self._ending_comparison = False
        return tenure

    def _start_shadow(self, tenure: Tenure, old: ServingModel, share: float) -> None:
        loop = asyncio.get_running_loop()

        def record(pairs: list[Pair]) -> None:
            # a loop that has been closed takes no more: the daemon ends, and the pairs with it
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_record_pairs, tenure, pairs)

        tenure.aggregator.compare_with(old.digest)
        self._shadow = ReverseShadow(tenure.model, old, share=share, record=record, rng=self._rng)

    def _stop_shadow(self) -> None:
        shadow, self._shadow = self._shadow, None
        if shadow is not None:
            shadow.stop()
            # the pairs of the open window are still to be told
            self._ending_comparison = True

    def _let_go(self, model: ServingModel) -> None:
        self._doomed.append(model)
        self._release_idle()

    def _release_idle(self) -> None:
        busy = {id(tenure.model) for tenure in self._open if tenure.in_flight}
        idle = [model for model in self._doomed if id(model) not in busy]
        self._doomed = [model for model in self._doomed if id(model) in busy]
        if idle:
            self._pool.submit(_release, idle)


def _record_pairs(tenure: Tenure, pairs: list[Pair]) -> None:
    for new, old in pairs:
        tenure.aggregator.record_pair(new, old)


def _release(models: list[ServingModel]) -> None:
    for model in models:
        model.release()
    trim_memory()

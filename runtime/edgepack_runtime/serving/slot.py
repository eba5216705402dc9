"""A slot: the place of one model, and only what is in its places changes in a swap.

Every method is called on the event loop's thread. A request takes a *lease* on a model when it
arrives and finishes on that one, so replacing the model is one assignment; the old one is let go of
when its last lease is given back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import msgspec

from edgepack_contract.moments import Moments
from edgepack_contract.window import Differences, ErrorKind, WindowBody
from edgepack_runtime.capture.recorder import Capture
from edgepack_runtime.config import BatchingConfig
from edgepack_runtime.inference.errors import ModelRunError
from edgepack_runtime.inference.session import Tensor, trim_memory
from edgepack_runtime.serving.batching import Batcher, Feeds, Outputs
from edgepack_runtime.serving.candidate import Candidate
from edgepack_runtime.serving.codec import Payload, PredictRequest
from edgepack_runtime.serving.counting import Durations, SlotTotals
from edgepack_runtime.serving.crew import Crew
from edgepack_runtime.serving.errors import (
    DeadlineError,
    NoModelError,
    OverloadError,
    UnknownModelError,
)
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.place import Place, Surroundings
from edgepack_runtime.serving.residents import Residents, Tenure

T = TypeVar("T")

POOL_THREADS = 2
MOST_WAITING = 64
RUN_SECONDS = 30.0
"""A model that takes longer for one run does not come back, or helps nobody any more."""

GRACE_SECONDS = 2.0
"""A run that was told to end does so between two of its nodes."""

STOP_SECONDS = 5.0
INLINE_SECONDS = 0.0003
"""A hop to another thread costs more than a model that takes less than this."""


class Slot(Place):
    """The place of one model, and of a candidate beside it.

    Args:
        name: The slot's name, which is the model's name in URLs.
        now_ms: Wall clock, milliseconds since 1970 UTC.
        rng: Chooses what the reverse shadow samples.
        most_waiting: How many requests may wait for or run in the pool.
        batching: How requests that come together are joined.
        run_seconds: How long one run may take.

    Attributes:
        unloaded: Whether somebody asked that nothing is answered until they ask otherwise; the
            model stays where it is.
        capture: Keeps sampled requests on this device, None when nobody asked for that.
        candidate: The second model.
        batching: How requests are joined from the next swap on.
    """

    def __init__(
        self,
        name: str,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        rng: random.Random | None = None,
        most_waiting: int = MOST_WAITING,
        batching: BatchingConfig | None = None,
        run_seconds: float = RUN_SECONDS,
    ) -> None:
        self._residents = Residents(self._release)
        sampling = rng or random.Random()  # noqa: S311 - a sample, not a secret
        around = Surroundings(
            slot=name,
            residents=self._residents,
            now_ms=now_ms,
            rng=sampling,
            joins=lambda: self.batching.rows > 0,
            batcher=self._batcher,
        )
        super().__init__(around, "active")
        self.totals = SlotTotals()
        self.unloaded = False
        self.gave_way = False
        self.capture: Capture | None = None
        self.last_prediction_ms: int | None = None
        self.batching = batching or BatchingConfig()
        self.candidate = Candidate(around)
        self._now_ms = now_ms
        self._most_waiting, self._run_seconds = most_waiting, run_seconds
        self._waiting = 0
        self._candidate_first = True
        self._pool = Crew(POOL_THREADS, f"slot-{name}")

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
        if self.gave_way:
            return f"model {self.name!r} gives way to its next version, for want of memory"
        return f"model {self.name!r} has no bundle that can serve right now"

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return sum(tenure.in_flight for tenure in self._residents)

    @property
    def waiting(self) -> int:
        """Requests and other work that the slot's threads have, or are to take."""
        return self._waiting

    def of_version(self, version: str | None) -> Tenure | None:
        """The model of a version, the active one for None; None when neither is of it."""
        active, candidate = self._active, self.candidate.tenure
        if active is None or version is None or version == active.model.version:
            return active
        return candidate if candidate and candidate.model.version == version else None

    def swap(self, new: ServingModel, *, keep_previous: bool, share: float = 1.0) -> None:
        """Let ``new`` answer from now on; see :meth:`Place.swap`."""
        super().swap(new, keep_previous=keep_previous, share=share)
        self.totals.swaps += 1

    def fall_back(self) -> bool:
        """Let the previous model answer again, at once; False when it is no longer loaded."""
        fell = super().fall_back()
        self.totals.swaps += fell
        return fell

    def take_over(self, *, keep_previous: bool) -> None:
        """Let the candidate's model be the active one, without loading it again."""
        model = self.candidate.hand_over()
        if model is not None:
            self.swap(model, keep_previous=keep_previous)

    async def close(self) -> None:
        """Let go of everything and wait for the threads, which may hang."""
        shadows = [one for one in (self._shadow, self.candidate.watching) if one is not None]
        self.candidate.clear()
        self.clear()
        for shadow in shadows:
            await asyncio.to_thread(shadow.join, STOP_SECONDS)
        for tenure in self._residents:
            if tenure.in_flight:
                tenure.model.interrupt()
        await asyncio.to_thread(self._pool.stop, STOP_SECONDS)

    def lease(self, payload: Payload, version: str | None = None) -> Tenure:
        """Take the model that is to answer a request; :meth:`give_back` must follow.

        Args:
            payload: The request; its key or body decides which model of a split answers.
            version: The version that must answer, None for whichever is due.

        Raises:
            NoModelError: There is none.
            UnknownModelError: No model of that version answers here; counted as refused.
        """
        tenure = self._active
        if tenure is None or self.unloaded:
            self.totals.unavailable += 1
            raise NoModelError(self.why_unready)
        if version is not None:
            tenure = self._asked_for(tenure, version)
        elif self.candidate.takes(payload):
            tenure = self.candidate.tenure or tenure
        tenure.in_flight += 1
        return tenure

    def give_back(self, tenure: Tenure) -> None:
        """End a lease."""
        self._residents.give_back(tenure)

    async def in_pool(self, work: Callable[[], T], model: ServingModel | None = None) -> T:
        """Run something slow in one of the slot's threads.

        Args:
            work: What to run.
            model: Whose runs are ended when it takes too long. A run of another request that is
                ended with it begins anew.

        Raises:
            OverloadError: Too many wait already, or no thread came free in time.
            DeadlineError: It took too long. Where the model does not heed that, its thread is
                given up.
        """
        if self._waiting >= self._most_waiting:
            raise OverloadError(f"{self._waiting} requests wait for model {self.name!r} already")
        self._waiting += 1
        try:
            return await self._in_time(work, model)
        except ModelRunError as error:
            if error.code != "interrupted":
                raise
            return await self._in_time(work, model)
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
        """Count one answer, and let whoever sees the same inputs have a look."""
        seconds, rows, model = durations.seconds, request.rows, tenure.model
        feeds = request.feeds
        self.last_prediction_ms = self._now_ms()
        self.totals.count(rows, seconds)
        tenure.aggregator.record(feeds, outputs, seconds)
        tenure.counts.answered(
            feeds,
            model.float_bytes(outputs),
            rows,
            durations,
            over_budget=model.over_budget(seconds, rows),
            finite=finite,
        )
        if tenure is self._active and rows:
            if self._shadow is not None:
                self._shadow.offer(feeds, outputs, model)
            self.candidate.offer(feeds, outputs, model)
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
        """Close the open windows: those of both models, and the last one of each before them."""
        now_ms, bodies = self._now_ms(), []
        here = (self._active, self.candidate.tenure)
        for tenure in self._residents:
            if tenure not in here and tenure.in_flight:
                continue
            watched = probation and tenure is self._active
            body = tenure.aggregator.roll(now_ms, probation=watched, throttled=throttled)
            bodies.append(_complete(tenure, body))
            if tenure not in here:
                self._residents.close(tenure)
        if self.ending_comparison and self._active is not None:
            self._active.aggregator.compare_with(None)
        self.ending_comparison = False
        # windows of one model that follow each other can be merged when the spool is full
        self._candidate_first = not self._candidate_first
        return sorted(bodies, key=lambda body: (body.role == "active") == self._candidate_first)

    def _asked_for(self, active: Tenure, version: str) -> Tenure:
        tenure = self.of_version(version)
        if tenure is None:
            self.refused(active, "bad_request")
            words = f"model {self.name!r} has no version {version[:80]!r}"
            raise UnknownModelError(f"{words}; {active.model.version} is serving")
        return tenure

    async def _in_time(self, work: Callable[[], T], model: ServingModel | None) -> T:
        job = self._pool.submit(work)
        waiting = asyncio.wrap_future(job)
        try:
            done, _ = await asyncio.wait((waiting,), timeout=self._run_seconds)
        except asyncio.CancelledError:
            waiting.cancel()
            raise
        if done:
            return await waiting
        if job.cancel():
            raise OverloadError(f"no thread of model {self.name!r} came free in time")
        if model is not None:
            model.interrupt()
            done, _ = await asyncio.wait((waiting,), timeout=GRACE_SECONDS)
        if not done:
            self._pool.replace(job)
        # whatever came of it now, it is too late
        waiting.add_done_callback(lambda late: late.cancelled() or late.exception())
        raise DeadlineError(f"model {self.name!r} did not answer within {self._run_seconds:g} s")

    def _batcher(self, model: ServingModel) -> Batcher | None:
        wanted = self.batching
        if not wanted.rows or not model.joinable:
            return None

        async def run(feeds: Feeds) -> Outputs:
            if model.estimated_seconds(feeds) < INLINE_SECONDS:
                return model.run(feeds)
            return await self.in_pool(lambda: model.run(feeds), model)

        delay = wanted.delay_ms / 1e3
        return Batcher(run, rows=wanted.rows, delay_s=delay, most_waiting=self._most_waiting)

    def _release(self, models: list[ServingModel]) -> Future[None]:
        return self._pool.submit(lambda: _let_go(models))


def _complete(tenure: Tenure, body: WindowBody) -> WindowBody:
    """The window with what the aggregator does not know."""
    moments, against = tenure.differences, tenure.against
    tenure.differences, tenure.against = Moments(), None
    differences = Differences.of(against, moments) if against else None
    return msgspec.structs.replace(body, role=tenure.role, differences=differences)


def _let_go(models: list[ServingModel]) -> None:
    for model in models:
        model.release()
    trim_memory()

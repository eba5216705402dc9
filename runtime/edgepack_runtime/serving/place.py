"""A place that one model has at a time, and where replacing it is one assignment.

Used on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from edgepack_contract.window import WindowRole
from edgepack_runtime.serving.batching import Batcher
from edgepack_runtime.serving.counting import SlotCounters
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.residents import Residents, Tenure
from edgepack_runtime.serving.shadow import Comparison, Pair, Sample, Shadow, comparable
from edgepack_runtime.telemetry.aggregate import SlotAggregator


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a slot lends to its places.

    Attributes:
        slot: Its name.
        residents: The models of all its places.
        now_ms: Wall clock, milliseconds since 1970 UTC.
        rng: Chooses samples.
        joins: Says whether requests that come together shall be answered by one run.
        batcher: Gives what joins the requests to a model, None where each has a run of its own.
    """

    slot: str
    residents: Residents
    now_ms: Callable[[], int]
    rng: random.Random
    joins: Callable[[], bool]
    batcher: Callable[[ServingModel], Batcher | None]


class Place:
    """Holds a model, and for a while the one before it.

    Args:
        around: What the slot lends.
        role: What the windows of its models are of.
        keeps_previous: Whether a model may stay loaded when another takes its place.
    """

    def __init__(
        self, around: Surroundings, role: WindowRole, *, keeps_previous: bool = True
    ) -> None:
        self.ending_comparison = False
        self._around, self._role = around, role
        self._keeps_previous = keeps_previous
        self._active: Tenure | None = None
        self._previous: ServingModel | None = None
        self._shadow: Shadow | None = None

    @property
    def name(self) -> str:
        """The slot's name, which is the model's name in URLs."""
        return self._around.slot

    @property
    def joins(self) -> bool:
        """Whether requests that come together shall be answered by one run."""
        return self._around.joins()

    @property
    def active(self) -> ServingModel | None:
        """The model that is here."""
        return self._active.model if self._active else None

    @property
    def previous(self) -> ServingModel | None:
        """The model that was here before and is still loaded, for comparison and fallback."""
        return self._previous

    @property
    def tenure(self) -> Tenure | None:
        """The model that is here, with its counts."""
        return self._active

    @property
    def shadow(self) -> Shadow | None:
        """The comparison with the previous model that is going on, if any."""
        return self._shadow

    @property
    def gone(self) -> Future[None]:
        """Done when the memory of all models that the slot let go of is given back."""
        return self._around.residents.gone()

    def counters(self) -> SlotCounters:
        """What probation watches; zeros without a model."""
        return self._active.counts.snapshot() if self._active else SlotCounters()

    def swap(self, new: ServingModel, *, keep_previous: bool, share: float = 1.0) -> None:
        """Let ``new`` be here from now on.

        Args:
            new: A loaded model.
            keep_previous: Keep the old one loaded: for :meth:`fall_back`, and to see a ``share`` of
                the inputs in reverse shadow where the two can be compared.
            share: 0 to 1; all of them during probation.
        """
        old = self._active
        self.end_shadow()
        self._active = self._begin(new)
        if old is None or old.model is new:
            return
        if not (keep_previous and self._keeps_previous):
            self._around.residents.let_go(old.model)
            return
        self._previous = old.model
        if comparable(new, old.model):
            self._start_shadow(self._active, old.model, share)

    def fall_back(self) -> bool:
        """Let the previous model be here again, at once; False when it is no longer loaded."""
        previous, failed = self._previous, self._active
        if previous is None or failed is None:
            return False
        self._stop_shadow()
        self._previous = None
        self._active = self._begin(previous)
        self._around.residents.let_go(failed.model)
        return True

    def end_shadow(self) -> None:
        """End the comparison and let go of the previous model."""
        self._stop_shadow()
        previous, self._previous = self._previous, None
        if previous is not None:
            self._around.residents.let_go(previous)

    def clear(self) -> None:
        """Hold no model."""
        self.end_shadow()
        active, self._active = self._active, None
        if active is not None:
            self._around.residents.let_go(active.model)

    def _begin(self, model: ServingModel) -> Tenure:
        around, now_ms = self._around, self._around.now_ms()
        aggregator = SlotAggregator(
            around.slot, model.digest, model.description, model.reference, now_ms
        )
        tenure = Tenure(model, aggregator, now_ms, role=self._role, batcher=around.batcher(model))
        around.residents.add(tenure)
        self.ending_comparison = False
        return tenure

    def _start_shadow(self, tenure: Tenure, old: ServingModel, share: float) -> None:
        loop, comparison = asyncio.get_running_loop(), Comparison(tenure.model, old)

        def see(sample: Sample) -> None:
            pairs = comparison.pairs(sample.outputs, old.run(sample.feeds))
            # a loop that has been closed takes no more: the daemon ends, and the pairs with it
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_record_pairs, tenure, shadow, pairs)

        tenure.aggregator.compare_with(old.digest)
        shadow = self._shadow = Shadow(see, share=share, rng=self._around.rng)

    def _stop_shadow(self) -> None:
        shadow, self._shadow = self._shadow, None
        if shadow is not None:
            shadow.stop()
            # the pairs of the open window are still to be told
            self.ending_comparison = True


def _record_pairs(tenure: Tenure, shadow: Shadow, pairs: list[Pair]) -> None:
    if not shadow.stopping:
        for new, old in pairs:
            tenure.aggregator.record_pair(new, old)

"""The loaded models of a slot, active and candidate: let go of when nobody uses them any more.

Used on the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from edgepack_contract.moments import Moments
from edgepack_contract.window import WindowRole
from edgepack_runtime.serving.batching import Batcher
from edgepack_runtime.serving.counting import ModelCounts
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.telemetry.aggregate import SlotAggregator


@dataclass(slots=True, eq=False)
class Tenure:
    """One model's time in a place of a slot.

    Attributes:
        model: The model.
        aggregator: Counts its windows.
        since_ms: When it began, milliseconds since 1970 UTC.
        role: What its windows are of.
        batcher: Joins requests that come together, None where each has a run of its own.
        counts: What probation watches.
        in_flight: Leases that are out.
        against: The digest of the model whose numbers ``differences`` are from, None without.
        differences: Moments of how far its numbers were from those, in the open window.
    """

    model: ServingModel
    aggregator: SlotAggregator
    since_ms: int
    role: WindowRole = "active"
    batcher: Batcher | None = None
    counts: ModelCounts = field(default_factory=ModelCounts)
    in_flight: int = 0
    against: str | None = None
    differences: Moments = field(default_factory=Moments)


class Residents:
    """Tenures whose last window is not closed, and models that wait for their last request.

    Args:
        release: Lets go of models; slow, so it does that in another thread.
    """

    def __init__(self, release: Callable[[list[ServingModel]], Future[None]]) -> None:
        self._release = release
        self._released: Future[None] | None = None
        self._waiting: list[Future[None]] = []
        self._open: list[Tenure] = []
        self._doomed: list[ServingModel] = []

    def __iter__(self) -> Iterator[Tenure]:
        return iter(list(self._open))

    def add(self, tenure: Tenure) -> None:
        """Take up a tenure."""
        self._open.append(tenure)

    def close(self, tenure: Tenure) -> None:
        """Forget a tenure that has ended, and whose last request is answered."""
        self._open.remove(tenure)

    def give_back(self, tenure: Tenure) -> None:
        """End a lease."""
        tenure.in_flight -= 1
        if self._doomed and not tenure.in_flight:
            self._release_idle()

    def let_go(self, model: ServingModel) -> None:
        """Release a model when its last request is answered."""
        self._doomed.append(model)
        self._release_idle()

    def gone(self) -> Future[None]:
        """Done when everything that was let go of until now is released."""
        waiting: Future[None] = Future()
        self._waiting.append(waiting)
        self._tell_waiting()
        return waiting

    def _release_idle(self) -> None:
        busy = {id(tenure.model) for tenure in self._open if tenure.in_flight}
        idle = [model for model in self._doomed if id(model) not in busy]
        self._doomed = [model for model in self._doomed if id(model) in busy]
        if idle:
            self._released = self._release(idle)
            self._tell_waiting()

    def _tell_waiting(self) -> None:
        if self._doomed:
            return
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if self._released is None:
                one.set_result(None)
            else:
                self._released.add_done_callback(partial(_done, one))


def _done(waiting: Future[None], _released: Future[None]) -> None:
    waiting.set_result(None)

"""The previous model sees what the new one answers: paired agreement, without labels.

Off the hot path: one thread, a bounded queue, and what finds it full is dropped and counted.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgepack_contract.statistics import UNKNOWN_CLASS
from edgepack_runtime.inference.errors import ModelRunError
from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.serving.model import ServingModel

logger = logging.getLogger(__name__)

QUEUE_LENGTH = 128

Pair = tuple[int, int]
"""Class of the new model, class of the old one, both in the new model's order."""


@dataclass(frozen=True, slots=True)
class _Sample:
    feeds: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class ReverseShadow:
    """Runs sampled inputs on the previous model and hands pairs of classes on.

    Args:
        new: The model that answers.
        old: The model that is compared with; must stay loaded until :meth:`stop` was called.
        share: How much of the requests to sample, 0 to 1.
        record: Called on the shadow's thread with the pairs of one request.
        rng: Chooses the sample.
    """

    def __init__(
        self,
        new: ServingModel,
        old: ServingModel,
        *,
        share: float,
        record: Callable[[list[Pair]], None],
        rng: random.Random,
    ) -> None:
        self.dropped = self.failed = 0
        self.against = old.digest
        self._new, self._old, self._share, self._record = new, old, share, record
        self._rng = rng
        self._translate = _translation(old.reader.labels, new.reader.labels)
        self._queue: queue.Queue[_Sample | None] = queue.Queue(QUEUE_LENGTH)
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="reverse-shadow", daemon=True)
        self._thread.start()

    def offer(self, feeds: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Perhaps compare this request later. Never blocks."""
        if self._share < 1.0 and self._rng.random() >= self._share:
            return
        try:
            self._queue.put_nowait(_Sample(feeds, outputs))
        except queue.Full:
            self.dropped += 1

    def stop(self) -> None:
        """Compare nothing more. Does not wait: what is being computed is finished and dropped."""
        self._stopping = True
        # when the queue is full, the thread has samples to wake it, and looks at the flag first
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def join(self, timeout: float) -> None:
        """Wait for the thread after :meth:`stop`."""
        self._thread.join(timeout)

    def _work(self) -> None:
        while (sample := self._queue.get()) is not None and not self._stopping:
            try:
                pairs = self._compare(sample)
            except (ModelRunError, ValueError, KeyError) as error:
                # a model of another shape cannot take these inputs; that is no fault of either
                self.failed += 1
                logger.debug("the previous model could not be compared: %s", error)
                continue
            if not self._stopping:
                self._record(pairs)

    def _compare(self, sample: _Sample) -> list[Pair]:
        new = self._new.reader.top1(sample.outputs).tolist()
        old = self._old.reader.top1(self._old.run(sample.feeds)).tolist()
        return [
            (one, self._translate.get(two, UNKNOWN_CLASS))
            for one, two in zip(new, old, strict=True)
        ]


def comparable(new: ServingModel, old: ServingModel) -> bool:
    """Whether both models classify, and take inputs of the same names and types."""
    return (
        new.reader.classifies
        and old.reader.classifies
        and {(spec.name, spec.dtype) for spec in new.description.inputs}
        == {(spec.name, spec.dtype) for spec in old.description.inputs}
    )


def _translation(old: list[str] | None, new: list[str] | None) -> dict[int, int]:
    """From the old model's class numbers to the new one's, by label where both have labels."""
    if old is None or new is None:
        return {place: place for place in range(max(len(old or ()), len(new or ()), 1))}
    places = {label: place for place, label in enumerate(new)}
    return {place: places[label] for place, label in enumerate(old) if label in places}

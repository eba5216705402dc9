"""A model sees what another one answers: paired agreement, without labels.

Off the hot path: one thread, a bounded queue, and what finds it full is dropped and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgepack_contract.statistics import UNKNOWN_CLASS
from edgepack_runtime.inference.errors import ModelError
from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.serving.model import ServingModel

logger = logging.getLogger(__name__)

QUEUE_LENGTH = 128
NICENESS = 10
"""The thread yields to those that answer somebody."""

Pair = tuple[int, int]
"""Class of the new model, class of the old one, both in the new model's order."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A request that was answered, and by whom."""

    feeds: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    answered_by: ServingModel


class Shadow:
    """Lets sampled requests be seen on a thread of its own.

    Args:
        see: Called on that thread with one request.
        share: How much of the requests to sample, 0 to 1.
        rng: Chooses the sample.
    """

    def __init__(self, see: Callable[[Sample], None], *, share: float, rng: random.Random) -> None:
        self.dropped = self.failed = 0
        self._see, self._share, self._rng = see, share, rng
        self._queue: queue.Queue[Sample | None] = queue.Queue(QUEUE_LENGTH)
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    def offer(
        self,
        feeds: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        answered_by: ServingModel,
    ) -> None:
        """Perhaps look at this request later. Never blocks."""
        if self._share < 1.0 and self._rng.random() >= self._share:
            return
        try:
            self._queue.put_nowait(Sample(feeds, outputs, answered_by))
        except queue.Full:
            self.dropped += 1

    def stop(self) -> None:
        """See nothing more. Does not wait: what is being computed is finished and dropped."""
        self._stopping = True
        # when the queue is full, the thread has samples to wake it, and looks at the flag first
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def join(self, timeout: float) -> None:
        """Wait for the thread after :meth:`stop`."""
        self._thread.join(timeout)

    @property
    def stopping(self) -> bool:
        """Whether what is seen from now on is to be dropped."""
        return self._stopping

    def _work(self) -> None:
        yield_to_others()
        while (sample := self._queue.get()) is not None and not self._stopping:
            try:
                self._see(sample)
            except (ModelError, ValueError, KeyError) as error:
                # a model of another shape cannot take these inputs; that is no fault of either
                self.failed += 1
                logger.debug("a shadow failed: %s", error, extra={"event": "shadow_failed"})


class Comparison:
    """Turns the answers of two models to the same rows into pairs of classes.

    Args:
        new: The model that the pairs are about.
        old: The model that it is compared with.
    """

    def __init__(self, new: ServingModel, old: ServingModel) -> None:
        self.against = old.digest
        self._new, self._old = new.reader, old.reader
        self._translate = _translation(old.reader.labels, new.reader.labels)

    def pairs(self, new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> list[Pair]:
        """The pair of each row.

        Raises:
            ValueError: They answered different numbers of rows.
        """
        ours, theirs = self._new.top1(new).tolist(), self._old.top1(old).tolist()
        return [
            (one, self._translate.get(two, UNKNOWN_CLASS))
            for one, two in zip(ours, theirs, strict=True)
        ]


def yield_to_others() -> None:
    """Give the calling thread a lower priority; on Linux that is a matter of threads."""
    with contextlib.suppress(OSError):
        own = os.getpriority(os.PRIO_PROCESS, os.getpid())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), own + NICENESS)


def takes_the_same(one: ServingModel, two: ServingModel) -> bool:
    """Whether both models take inputs of the same names and types."""
    return {(spec.name, spec.dtype) for spec in one.description.inputs} == {
        (spec.name, spec.dtype) for spec in two.description.inputs
    }


def comparable(new: ServingModel, old: ServingModel) -> bool:
    """Whether both models classify, and take the same inputs."""
    return new.reader.classifies and old.reader.classifies and takes_the_same(new, old)


def _translation(old: list[str] | None, new: list[str] | None) -> dict[int, int]:
    """From the old model's class numbers to the new one's, by label where both have labels."""
    if old is None or new is None:
        return {place: place for place in range(max(len(old or ()), len(new or ()), 1))}
    places = {label: place for place, label in enumerate(new)}
    return {place: places[label] for place, label in enumerate(old) if label in places}

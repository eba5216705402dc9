"""The second model of a slot: it sees what the active one answers, or answers a share itself.

Nothing that it does can touch the active model: what it computes in a shadow goes to nobody, off
the hot path, and what it answers in a split it answers on a lease of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgepack_contract.limits import KIB
from edgepack_contract.messages import CandidateMode
from edgepack_contract.moments import Moments
from edgepack_contract.window import ErrorKind
from edgepack_runtime.inference.errors import ModelRunError
from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.serving.codec import Payload
from edgepack_runtime.serving.counting import Durations
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.place import Place, Surroundings
from edgepack_runtime.serving.residents import Tenure
from edgepack_runtime.serving.shadow import (
    Comparison,
    Pair,
    Sample,
    Shadow,
    comparable,
    takes_the_same,
)

KEY_BYTES = 32 * KIB
"""Of a long body only its beginning and its end are looked at, which is as stable."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the candidate made of one request of the active model."""

    sample: Sample
    outputs: dict[str, Tensor]
    nanoseconds: int
    pairs: list[Pair]
    differences: Moments


class Candidate(Place):
    """The place of a second model.

    Args:
        around: What the slot lends.

    Attributes:
        mode: What it does.
        share: Of the inputs that it sees, or of the requests that it answers; 0 to 1.
    """

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around, "shadow", keeps_previous=False)
        self.mode, self.share = CandidateMode.SHADOW, 0.0
        self._watching: Shadow | None = None

    @property
    def watching(self) -> Shadow | None:
        """What looks at the requests of the active model, None while nothing does."""
        return self._watching

    def settle(self, mode: CandidateMode, share: float) -> None:
        """Say what the candidate does from now on; its windows in another mode are others."""
        if (mode, share) == (self.mode, self.share):
            return
        model, changed = self.active, mode != self.mode
        self.mode, self.share = mode, share
        self._role = "shadow" if mode is CandidateMode.SHADOW else "split"
        if model is not None and changed:
            self.swap(model, keep_previous=False)
        elif self._active is not None:
            self._watch(self._active)

    def clear(self) -> None:
        """Hold no candidate."""
        self._stop_watching()
        super().clear()

    def hand_over(self) -> ServingModel | None:
        """Give the loaded model away: it becomes the active one."""
        self._stop_watching()
        tenure, self._active = self._active, None
        return tenure.model if tenure else None

    def takes(self, payload: Payload) -> bool:
        """Whether the candidate is to answer this request: a stable share of keys."""
        if self._active is None or self.mode is not CandidateMode.SPLIT:
            return False
        return share_of(payload, salt=self._active.model.digest) < self.share

    def offer(
        self, feeds: Mapping[str, Tensor], outputs: Mapping[str, Tensor], by: ServingModel
    ) -> None:
        """Perhaps look at a request that the active model answered. Never blocks."""
        if self._watching is not None:
            self._watching.offer(feeds, outputs, by)

    def _begin(self, model: ServingModel) -> Tenure:
        tenure = super()._begin(model)
        self._watch(tenure)
        return tenure

    def _watch(self, tenure: Tenure) -> None:
        self._stop_watching()
        if self.mode is not CandidateMode.SHADOW or not self.share:
            return
        loop, model = asyncio.get_running_loop(), tenure.model

        def see(sample: Sample) -> None:
            try:
                tell = partial(_record, tenure, shadow, _look(model, sample))
            except ModelRunError:
                tell = partial(_record_failure, tenure, shadow, "backend")
            # a loop that has been closed takes no more: the daemon ends
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(tell)

        shadow = self._watching = Shadow(see, share=self.share, rng=self._around.rng)

    def _stop_watching(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.stop()


def share_of(payload: Payload, *, salt: str) -> float:
    """Where a request stands between 0 and 1: by its key, or by its body where it has none.

    The same request stands at the same place on every device. With another ``salt`` it stands
    elsewhere, so that two splits that follow each other choose independently.
    """
    told = payload.body if payload.key is None else payload.key
    if len(told) > 2 * KEY_BYTES:
        told = told[:KEY_BYTES] + told[-KEY_BYTES:] + str(len(told)).encode()
    digest = hashlib.blake2b(told, digest_size=8, key=salt.encode()[-64:]).digest()
    return int.from_bytes(digest) / 2**64


def _look(model: ServingModel, sample: Sample) -> _Seen:
    """Run the candidate on a request that another model answered.

    Raises:
        ModelRunError: The candidate failed.
        ValueError: It takes other inputs than the active model, so that it cannot be asked.
    """
    other = sample.answered_by
    if not takes_the_same(model, other):
        raise ValueError("it takes other inputs than the active model")
    # its own processor time: how long it waits for those that answer says nothing about it
    begun = time.thread_time_ns()
    outputs = model.run(sample.feeds)
    taken = time.thread_time_ns() - begun
    pairs: list[Pair] = []
    differences = Moments()
    if comparable(model, other):
        pairs = Comparison(model, other).pairs(outputs, sample.outputs)
    elif not (model.reader.classifies or other.reader.classifies):
        differences = _differences(outputs, sample.outputs)
    return _Seen(sample, outputs, taken, pairs, differences)


def _differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Moments:
    found = Moments()
    for name, array in ours.items():
        other = theirs.get(name)
        if other is None or other.shape != array.shape or array.dtype.kind != "f":
            continue
        gaps = array.astype(np.float64) - other
        gaps = gaps[np.isfinite(gaps)]
        if gaps.size:
            mean = float(gaps.mean())
            spread = float(np.square(gaps - mean).sum())
            low, high = float(gaps.min()), float(gaps.max())
            found = found.merge(Moments(int(gaps.size), mean, spread, low, high))
    return found


def _record(tenure: Tenure, shadow: Shadow, seen: _Seen) -> None:
    if shadow.stopping:
        return
    model, sample = tenure.model, seen.sample
    seconds = seen.nanoseconds / 1e9
    rows = next((len(array) for array in sample.feeds.values() if array.ndim), 1)
    finite = model.is_finite(seen.outputs)
    if not finite and model.description.on_nonfinite == "refuse":
        _record_failure(tenure, shadow, "nonfinite_output")
        return
    tenure.aggregator.record(sample.feeds, seen.outputs, seconds)
    tenure.counts.answered(
        sample.feeds,
        model.float_bytes(seen.outputs),
        rows,
        Durations(0, 0, seen.nanoseconds, 0),
        over_budget=model.over_budget(seconds, rows),
        finite=finite,
    )
    _compare(tenure, seen)


def _compare(tenure: Tenure, seen: _Seen) -> None:
    against = seen.sample.answered_by.digest
    if seen.pairs:
        tenure.aggregator.compare_with(against)
        for new, old in seen.pairs:
            tenure.aggregator.record_pair(new, old)
    if seen.differences.n:
        kept = tenure.differences if tenure.against == against else Moments()
        tenure.against, tenure.differences = against, kept.merge(seen.differences)


def _record_failure(tenure: Tenure, shadow: Shadow, kind: ErrorKind) -> None:
    if not shadow.stopping:
        tenure.aggregator.record_error(kind)
        tenure.counts.failed(kind, 0)

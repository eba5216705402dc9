"""From a request that was answered to the ring on the disk, off the hot path.

The event loop only hands arrays over, into a queue with a bound; a thread leaves out what must not
be written and writes the rest in batches. What does not fit the queue or the disk is counted.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgepack_contract.limits import MIB
from edgepack_runtime.capture.records import KEY, RECORD_BYTES, Captured, Origin, encode, redacted
from edgepack_runtime.capture.ring import Ring
from edgepack_runtime.config import CaptureConfig
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.serving.codec import PredictRequest
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.storage.fsio import DurableFS

logger = logging.getLogger(__name__)

FOLDER = "capture"
QUEUED = 256
QUEUED_BYTES = 16 * MIB
FLUSH_SECONDS = 5.0
END_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Sample:
    at: int
    slot: str
    model: ServingModel
    request: PredictRequest
    outputs: Mapping[str, Tensor]
    size: int


class Recorder:
    """Captures for all slots of a device.

    Args:
        folder: Where the ring is.
        config: How much, and what not.
        fs: Its file changes; its own, so that a fault here ends capturing and nothing else.
        now_ms: Wall clock, milliseconds since 1970 UTC.
        rng: Chooses what is sampled.

    Attributes:
        config: What is in force.
        dropped: How many sampled requests were lost: too large, too many, or no room.
    """

    def __init__(
        self,
        folder: Path,
        config: CaptureConfig,
        *,
        fs: DurableFS,
        now_ms: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self._folder, self._fs = folder, fs
        self._now_ms, self._rng = now_ms, rng
        self.config = config
        self.dropped = self.kept = 0
        self._ring = Ring(fs, folder, max_bytes=config.max_bytes)
        self._changed = threading.Condition()
        self._queue: deque[_Sample] = deque()
        self._bytes = 0
        self._ending = False
        self._trouble = ""
        self._compared: set[tuple[str, ...]] = set()
        self._thread: threading.Thread | None = None

    def reconfigure(self, config: CaptureConfig) -> None:
        """Take up other settings."""
        with self._changed:
            self.config = config
            self._ring = Ring(self._fs, self._folder, max_bytes=config.max_bytes)

    def for_slot(self, name: str) -> Capture:
        """What a slot offers its requests to."""
        return Capture(self, name)

    def offer(
        self, slot: str, model: ServingModel, request: PredictRequest, outputs: Mapping[str, Tensor]
    ) -> None:
        """Take a sample, or not; never waits for the disk."""
        if self._rng.random() >= self.config.share:
            return
        size = _size(request.feeds) + _size(outputs)
        with self._changed:
            full = len(self._queue) >= QUEUED or self._bytes + size > QUEUED_BYTES
            if full or size > RECORD_BYTES // 2 or self._ending:
                self.dropped += 1
                return
            self._queue.append(_Sample(self._now_ms(), slot, model, request, outputs, size))
            self._bytes += size
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
                self._thread.start()
            if len(self._queue) in (1, QUEUED // 2):
                self._changed.notify()

    def close(self) -> None:
        """Write what waits, and end; waits at most :data:`END_SECONDS`."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(END_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._ending)
                self._changed.wait_for(self._enough, FLUSH_SECONDS)
                batch, self._bytes = list(self._queue), 0
                self._queue.clear()
                ring, names, ending = self._ring, self.config.redact, self._ending
            if batch:
                self._write(ring, batch, names)
            if ending:
                return

    def _enough(self) -> bool:
        return self._ending or len(self._queue) >= QUEUED // 2

    def _write(self, ring: Ring, batch: list[_Sample], names: list[str]) -> None:
        for sample in batch:
            self._compare(sample, names)
        try:
            encoded = [encode(_captured(sample, names)) for sample in batch]
            records = [record for record in encoded if len(record) <= RECORD_BYTES]
            ring.append(records)
        except (DeviceError, OSError, ValueError) as error:
            self._lost(len(batch), str(error))
        else:
            self.kept += len(records)
            self.dropped += len(batch) - len(records)
            self._trouble = ""

    def _compare(self, sample: _Sample, names: list[str]) -> None:
        """Say once of each model what is to be redacted and is not there; it may be misspelt."""
        key = (sample.slot, sample.model.digest, *names)
        if key in self._compared:
            return
        self._compared.add(key)
        description = sample.model.description
        specs = [*description.inputs, *description.outputs]
        there = {name for spec in specs for name in (spec.name, *(spec.features or ()))}
        for name in sorted(set(names) - there - {KEY}):
            logger.warning(
                "capture: of %r there is nothing in %s %s, so nothing of that name is left out",
                name, sample.slot, sample.model.version, extra={"event": "nothing_redacted"},
            )  # fmt: skip

    def _lost(self, count: int, words: str) -> None:
        self.dropped += count
        if words != self._trouble:
            self._trouble = words
            logger.warning("nothing is captured: %s", words, extra={"event": "capture_failed"})


class Capture:
    """The capture of one slot; :attr:`Slot.capture` is None when there is none."""

    def __init__(self, recorder: Recorder, slot: str) -> None:
        self._recorder, self._slot = recorder, slot

    def offer(
        self, model: ServingModel, request: PredictRequest, outputs: Mapping[str, Tensor]
    ) -> None:
        """Take a sample of an answered request, or not; never waits and never fails."""
        self._recorder.offer(self._slot, model, request, outputs)


def _captured(sample: _Sample, names: list[str]) -> Captured:
    description = sample.model.description
    tensors: dict[str, Tensor] = {}
    columns: dict[str, list[str]] = {}
    sides = (
        ("input", sample.request.feeds, description.inputs),
        ("output", sample.outputs, description.outputs),
    )
    for side, found, specs in sides:
        left, told = redacted(found, specs, names)
        tensors |= {f"{side}:{name}": tensor for name, tensor in left.items()}
        columns |= {f"{side}:{name}": kept for name, kept in told.items()}
    key = sample.request.key
    origin = Origin(
        at=sample.at,
        slot=sample.slot,
        version=sample.model.version,
        digest=sample.model.digest,
        request=sample.request.id,
        key=key.decode(errors="replace") if key is not None and KEY not in names else None,
        columns=columns,
    )
    return Captured(origin, tensors)


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes + _text_size(tensor) for tensor in tensors.values())


def _text_size(tensor: Tensor) -> int:
    return sum(len(str(text)) for text in tensor.reshape(-1)) if tensor.dtype.kind == "O" else 0

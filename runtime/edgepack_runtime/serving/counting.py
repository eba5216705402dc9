"""What is counted of one model while it is in a slot, and of the slot for as long as it exists.

Everything here is used from the event loop's thread only, and so needs no lock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from edgepack_contract.window import ERROR_KINDS, ErrorKind
from edgepack_runtime.inference.session import Tensor

SECONDS_BUCKETS = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip

MOST_REMEMBERED = 512
"""More than probation ever asks for."""

_HASHED_ELEMENTS = 1024


@dataclass(frozen=True, slots=True)
class SlotCounters:
    """What probation watches, since the model became active.

    Attributes:
        requests: Requests that reached the model.
        errors: Of those, how many the model failed.
        nonfinite: Of those, how many answers held NaN or an infinity.
        identical_inputs: Distinct inputs in a row that all got the same output, to the bit.
        over_budget: Of those, how many were answered later than the latency budget allows.
    """

    requests: int = 0
    errors: int = 0
    nonfinite: int = 0
    identical_inputs: int = 0
    over_budget: int = 0


class Durations(msgspec.Struct, frozen=True, gc=False):
    """Nanoseconds that the steps of one request took."""

    queue: int
    input: int
    infer: int
    output: int

    @property
    def seconds(self) -> float:
        """All of them together."""
        return (self.queue + self.input + self.infer + self.output) / 1e9


class Sameness:
    """Notices a model that answers everything alike: the sign of a broken one."""

    __slots__ = ("_first", "_inputs", "_output")

    def __init__(self) -> None:
        self._inputs: set[int] = set()
        self._output: bytes | None = None
        self._first: Mapping[str, Tensor] | None = None

    def see(self, feeds: Mapping[str, Tensor], output: bytes) -> None:
        """Take note of one answer; an empty output (decisions only) says nothing."""
        if not output:
            return
        if output != self._output:
            # the usual case; an input is looked at when its output comes a second time
            self._inputs.clear()
            self._first, self._output = feeds, output
            return
        if self._first is not None:
            self._inputs.add(_fingerprint(self._first))
            self._first = None
        if len(self._inputs) < MOST_REMEMBERED:
            self._inputs.add(_fingerprint(feeds))

    @property
    def distinct_inputs(self) -> int:
        """Distinct inputs since the output last changed."""
        return len(self._inputs) or int(self._first is not None)


class ModelCounts:
    """The counters of one model in a slot."""

    __slots__ = (
        "_infer", "_input", "_output", "_queue", "_sameness", "errors", "executions", "failed_ns",
        "nonfinite", "over_budget", "requests", "rows",
    )  # fmt: skip

    def __init__(self) -> None:
        self._sameness = Sameness()
        self.requests = self.errors = self.nonfinite = self.over_budget = 0
        self.rows = self.executions = self.failed_ns = 0
        self._queue = self._input = self._infer = self._output = 0

    @property
    def spent(self) -> Durations:
        """What all answers took together."""
        return Durations(self._queue, self._input, self._infer, self._output)

    def answered(
        self,
        feeds: Mapping[str, Tensor],
        output: bytes,
        rows: int,
        durations: Durations,
        *,
        over_budget: bool,
        finite: bool,
    ) -> None:
        """Count one answer of the model."""
        self.requests += 1
        self.executions += 1
        self.rows += rows
        if not finite:
            self.nonfinite += 1
        if over_budget:
            self.over_budget += 1
        self._sameness.see(feeds, output)
        self._queue += durations.queue
        self._input += durations.input
        self._infer += durations.infer
        self._output += durations.output

    def failed(self, kind: ErrorKind, elapsed_ns: int) -> None:
        """Count one failure of the model itself."""
        self.requests += 1
        self.failed_ns += elapsed_ns
        if kind == "nonfinite_output":
            self.nonfinite += 1
        else:
            self.errors += 1

    def snapshot(self) -> SlotCounters:
        """The counters as they are now."""
        return SlotCounters(
            requests=self.requests,
            errors=self.errors,
            nonfinite=self.nonfinite,
            identical_inputs=self._sameness.distinct_inputs,
            over_budget=self.over_budget,
        )


class SlotTotals:
    """What a slot did since the daemon started, whatever model it held: only grows."""

    def __init__(self) -> None:
        self.errors: dict[ErrorKind, int] = dict.fromkeys(ERROR_KINDS, 0)
        self.answered = self.rows = self.unavailable = self.swaps = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(SECONDS_BUCKETS) + 1)

    def count(self, rows: int, seconds: float) -> None:
        """Count one answer."""
        self.answered += 1
        self.rows += rows
        self.seconds += seconds
        self.buckets[bisect_left(SECONDS_BUCKETS, seconds)] += 1


def _fingerprint(feeds: Mapping[str, Tensor]) -> int:
    # of a large input a regular sample: two that differ elsewhere only pass for one, and the model
    # is then suspected later, never wrongly
    parts: list[bytes | tuple[object, ...]] = []
    for array in feeds.values():
        if array.size <= _HASHED_ELEMENTS and not array.dtype.hasobject:
            parts.append(array.tobytes())
            continue
        flat = array.ravel()
        sample = flat[:: max(1, flat.size // _HASHED_ELEMENTS)]
        parts.append(tuple(sample.tolist()) if array.dtype.hasobject else sample.tobytes())
    return hash(tuple(parts))

"""Counts of one slot: a hot path that copies and counts little, and windows that are closed.

An aggregator belongs to one bundle in one slot and is used from the serving loop only; that is what
makes it safe without a lock. Other threads come to it by ``loop.call_soon_threadsafe``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from edgepack_contract.description import Description, TensorSpec
from edgepack_contract.latency import LatencyHistogram
from edgepack_contract.reference import FeatureReference, Reference, reference_id
from edgepack_contract.statistics import (
    UNKNOWN_CLASS,
    InputCounter,
    OutputCounter,
    empty_output_reference,
)
from edgepack_contract.window import (
    ERROR_KINDS,
    FLIP_CLASSES,
    DriftVerdict,
    ErrorKind,
    Pairs,
    WindowBody,
    display_quantiles,
)
from edgepack_runtime.telemetry.buffer import RowBuffer
from edgepack_runtime.telemetry.horizons import DriftEvidence, DriftReport, DriftWatch

Array = NDArray[Any]

Count = Callable[[Mapping[str, Array]], None]

BLOCK_VALUES = 8192
MOST_BLOCK_ROWS = 255
LEAST_BLOCK_ROWS = 8
"""A block of rows is sized so that counting it takes a fraction of a millisecond."""

MOST_SECONDS = 64
"""Latencies that are kept until they are counted."""

WIDE_EVERY = 8
"""Of a model with a wide input (an image), the inputs of every eighth request are described."""


@dataclass(slots=True)
class Totals:
    """Sums of the closed windows; ``n`` requests were answered."""

    n: int = 0
    rows: int = 0
    over_budget: int = 0
    errors: dict[ErrorKind, int] = field(default_factory=lambda: dict.fromkeys(ERROR_KINDS, 0))


class SlotAggregator:
    """Aggregates what one bundle does in one slot into windows.

    Args:
        slot: The slot's name.
        bundle: The index digest of the bundle that answers.
        description: Its description: outputs and the latency budget.
        reference: Its reference, None when it carries none (then only outputs are counted).
        now_ms: Wall clock, milliseconds since 1970 UTC; the first window begins here.
    """

    def __init__(
        self,
        slot: str,
        bundle: str,
        description: Description,
        reference: Reference | None,
        now_ms: int,
    ) -> None:
        self._slot = slot
        self._bundle = bundle
        self._reference = None if reference is None else reference_id(reference)
        budget = description.budgets.latency_ms
        self._budget = float("inf") if budget is None else budget / 1e3
        self._rows_of = _first_data(description.inputs)
        features = reference.inputs if reference is not None else []
        self._inputs = InputCounter(features)
        self._outputs = OutputCounter(
            description.outputs,
            empty_output_reference(description.outputs) if reference is None else reference.outputs,
        )
        self._input_rows = _input_buffer(features, self._count_inputs)
        self._output_rows = _output_buffer(self._outputs, self._count_outputs)
        self._watch = DriftWatch(features, self._inputs.empty(), now_ms) if features else None
        self._verdict: DriftVerdict | None = "no-data" if features else None
        self._against: str | None = None
        self.totals = Totals()
        self.latency_totals = LatencyHistogram()
        self._open(now_ms)

    def record(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], seconds: float
    ) -> None:
        """Count one answered request.

        Args:
            inputs: What the model was given, shape (rows, ...) each.
            outputs: What it answered.
            seconds: How long the request took.
        """
        self._seconds.append(seconds)
        if len(self._seconds) >= MOST_SECONDS:
            self._count_seconds()
        first = inputs.get(self._rows_of)
        shape = () if first is None else first.shape
        rows = shape[0] if shape else 1
        self._rows += rows
        # the budget is for one row
        if seconds > self._budget and seconds > self._budget * rows:
            self._over_budget += 1
        self._input_rows.put(inputs, rows)
        self._output_rows.put(outputs, rows)

    def record_error(self, kind: ErrorKind) -> None:
        """Count one request that was refused or failed."""
        self._errors[kind] = self._errors.get(kind, 0) + 1

    def compare_with(self, digest: str | None) -> None:
        """Name the bundle whose answers :meth:`record_pair` compares with, None for no more.

        Pairs with another bundle that are still in the open window are dropped with it: a window
        compares with one bundle.
        """
        if digest != self._against:
            self._against = digest
            self._reset_pairs()

    def record_pair(self, new: int, old: int) -> None:
        """Count the classes that this bundle and the compared one gave for the same row.

        Args:
            new: Index of this bundle's class, as ``classes`` of the output reader gives it.
            old: Index of the compared bundle's.
        """
        if self._against is None:
            return
        self._pairs += 1
        if new == old != UNKNOWN_CLASS:
            self._agree += 1
        elif 0 <= new < FLIP_CLASSES and 0 <= old < FLIP_CLASSES:
            flip = f"{old}>{new}"
            self._flips[flip] = self._flips.get(flip, 0) + 1

    def classes(self, outputs: Mapping[str, Array]) -> list[int] | None:
        """The class of each row of an answer as an index, None when the model does not classify.

        Raises:
            KeyError: The output that tells the class is missing.
        """
        reader = self._outputs.reader
        return reader.top1(outputs).tolist() if reader.classifies else None

    def roll(self, now_ms: int, *, probation: bool = False, throttled: bool = False) -> WindowBody:
        """Close the open window at ``now_ms`` and open the next.

        Args:
            now_ms: Wall clock; a clock that was set back closes the window where it began.
            probation: The bundle is in probation.
            throttled: The processor was slowed down for its temperature.
        """
        self._count_seconds()
        self._input_rows.flush()
        self._output_rows.flush()
        end_ms = max(now_ms, self._start_ms)
        if self._watch is not None:
            self._watch.add(self._input_tally, end_ms)
        body = self._body(end_ms, probation=probation, throttled=throttled)
        self._settle_totals(body)
        self._open(now_ms)
        return body

    def drift_evidence(self) -> DriftEvidence | None:
        """What to judge for drift, None when there is nothing new. Judge it in another thread."""
        return None if self._watch is None else self._watch.evidence()

    def settle(self, report: DriftReport) -> None:
        """Let the following windows carry the verdict of ``report``."""
        self._verdict = report.verdict

    def _open(self, now_ms: int) -> None:
        self._start_ms = now_ms
        self._rows = self._sampled = self._over_budget = 0
        self._errors: dict[ErrorKind, int] = {}
        self._latency = LatencyHistogram()
        self._seconds: list[float] = []
        self._input_tally = self._inputs.empty()
        self._output_tally = self._outputs.empty()
        self._reset_pairs()

    def _reset_pairs(self) -> None:
        self._pairs = self._agree = 0
        self._flips: dict[str, int] = {}

    def _count_seconds(self) -> None:
        self._latency.add_all(self._seconds)
        self._seconds.clear()

    def _count_inputs(self, block: Mapping[str, Array]) -> None:
        self._input_tally = self._input_tally.add(self._inputs.count(block))
        self._sampled += len(next(iter(block.values())))

    def _count_outputs(self, block: Mapping[str, Array]) -> None:
        self._output_tally = self._output_tally.add(self._outputs.count(block))

    def _body(self, end_ms: int, *, probation: bool, throttled: bool) -> WindowBody:
        shown = display_quantiles(self._latency)
        return WindowBody(
            slot=self._slot,
            bundle=self._bundle,
            reference=self._reference,
            start_ms=self._start_ms,
            end_ms=end_ms,
            n=self._latency.n,
            rows=self._rows,
            sampled=self._sampled,
            errors=sum(self._errors.values()),
            over_budget=self._over_budget,
            p50_ms=shown["p50_ms"],
            p95_ms=shown["p95_ms"],
            p99_ms=shown["p99_ms"],
            drift=self._verdict,
            probation=probation,
            throttled=throttled,
            errors_by_kind=dict(sorted(self._errors.items())),
            latency=self._latency.columns(),
            inputs=self._inputs.columns(self._input_tally),
            outputs=self._outputs.columns(self._output_tally),
            pairs=self._pair_columns(),
        )

    def _pair_columns(self) -> Pairs | None:
        if self._against is None:
            return None
        return Pairs(
            against=self._against,
            n=self._pairs,
            agree=self._agree,
            flips=dict(sorted(self._flips.items())),
            flips_other=self._pairs - self._agree - sum(self._flips.values()),
        )

    def _settle_totals(self, body: WindowBody) -> None:
        self.totals.n += body.n
        self.totals.rows += body.rows
        self.totals.over_budget += body.over_budget
        for kind, count in body.errors_by_kind.items():
            self.totals.errors[kind] += count
        self.latency_totals.merge(body.latency)


def _input_buffer(features: Sequence[FeatureReference], count: Count) -> RowBuffer:
    widths: dict[str, int | None] = {}
    for item in features:
        if item.source == "descriptor":
            widths[item.tensor] = None
        else:
            widths[item.tensor] = (widths.get(item.tensor) or 0) + 1
    if None in widths.values():
        return RowBuffer(widths, capacity=1, every=WIDE_EVERY, count=count)
    return RowBuffer(widths, capacity=_block_rows(len(features)), count=count)


def _output_buffer(counter: OutputCounter, count: Count) -> RowBuffer:
    widths, rows = dict.fromkeys(counter.tensors), _block_rows(counter.width)
    # answers are made anew for every request, so they can be kept as they are; half a block first,
    # so that no request waits for the counting of inputs and of outputs
    return RowBuffer(widths, capacity=rows, first=rows // 2, count=count, copy=False)


def _block_rows(columns: int) -> int:
    return max(LEAST_BLOCK_ROWS, min(MOST_BLOCK_ROWS, BLOCK_VALUES // max(1, columns)))


def _first_data(inputs: Sequence[TensorSpec]) -> str:
    return next((spec.name for spec in inputs if spec.role == "data"), inputs[0].name)

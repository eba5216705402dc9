"""A model that is ready to serve: loaded, checked against its golden rows, warm, and timed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from edgepack_contract.description import GOLDEN_PATH, REFERENCE_PATH, Description, TensorSpec
from edgepack_contract.limits import LIMITS
from edgepack_contract.reference import Reference, parse_reference
from edgepack_contract.small_files import read_small
from edgepack_contract.statistics import ClassReader
from edgepack_runtime.inference.coerce import floats_finite
from edgepack_runtime.inference.errors import ModelLoadError, ModelRunError, ShapeError
from edgepack_runtime.inference.float_rows import FloatRows
from edgepack_runtime.inference.golden import (
    GoldenResult,
    GoldenRows,
    compare_golden,
    load_golden,
    run_rows,
    split_rows,
)
from edgepack_runtime.inference.session import Session, Tensor
from edgepack_runtime.inference.variant import open_variant, read_description
from edgepack_runtime.telemetry.aggregate import SlotAggregator

BOUND_SECONDS = 0.001
"""A run that takes less need not be interrupted."""

_LOOPS = frozenset({"ai.onnx:Loop", "ai.onnx:Scan"})
_TIMED_RUNS = 32
_TIMED_SECONDS = 0.2


class ServingModel:
    """One variant of one bundle, loaded. Make it with :meth:`load`.

    Attributes:
        digest: The index digest of the bundle.
        description: What the variant says of itself.
        reference: The drift reference, None when the bundle has none.
        reader: Reads classes out of the outputs.
        float_rows: Reads its input, where that is the usual one.
        plain_classes: Of a classifier that gives probabilities, and besides at most a label: the
            name of that output, and the labels.
        takes_texts: Whether an input holds texts.
        version: The bundle's version.
        joinable: Whether rows of several requests may be answered by one run; whoever loads the
            model settles it.
    """

    def __init__(
        self,
        digest: str,
        description: Description,
        session: Session,
        reference: Reference | None,
        golden: GoldenRows,
    ) -> None:
        self.digest = digest
        self.description = description
        self.reference = reference
        self.reader = ClassReader(description.outputs)
        self.float_rows = FloatRows.of(description)
        self.plain_classes = plain_classes(description.outputs, self.reader.labels)
        self.takes_texts = any(spec.dtype == "str" for spec in description.inputs)
        self.version = description.version
        self._session = session
        self._golden = golden
        self.joinable = False
        # how long a loop takes is for its input to say, which may be any stranger's
        loops = not _LOOPS.isdisjoint(description.operators)
        self._seconds_per_element = math.inf if loops else self._time_runs()
        if self.estimated_seconds(self._first_feeds()) < BOUND_SECONDS:
            self._session.bind(self._first_feeds())
        self._float_outputs = [
            spec.name for spec in description.outputs if spec.dtype.startswith("float")
        ]
        budget = description.budgets.latency_ms
        self._budget_seconds = math.inf if budget is None else budget / 1e3

    @classmethod
    def load(cls, folder: Path, digest: str, *, default_threads: int = 1) -> Self:
        """Load a verified variant. Slow: to be called outside of the event loop.

        Args:
            folder: The files of the variant.
            digest: The index digest of the bundle it belongs to.
            default_threads: Threads where the description leaves them to the device.

        Raises:
            ModelLoadError: It does not load, or its golden rows come out differently here (code
                ``golden-mismatch``).
            GoldenError: The golden rows do not fit.
            MalformedBundleError: Description or reference are damaged.
            OSError: A file cannot be read.
        """
        description = read_description(folder)
        reference = _read_reference(folder) if description.has_reference else None
        session = open_variant(folder, description, default_threads=default_threads)
        model = cls(digest, description, session, reference, load_golden(folder / GOLDEN_PATH))
        result = model.check_golden()
        if not result.ok:
            raise ModelLoadError(
                f"{description.name} {description.version}: golden rows differ: {result.words}",
                code="golden-mismatch",
            )
        model.rehearse()
        return model

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute every output; thread-safe.

        Raises:
            ShapeError: The model takes nothing empty, and an input is.
            ModelRunError: The model failed.
        """
        try:
            return self._session.run(feeds)
        except ModelRunError as error:
            empty = next((name for name, array in feeds.items() if not array.size), None)
            if empty is None:
                raise
            raise ShapeError(f"input {empty!r} is empty, which this model cannot take") from error

    def canary(self) -> None:
        """Answer the first golden row, to nobody; thread-safe.

        Raises:
            ModelRunError: The model failed, or was released meanwhile.
        """
        self.run(self._first_feeds())

    def interrupt(self) -> None:
        """End the runs that are under way with an error, code ``interrupted``; thread-safe."""
        self._session.interrupt()

    def check_joined(self) -> GoldenResult:
        """Run all golden rows at once, for a model that takes many rows; thread-safe.

        Raises:
            GoldenError: They do not fit the model.
            ModelRunError: The model failed.
        """
        golden = self._golden
        answers = self._session.run(golden.inputs)
        return compare_golden(answers, golden.outputs, self.description.golden)

    def check_golden(self) -> GoldenResult:
        """Run the golden rows again, for a model that nobody asks anything; thread-safe.

        Raises:
            GoldenError: They do not fit the model.
            ModelRunError: The model failed, or was released meanwhile.
        """
        golden = self.description.golden
        answers = run_rows(self._session, self._golden.inputs, golden.rows)
        return compare_golden(answers, self._golden.outputs, golden)

    def rehearse(self) -> None:
        """Take the way of a request up to the statistics once, so that no request is the first.

        Raises:
            ModelLoadError: The answers cannot be counted over the reference.
        """
        feeds = self._first_feeds()
        aggregator = SlotAggregator(
            "rehearsal", self.digest, self.description, self.reference, now_ms=0
        )
        try:
            aggregator.record(feeds, self.run(feeds), 0.0)
            aggregator.roll(0)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ModelLoadError(
                f"{self.description.name} {self.version}: its answers do not fit its reference: "
                f"{type(error).__name__}: {error}",
                code="bad-reference",
            ) from error

    def estimated_seconds(self, feeds: Mapping[str, Tensor]) -> float:
        """What a run is likely to take, judged by the number of elements; errs on the long side."""
        elements = 0
        for array in feeds.values():
            elements += array.size
        return elements * self._seconds_per_element

    def is_finite(self, outputs: Mapping[str, Tensor]) -> bool:
        """Whether no output holds NaN or an infinity."""
        for name in self._float_outputs:  # noqa: SIM110 - a generator costs more than the rest
            if not floats_finite(outputs[name]):
                return False
        return True

    def float_bytes(self, outputs: Mapping[str, Tensor]) -> bytes:
        """The bits of every float output; empty for a model that gives only decisions."""
        names = self._float_outputs
        if len(names) == 1:
            return outputs[names[0]].tobytes()
        return b"".join(outputs[name].tobytes() for name in names)

    def over_budget(self, seconds: float, rows: int) -> bool:
        """Whether answering ``rows`` rows took longer than the bundle's budget allows."""
        return seconds > self._budget_seconds * max(rows, 1)

    def release(self) -> None:
        """Let go of the session; no run may be under way."""
        self._session.release()

    def _first_feeds(self) -> dict[str, Tensor]:
        rows = self.description.golden.rows
        return next(split_rows(self._session, self._golden.inputs, rows))

    def _time_runs(self) -> float:
        feeds = self._first_feeds()
        taken: list[float] = []
        while len(taken) < _TIMED_RUNS and sum(taken) < _TIMED_SECONDS:
            begun = time.perf_counter()
            self._session.run(feeds)
            taken.append(time.perf_counter() - begun)
        elements = sum(array.size for array in feeds.values())
        return sorted(taken)[len(taken) // 2] / max(elements, 1)


def plain_classes(
    outputs: Sequence[TensorSpec], labels: list[str] | None
) -> tuple[str, list[str]] | None:
    """See :class:`ServingModel`."""
    others = [spec for spec in outputs if spec.kind != "label"]
    if len(others) != 1 or others[0].kind != "probabilities" or labels is None or len(labels) < 2:
        return None
    return others[0].name, labels


def _read_reference(folder: Path) -> Reference:
    return parse_reference(read_small(folder / REFERENCE_PATH, LIMITS.reference_bytes))

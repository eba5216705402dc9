"""Ranges of activations, from counts that add: the memory does not depend on the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgepack_contract.limits import MIB
from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.graphs.running import chunks, is_batched, open_folder, save_model, take_rows
from edgepack_packager.quantize.library import copied
from edgepack_runtime.inference.session import Session

CalibrationName = Literal[
    "min-max", "percentile-99.9", "percentile-99.99", "percentile-99.999", "entropy"
]
"""How ranges are found: all values, the middle share of them, or those that lose the least
information."""

Range = tuple[np.float32, np.float32]
Ranges = dict[str, Range]
Counts = npt.NDArray[np.int64]

HALF_BINS = 2048
"""Bins on each side of zero; TensorRT's calibrator uses as many."""

RANGE_BITS = 12
"""Ranges are rounded outwards to so many bits, which hides last-bit differences of processors."""

HELD_BYTES = 8 * MIB
MOST_ROWS = 16
"""Activations held at a time: so many rows, fewer where these would be larger."""

_EXACT_FROM = -120
_LEVELS = 128
_STEP = 16
_UNSEEN = 1e-4


class Histogram:
    """How often a tensor had which values.

    Bins have a width of a power of two and meet at zero, so that a wider histogram merges whole
    bins of a narrower one: the counts are the same however the values came in pieces.

    Attributes:
        counts: ``2 * HALF_BINS`` of them; the bin at ``HALF_BINS`` begins at zero.
        exponent: Of the width of a bin; None while there was nothing but zeros.
        low: The least value, at most zero.
        high: The greatest value, at least zero.
    """

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(2 * HALF_BINS, np.int64)
        self.exponent: int | None = None
        self.low = 0.0
        self.high = 0.0

    def add(self, values: Array) -> None:
        """Count ``values``; NaN and infinities say nothing of a range and are left out."""
        finite = _finite(values)
        if not finite.size:
            return
        self.low = min(self.low, float(finite.min()))
        self.high = max(self.high, float(finite.max()))
        self._widen(_exponent(max(-self.low, self.high)))
        self.counts += np.bincount(self._bins(finite), minlength=2 * HALF_BINS)

    def _bins(self, values: Array) -> npt.NDArray[np.int32]:
        exponent = self.exponent or 0
        # scaling by a power of two is exact in float32 unless it may underflow
        exact = values if _EXACT_FROM <= exponent <= 0 else values.astype(np.float64)
        places = np.floor(exact * exact.dtype.type(np.ldexp(1.0, -exponent)))
        return places.astype(np.int32).reshape(-1) + np.int32(HALF_BINS)

    @property
    def width(self) -> float:
        """The width of a bin."""
        return float(np.ldexp(1.0, self.exponent or 0))

    def _widen(self, exponent: int | None) -> None:
        if exponent is None or exponent == self.exponent:
            return
        if self.exponent is not None:
            shift = min(exponent - self.exponent, 63)
            merged = (np.arange(-HALF_BINS, HALF_BINS) >> shift) + HALF_BINS
            # sums of integers below 2**53 are exact in the floats of bincount's weights
            self.counts = np.bincount(merged, weights=self.counts, minlength=2 * HALF_BINS).astype(
                np.int64
            )
        self.exponent = exponent


def _finite(values: Array) -> Array:
    """Only the values that say something of a range; a view where all do."""
    if not values.size or np.isfinite([values.min(), values.max()]).all():
        return values
    return values[np.isfinite(values)]


def _exponent(greatest: float) -> int | None:
    """The width, as a power of two, at which ``greatest`` falls into the last bin or before."""
    if greatest == 0.0:
        return None
    _, power = np.frexp(greatest)
    # one more, since a value at the edge itself would fall beside the last bin
    return int(power) - int(np.log2(HALF_BINS)) + int(greatest == np.ldexp(1.0, int(power)))


def measure_min_max(model: onnx.ModelProto, tensors: Sequence[str], rows: Feeds) -> Ranges:
    """Least and greatest finite value of some float tensors, zero always included.

    Args:
        model: A graph with those tensors.
        tensors: Names of its inputs, outputs or values between.
        rows: Calibration rows, cast to the types that the model takes.

    Raises:
        ModelRunError: The graph fails on the rows.
    """
    ranges: dict[str, tuple[float, float]] = dict.fromkeys(tensors, (0.0, 0.0))
    for name, values in _observed(model, tensors, rows):
        finite = _finite(values)
        low, high = ranges[name]
        ranges[name] = (
            min(low, float(finite.min(initial=0.0))),
            max(high, float(finite.max(initial=0.0))),
        )
    return {name: rounded(low, high) for name, (low, high) in ranges.items()}


def measure_histograms(
    model: onnx.ModelProto, tensors: Sequence[str], rows: Feeds
) -> dict[str, Histogram]:
    """The histogram of each tensor; arguments and errors as :func:`measure_min_max`."""
    histograms = {name: Histogram() for name in tensors}
    for name, values in _observed(model, tensors, rows):
        histograms[name].add(values)
    return histograms


def find_range(histogram: Histogram, method: CalibrationName) -> Range:
    """The range that ``method`` takes from a histogram, never wider than the values were."""
    if method == "entropy":
        low, high = _least_divergence(histogram)
    elif method == "min-max":
        low, high = histogram.low, histogram.high
    else:
        low, high = _percentile(histogram, float(method.removeprefix("percentile-")))
    return rounded(max(low, histogram.low), min(high, histogram.high))


def rounded(low: float, high: float) -> Range:
    """The range, both ends moved outwards to the next number of few bits."""
    return np.float32(-_outwards(-low)), np.float32(_outwards(high))


def _outwards(value: float) -> float:
    """The next larger number of ``RANGE_BITS`` significant bits."""
    mantissa, exponent = np.frexp(value)
    return float(np.ldexp(np.ceil(np.ldexp(mantissa, RANGE_BITS)), exponent - RANGE_BITS))


def _percentile(histogram: Histogram, share: float) -> tuple[float, float]:
    """The range that holds the middle ``share`` percent, as onnxruntime's calibrator cuts it."""
    total = int(histogram.counts.sum())
    cut = (100.0 - share) / 200.0
    summed = np.cumsum(histogram.counts)
    left = int(np.searchsorted(summed, cut * total, side="right"))
    right = int(np.searchsorted(summed, (1.0 - cut) * total))
    width = histogram.width
    return min((left - HALF_BINS) * width, 0.0), max((right + 1 - HALF_BINS) * width, 0.0)


def _least_divergence(histogram: Histogram) -> tuple[float, float]:
    """The symmetric range whose 8-bit form keeps the most of the distribution.

    Minimises the Kullback-Leibler divergence between the clipped distribution of magnitudes and
    its form in 128 levels: S. Migacz, 8-bit inference with TensorRT, GTC 2017, s7310, which
    onnxruntime's calibrator follows too.
    """
    negative, positive = histogram.counts[:HALF_BINS], histogram.counts[HALF_BINS:]
    magnitudes = (positive + negative[::-1]).astype(np.float64)
    # exact zeros are exact in every scale; as a spike they would outweigh everything
    magnitudes[0] = magnitudes[1]
    ends = range(_LEVELS, HALF_BINS + 1, _STEP)
    best = min(ends, key=lambda end: (_divergence(magnitudes, end), -end))
    return -best * histogram.width, best * histogram.width


def _divergence(counts: npt.NDArray[np.float64], end: int) -> float:
    clipped = counts[:end].copy()
    clipped[-1] += counts[end:].sum()
    filled = clipped > 0
    if not filled.any():
        return float("inf")
    groups = np.arange(end) * _LEVELS // end
    sums = np.bincount(groups, weights=counts[:end], minlength=_LEVELS)
    sizes = np.bincount(groups, weights=filled, minlength=_LEVELS)
    coarse = (sums / np.maximum(sizes, 1))[groups]
    # what was clipped may fall where nothing was: not impossible, only unlikely
    p, q = clipped[filled], np.maximum(coarse[filled], _UNSEEN)
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _observed(
    model: onnx.ModelProto, tensors: Sequence[str], rows: Feeds
) -> Iterator[tuple[str, Array]]:
    """The values of ``tensors``, a few rows at a time."""
    with TemporaryDirectory(prefix="edgepack-") as folder:
        save_model(exposed(model, tensors), Path(folder))
        session = open_folder(Path(folder), optimisation="off")
        try:
            for part in chunks(rows, _rows_at_once(session, rows)):
                seen = {**part, **session.run(part)}
                yield from ((name, seen[name]) for name in tensors)
        finally:
            session.release()


def exposed(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The graph with float ``tensors`` among its outputs."""
    probed = copied(model)
    given = {item.name for item in (*probed.graph.input, *probed.graph.output)}
    probed.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in tensors
        if name not in given
    )
    return probed


def _rows_at_once(session: Session, rows: Feeds) -> int:
    if not is_batched(session):
        return 1
    first = session.run(take_rows(rows, slice(0, 1)))
    held = sum(values.nbytes for values in first.values())
    return max(1, min(MOST_ROWS, HELD_BYTES // max(held, 1)))

"""Named dimensions besides the rows: at which lengths a graph really works (pitfall B20).

Exporters bake the lengths of their example into graphs that claim to take others. So a graph is
run at other lengths than the rows have, and a dimension that only works at theirs is fixed there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from edgepack_contract.description import DimensionRange
from edgepack_packager.data.rows import Feeds
from edgepack_packager.graphs.clean import BATCH
from edgepack_runtime.inference.session import TensorInfo

Works = Callable[[Feeds], bool]
"""Whether a graph gives the same answers to rows one by one and together."""


def try_lengths(
    inputs: Sequence[TensorInfo], sample: Feeds, works: Works
) -> tuple[dict[str, DimensionRange], dict[str, int]]:
    """Try every named dimension at one, at half and at twice the length that the sample has.

    Args:
        inputs: Of the graph.
        sample: A few rows.
        works: Tells whether the graph copes with rows.

    Returns:
        The lengths between which each dimension works, and the only length of those that work at
        no other.
    """
    ranges: dict[str, DimensionRange] = {}
    only: dict[str, int] = {}
    for name, seen in _lengths(inputs, sample).items():
        tried = [
            length
            for length in sorted({1, seen // 2, 2 * seen} - {0, seen})
            if works(_at_length(inputs, sample, name, length))
        ]
        if tried:
            ranges[name] = DimensionRange(minimum=min(*tried, seen), maximum=max(*tried, seen))
        else:
            only[name] = seen
    return ranges, only


def widened(
    ranges: Mapping[str, DimensionRange], inputs: Sequence[TensorInfo], parts: Sequence[Feeds]
) -> dict[str, DimensionRange]:
    """The ranges with the lengths of all rows, which the graph has run at too."""
    found = dict(ranges)
    for part in parts:
        for name, seen in _lengths(inputs, part).items():
            if name in found:
                low, high = found[name].minimum, found[name].maximum
                found[name] = DimensionRange(minimum=min(low, seen), maximum=max(high, seen))
    return found


def fix_lengths(model: onnx.ModelProto, only: Mapping[str, int]) -> onnx.ModelProto:
    """The graph with dimensions fixed at the only lengths that they work at."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for item in (*fixed.graph.input, *fixed.graph.output):
        for size in item.type.tensor_type.shape.dim:
            if size.dim_param in only:
                size.dim_value = only[size.dim_param]
    del fixed.graph.value_info[:]
    return fixed


def _lengths(inputs: Sequence[TensorInfo], feeds: Feeds) -> dict[str, int]:
    """The length that each named dimension has in these rows."""
    return {
        size: feeds[info.name].shape[place]
        for info in inputs
        for place, size in enumerate(info.shape)
        if place and isinstance(size, str) and size != BATCH
    }


def _at_length(inputs: Sequence[TensorInfo], sample: Feeds, name: str, length: int) -> Feeds:
    """The sample with one dimension cut off, or going on from its beginning."""
    changed = dict(sample)
    for info in inputs:
        for place, size in enumerate(info.shape):
            if place and size == name:
                array = changed[info.name]
                taken = np.arange(length) % array.shape[place]
                changed[info.name] = np.take(array, taken, axis=place)
    return changed

"""Make a reference out of rows: choose edges, count with the device's own counters, calibrate."""

from __future__ import annotations

from collections import Counter as Frequencies
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from edgepack_contract.description import Description, TensorSpec
from edgepack_contract.drift import independent
from edgepack_contract.reference import (
    DESCRIPTORS,
    MAX_FEATURES,
    Calibration,
    FeatureReference,
    OutputReference,
    Reference,
)
from edgepack_contract.statistics.inputs import (
    FARTHEST,
    InputCounter,
    as_text,
    descriptors,
    flatten,
    numeric,
)
from edgepack_contract.statistics.longrun import long_run_calibration
from edgepack_contract.statistics.marks import Array, Floats, Integers
from edgepack_contract.statistics.outputs import OutputCounter, empty_output_reference

BINS = 16
MOST_VALUES = 32
"""A feature of at most this many whole numbers (or the most frequent texts) is a category."""


def build_reference(
    description: Description,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    *,
    ordered: bool = False,
    inherited: Reference | None = None,
) -> Reference:
    """Describe reference rows and the model's answers to them.

    Args:
        description: Tells the tensors' kinds, features and labels. State inputs are left out.
        inputs: Rows of every data input, shape (rows, ...), in the dtype that the model takes.
        outputs: The model's answers to these rows.
        ordered: The rows follow each other in time; independent otherwise.
        inherited: The reference of an older bundle. A feature of the same name and place keeps its
            edges, so that counts of old and new can be compared.

    Raises:
        KeyError: A tensor is missing.
        ValueError: There are no rows.
    """
    data = [spec for spec in description.inputs if spec.role == "data"]
    rows = len(inputs[data[0].name]) if data else 0
    if not rows:
        raise ValueError("a reference needs rows of at least one data input")
    known = {_key(item): item for item in (inherited.inputs if inherited else ())}
    return Reference(
        rows=rows,
        ordered=ordered,
        inputs=_features(data, inputs, ordered=ordered, known=known),
        outputs=_outputs(description.outputs, outputs, ordered=ordered, inherited=inherited),
    )


def build_feature_reference(
    column: Array,
    *,
    tensor: str,
    feature: str,
    index: int = 0,
    descriptor: bool = False,
    ordered: bool = False,
    inherited: FeatureReference | None = None,
) -> FeatureReference:
    """Describe one column of reference rows.

    Args:
        column: Shape (rows,), in the tensor's dtype: the edges are exact in it.
        tensor: The tensor's name.
        feature: The column's name.
        index: Its place in the flattened tensor, or in ``DESCRIPTORS``.
        descriptor: It is a scalar that stands for a wide row.
        ordered: The rows follow each other in time.
        inherited: Take edges, origin and unit from this one.
    """
    layout = inherited or _layout(column)
    counts, null = _count(layout, tensor, column)
    calibration = _calibration(layout, column, [*counts, null], ordered=ordered)
    return msgspec.structs.replace(
        layout,
        tensor=tensor,
        feature=feature,
        index=index,
        source="descriptor" if descriptor else "column",
        counts=counts,
        null=null,
        calibration=calibration,
    )


def quantile_edges(values: Array, bins: int = BINS) -> list[float]:
    """Edges of right-open bins that hold about equally many of the finite ``values``.

    Lower edges are values of the sample (so that ties stay together and the dtype represents
    them), equal ones are merged; the last edge is the next number of the dtype over the largest.
    Without values there is the single edge 0.

    Args:
        values: Single or double precision.
        bins: The most bins to make.
    """
    if not len(values):
        return [0.0]
    shares = np.arange(bins) / bins
    lower = np.unique(np.quantile(values, shares, method="inverted_cdf"))
    edges = [min(max(value, -_LARGEST), _LARGEST) for value in map(float, lower)]
    with np.errstate(over="ignore"):
        upper = min(float(np.nextafter(values.max(), values.dtype.type(np.inf))), _LARGEST)
    return [*edges, upper] if upper > edges[-1] else edges


_LARGEST = 1.7e308


def _features(
    specs: Sequence[TensorSpec],
    tensors: Mapping[str, Array],
    *,
    ordered: bool,
    known: Mapping[tuple[str, str, str, int], FeatureReference],
) -> list[FeatureReference]:
    """Features of each tensor in turn while there is room; wide tensors by their descriptors."""
    features: list[FeatureReference] = []
    for spec in specs:
        table, names, wide = _table(spec, tensors[spec.name], MAX_FEATURES - len(features))
        features += [
            build_feature_reference(
                table[:, index],
                tensor=spec.name,
                feature=name,
                index=index,
                descriptor=wide,
                ordered=ordered,
                inherited=known.get((spec.name, name, "descriptor" if wide else "column", index)),
            )
            for index, name in enumerate(names)
        ]
    return features


def _table(spec: TensorSpec, rows: Array, room: int) -> tuple[Array, list[str], bool]:
    flat = flatten(rows)
    columns = flat.shape[1]
    if columns <= room:
        return flat, _names(spec, columns), False
    if room < len(DESCRIPTORS) or _textual(flat):
        return flat[:, :0], [], False
    return descriptors(flat), [f"{spec.name}.{name}" for name in DESCRIPTORS], True


def _names(spec: TensorSpec, columns: int) -> list[str]:
    if spec.features is not None and len(spec.features) == columns:
        return list(spec.features)
    return [spec.name] if columns == 1 else [f"{spec.name}[{place}]" for place in range(columns)]


def _key(item: FeatureReference) -> tuple[str, str, str, int]:
    return (item.tensor, item.feature, item.source, item.index)


def _layout(column: Array) -> FeatureReference:
    """Edges or categories, origin and unit of a column; nothing counted yet."""
    if _textual(column):
        return _bare(categories=_texts(column))
    numbers = numeric(column)
    finite = numbers[np.isfinite(numbers)]
    mean, std = _origin(finite)
    values = np.unique(finite)
    if 0 < len(values) <= MOST_VALUES and bool((values == np.floor(values)).all()):
        return _bare(categories=[float(value) for value in values], mean=mean, std=std)
    return _bare(edges=quantile_edges(finite), mean=mean, std=std)


def _bare(
    *,
    edges: list[float] | None = None,
    categories: Sequence[float | str] = (),
    mean: float = 0.0,
    std: float = 0.0,
) -> FeatureReference:
    return FeatureReference(
        tensor="",
        feature="",
        index=0,
        kind="category" if categories else "numeric",
        edges=edges or [],
        categories=list(categories),
        counts=[0] * (len(edges or categories) + 1),
        null=0,
        mean=mean,
        std=std,
        calibration=independent(0),
    )


def _texts(column: Array) -> list[str]:
    """The most frequent texts, sorted; the rest is ``other``."""
    frequency = Frequencies(as_text(cell) for cell in column.tolist() if cell is not None)
    ranked = sorted(frequency, key=lambda text: (-frequency[text], text))
    return sorted(ranked[:MOST_VALUES]) or [""]


def _origin(finite: Array) -> tuple[float, float]:
    values: Floats = finite.astype(np.float64)
    values = values[np.abs(values) <= FARTHEST]
    return (float(values.mean()), float(values.std())) if len(values) else (0.0, 0.0)


def _count(layout: FeatureReference, tensor: str, column: Array) -> tuple[list[int], int]:
    item = msgspec.structs.replace(layout, tensor=tensor, index=0, source="column")
    counter = InputCounter([item])
    columns = counter.columns(counter.count({tensor: column}))
    return columns.counts[0], columns.null[0]


def _calibration(
    layout: FeatureReference, column: Array, counts: Sequence[int], *, ordered: bool
) -> Calibration:
    if ordered:
        return long_run_calibration(_codes(layout, column), len(counts))
    return independent(sum(1 for value in counts if value))


def _codes(layout: FeatureReference, column: Array) -> Integers:
    """The column of counts of each row; null is the one after the last."""
    null, other = layout.columns, layout.columns - 1
    if layout.textual:
        places = {category: place for place, category in enumerate(layout.categories)}
        texts = [None if cell is None else as_text(cell) for cell in column.tolist()]
        return np.array([null if text is None else places.get(text, other) for text in texts])
    values = column.astype(np.float64)
    if layout.kind == "numeric":
        codes = np.searchsorted(np.array(layout.edges), values, side="right")
    else:
        same = values[:, None] == np.array(layout.categories, np.float64)
        codes = np.where(same.any(axis=1), same.argmax(axis=1), other)
    return np.where(np.isnan(values), null, codes)


def _outputs(
    specs: Sequence[TensorSpec],
    outputs: Mapping[str, Array],
    *,
    ordered: bool,
    inherited: Reference | None,
) -> OutputReference:
    known = {_key(item): item for item in (inherited.outputs.values if inherited else ())}
    valued = [spec for spec in specs if spec.kind == "values"]
    base = msgspec.structs.replace(
        empty_output_reference(specs),
        values=_features(valued, outputs, ordered=ordered, known=known),
    )
    counter = OutputCounter(specs, base)
    columns = counter.columns(counter.count(outputs))
    histograms = {
        name: None
        if (histogram := getattr(base, name)) is None
        else msgspec.structs.replace(histogram, counts=getattr(columns, name))
        for name in ("score", "margin", "entropy")
    }
    return msgspec.structs.replace(base, class_counts=columns.classes, **histograms)


def _textual(array: Array) -> bool:
    return array.dtype.kind in "OUS"

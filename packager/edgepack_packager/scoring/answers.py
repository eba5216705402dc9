"""From a model's outputs to columns of a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from edgepack_contract.description import Description, TensorSpec
from edgepack_packager.errors import DataError
from edgepack_packager.scoring.columns import Mask
from edgepack_runtime.inference.session import Tensor

LABEL = "label"
MOST_COLUMNS = 64
"""An output with more values in a row becomes one column of lists."""

_CLASSES = {"probabilities": "probability", "scores": "score"}


@dataclass(frozen=True, slots=True)
class AnswerColumn:
    """One column of answers: its name, its type, and where its values are in the outputs."""

    name: str
    kind: pa.DataType
    values: Callable[[Mapping[str, Tensor]], Tensor]


def answer_columns(
    description: Description, sample: Mapping[str, Tensor], *, prefix: str = ""
) -> list[AnswerColumn]:
    """The columns of a model's answers.

    A label becomes ``label``, which is also there when the outputs have scores of classes alone;
    scores become ``probability_CLASS`` or ``score_CLASS``; other values have the output's name,
    with a number behind it where there are several.

    Args:
        description: The variant.
        sample: Some rows of every output, which show how wide it is.
        prefix: Stands before every name.

    Raises:
        DataError: Two columns would have the same name.
    """
    made = [column for spec in description.outputs for column in _columns(spec, sample[spec.name])]
    if description.task == "classification" and all(one.name != LABEL for one in made):
        made = [*_derived_label(description, sample), *made]
    twice = [name for name, count in Counter(one.name for one in made).items() if count > 1]
    if twice:
        raise DataError(
            f"two outputs of the model would both be the column {', '.join(twice)}",
            code="column-clash",
        )
    return [AnswerColumn(prefix + one.name, one.kind, one.values) for one in made]


def to_arrays(
    columns: Sequence[AnswerColumn], outputs: Mapping[str, Tensor], bad: Mask
) -> list[pa.Array]:
    """The columns of a chunk, with null in the rows that are bad.

    Args:
        columns: What is wanted.
        outputs: Answers of the rows that are not bad; ignored when all are.
        bad: Which rows of the chunk are.
    """
    return [_to_array(column, outputs, bad) for column in columns]


def _to_array(column: AnswerColumn, outputs: Mapping[str, Tensor], bad: Mask) -> pa.Array:
    if bad.all():
        return pa.nulls(len(bad), column.kind)
    values = column.values(outputs)
    if not bad.any():
        return _array(values, column.kind)
    # null stands for a bad row, and each good one takes the next answer
    places = np.cumsum(~bad) - 1
    return _array(values, column.kind).take(pa.array(places, mask=bad))


def _array(values: Tensor, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)


def _columns(spec: TensorSpec, sample: Tensor) -> list[AnswerColumn]:
    kind = _arrow_type(sample.dtype)
    width = math.prod(sample.shape[1:])
    if spec.kind == "label" and width == 1:
        return [AnswerColumn(LABEL, kind, _column(spec.name, 0))]
    names = _names(spec, sample, width)
    if names is None:
        whole = pa.list_(kind, width)
        return [AnswerColumn(spec.name, whole, lambda outputs: outputs[spec.name])]
    return [AnswerColumn(name, kind, _column(spec.name, place)) for place, name in enumerate(names)]


def _names(spec: TensorSpec, sample: Tensor, width: int) -> list[str] | None:
    if spec.kind in _CLASSES and sample.ndim == 2:
        labels = spec.labels or [str(place) for place in range(width)]
        return [f"{_CLASSES[spec.kind]}_{label}" for label in labels]
    if width == 1:
        return [spec.name]
    if sample.ndim > 2 or width > MOST_COLUMNS:
        return None
    return [f"{spec.name}_{place}" for place in range(width)]


def _column(output: str, place: int) -> Callable[[Mapping[str, Tensor]], Tensor]:
    def values(outputs: Mapping[str, Tensor]) -> Tensor:
        rows = outputs[output]
        one: Tensor = rows.reshape(len(rows), -1)[:, place]
        return one.astype(np.float32) if one.dtype == np.float16 else one

    return values


def _derived_label(
    description: Description, sample: Mapping[str, Tensor]
) -> Sequence[AnswerColumn]:
    """The class of the largest score, for a model that gives scores alone."""
    for spec in description.outputs:
        if spec.kind not in _CLASSES or sample[spec.name].ndim != 2 or not spec.labels:
            continue
        whole = all(label.lstrip("-").isdecimal() for label in spec.labels)
        classes = np.array([int(one) for one in spec.labels] if whole else spec.labels)
        named = classes if whole else classes.astype(object)

        def values(
            outputs: Mapping[str, Tensor], output: str = spec.name, labels: Any = named
        ) -> Tensor:
            best: Tensor = labels[outputs[output].argmax(axis=1)]
            return best

        return [AnswerColumn(LABEL, pa.int64() if whole else pa.string(), values)]
    return []


def _arrow_type(dtype: np.dtype[Any]) -> pa.DataType:
    if dtype.kind in "OU":
        return pa.string()
    return pa.float32() if dtype == np.float16 else pa.from_numpy_dtype(dtype)

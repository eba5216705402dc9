"""From columns of a table to the tensors that a model takes, and which rows cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pa_csv

from edgepack_contract.description import Description
from edgepack_packager.errors import DataError
from edgepack_packager.scoring.binding import Binding
from edgepack_runtime.inference.session import Tensor, numpy_dtype

Mask = npt.NDArray[np.bool_]

NO_NUMBER = frozenset(pa_csv.ConvertOptions().null_values)
"""Spellings of a missing number, which are those that training data were read with."""

_SHOWN_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Faults:
    """The rows of a chunk that cannot be scored, with the columns to blame."""

    bad: Mask
    by_column: tuple[tuple[str, Mask, str], ...]

    def words(self, row: int, batch: pa.RecordBatch) -> str:
        """Why one bad row is bad."""
        for column, mask, expected in self.by_column:
            if mask[row]:
                value = batch.column(column)[row].as_py()
                given = "nothing" if value is None else repr(value)[:_SHOWN_CHARACTERS]
                return f"column {column!r} holds {given}, expected {expected}"
        raise ValueError(f"row {row} is not bad")


def make_feeds(
    description: Description, bindings: Sequence[Binding], batch: pa.RecordBatch
) -> tuple[dict[str, Tensor], Faults]:
    """The tensors of a chunk; rows that are bad hold zeros or anything else.

    Raises:
        DataError: A column holds something else than its input takes, in every row.
    """
    found: list[tuple[str, Mask, str]] = []
    feeds = {one.spec.name: _feed(one, batch, found) for one in bindings}
    if description.on_nonfinite == "refuse":
        for one in bindings:
            found += _nonfinite(one, feeds[one.spec.name])
    bad = np.zeros(batch.num_rows, dtype=bool)
    for _, mask, _ in found:
        bad |= mask
    return feeds, Faults(bad, tuple(found))


def _feed(binding: Binding, batch: pa.RecordBatch, found: list[tuple[str, Mask, str]]) -> Tensor:
    spec = binding.spec
    dtype = numpy_dtype(spec.dtype)
    if binding.whole and _is_list(batch.column(spec.name).type):
        return _shaped(binding, _from_lists(batch.column(spec.name), spec.name, dtype))
    made = np.empty((batch.num_rows, len(binding.columns)), dtype=dtype)
    for place, name in enumerate(binding.columns):
        made[:, place], bad = _values(batch.column(name), name, dtype)
        if bad is not None and bad.any():
            found.append((name, bad, _expected(dtype)))
    return _shaped(binding, made)


def _shaped(binding: Binding, values: Tensor) -> Tensor:
    wanted = binding.spec.shape[1:]
    if not wanted and values.shape[1:] == (1,):
        return values[:, 0]
    fixed = [size for size in wanted if isinstance(size, int)]
    if len(fixed) == len(wanted) and math.prod(fixed) == math.prod(values.shape[1:]):
        return values.reshape(len(values), *fixed)
    return values


def _nonfinite(binding: Binding, values: Tensor) -> list[tuple[str, Mask, str]]:
    if values.dtype.kind != "f":
        return []
    finite: Mask = np.isfinite(values).reshape(len(values), -1)
    if finite.all():
        return []
    expected = "a finite number, since the bundle refuses others"
    if finite.shape[1] != len(binding.columns):
        return [(binding.columns[0], ~np.asarray(finite.all(axis=1)), expected)]
    return [
        (name, ~finite[:, place], expected)
        for place, name in enumerate(binding.columns)
        if not finite[:, place].all()
    ]


def _values(column: pa.Array, name: str, dtype: np.dtype[Any]) -> tuple[Tensor, Mask | None]:
    """The values of a column, and where they are none."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_null(column.type):
        column = column.cast(pa.string() if dtype.kind == "O" else pa.float64())
    if dtype.kind == "O":
        return _texts(column, name)
    if _is_text(column.type):
        numbers, bad = _numbers_of(column, dtype)
        return _numbers(numbers, dtype, also=bad)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(
            f"the column {name!r} holds {column.type}, the model takes {dtype}", code="bad-type"
        )
    return _numbers(column, dtype)


def _texts(column: pa.Array, name: str) -> tuple[Tensor, Mask | None]:
    if not _is_text(column.type):
        raise DataError(
            f"the column {name!r} holds {column.type}, the model takes text", code="bad-type"
        )
    bad = None
    if column.null_count:
        bad = _mask(pc.is_null(column))
        column = pc.fill_null(column, "")
    return column.to_numpy(zero_copy_only=False).astype(object), bad


def _numbers(
    column: pa.Array, dtype: np.dtype[Any], *, also: Mask | None = None
) -> tuple[Tensor, Mask | None]:
    if dtype.kind == "f":
        values = column.to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            return values.astype(dtype, copy=False), also
    missing = _mask(pc.is_null(column))
    values = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        cast = values.astype(dtype)
    # a whole number within the range comes back as it was; NaN and fractions do not
    bad = missing | (cast.astype(values.dtype) != values)
    return cast, bad if also is None else bad | also


def _numbers_of(texts: pa.Array, dtype: np.dtype[Any]) -> tuple[pa.Array, Mask | None]:
    """Numbers that texts spell, null where they say that there is none; and where they are none."""
    found = _cast_texts(texts, dtype)
    if found is not None:
        return found, None
    trimmed = pc.utf8_trim_whitespace(texts)
    spelt = pc.is_in(trimmed, value_set=pa.array(sorted(NO_NUMBER), trimmed.type))
    known = pc.if_else(spelt, None, trimmed)
    found = _cast_texts(known, dtype)
    if found is not None:
        return found, None
    parsed = [_parse(text) for text in known.to_pylist()]
    bad = np.array([value == "bad" for value in parsed])
    return pa.array([None if value == "bad" else value for value in parsed], pa.float64()), bad


def _cast_texts(texts: pa.Array, dtype: np.dtype[Any]) -> pa.Array | None:
    """All texts as numbers, of a type that loses nothing; None when one of them is no number."""
    kinds = {"f": (pa.float64(),), "b": (pa.int64(), pa.bool_())}
    for kind in kinds.get(dtype.kind, (pa.int64(), pa.float64())):
        try:
            numbers = pc.cast(texts, kind)
        except pa.ArrowInvalid:
            continue
        return numbers.cast(pa.uint8()) if pa.types.is_boolean(kind) else numbers
    return None


def _parse(text: str | None) -> float | str | None:
    if text is None:
        return None
    try:
        # Python reads 1_000 and other digits than these, which no csv means
        return float(text) if text.isascii() and "_" not in text else "bad"
    except ValueError:
        return "bad"


def _from_lists(column: pa.Array, name: str, dtype: np.dtype[Any]) -> Tensor:
    """Lists of one length in every row, however deep, as rows of their values."""
    rows = len(column)
    while _is_list(column.type):
        if column.null_count:
            raise DataError(f"the column {name!r} has a row without a list", code="bad-type")
        lengths = pc.list_value_length(column)
        if len(pc.unique(lengths)) > 1:
            raise DataError(
                f"the column {name!r} holds lists of different lengths", code="ragged-data"
            )
        column = pc.list_flatten(column)
    values, bad = _values(column, name, dtype)
    if bad is not None and bad.any():
        raise DataError(
            f"the column {name!r} holds lists with something else than {_expected(dtype)}",
            code="bad-type",
        )
    return values.reshape(rows, -1)


def _mask(values: pa.Array) -> Mask:
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=bool)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _expected(dtype: np.dtype[Any]) -> str:
    words = {"O": "text", "f": "a number", "b": "0 or 1"}
    return words.get(dtype.kind, f"a whole number of {dtype}")

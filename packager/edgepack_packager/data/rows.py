"""Rows of data, and how they are bound to a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack_contract.description import TensorSpec
from edgepack_packager.errors import DataError

Array = npt.NDArray[Any]
Feeds = dict[str, Array]

UNNAMED = ""
"""The name of the only array of a ``.npy`` file."""

SHOWN_NAMES = 8


@dataclass(frozen=True, slots=True)
class Rows:
    """Named columns of equal length, what stands beside them, and the digest of their file.

    ``asides`` are columns that say something of a row and are no feature: time, sequence, slices.
    ``keys`` are those of them that name a row's time and sequence. ``numbers`` are the places that
    the rows had where they were read, counted from 0; None means that they still have them.
    """

    columns: Mapping[str, Array]
    labels: Array | None
    digest: str
    asides: Mapping[str, Array] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    numbers: Array | None = None

    @property
    def n(self) -> int:
        """The number of rows."""
        return len(next(iter(self.columns.values())))

    def take(self, indices: npt.NDArray[np.intp]) -> Rows:
        """The rows at ``indices``, in that order."""
        columns = {name: values[indices] for name, values in self.columns.items()}
        labels = None if self.labels is None else self.labels[indices]
        asides = {name: values[indices] for name, values in self.asides.items()}
        numbers = (np.arange(self.n) if self.numbers is None else self.numbers)[indices]
        return replace(self, columns=columns, labels=labels, asides=asides, numbers=numbers)


@dataclass(frozen=True, slots=True)
class Parts:
    """Three row-disjoint sets of rows; an absent one was not given."""

    calibration: Rows | None
    evaluation: Rows | None
    reference: Rows | None

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the files behind the parts."""
        named = (
            ("calibration", self.calibration),
            ("evaluation", self.evaluation),
            ("reference", self.reference),
        )
        return {name: rows.digest for name, rows in named if rows is not None}


def bind_rows(rows: Rows, inputs: Sequence[TensorSpec]) -> Feeds:
    """Match columns to the model's inputs: by name, else all columns side by side.

    Returns:
        One array per input, in its shape, not yet cast to its type.

    Raises:
        DataError: Columns are missing, textual where numbers are due, or too many or too few.
    """
    if all(spec.name in rows.columns for spec in inputs):
        return {spec.name: _shaped(rows.columns[spec.name], spec) for spec in inputs}
    if len(inputs) > 1:
        missing = [spec.name for spec in inputs if spec.name not in rows.columns]
        raise DataError(
            f"the data have no column or array {', '.join(missing)}, which the model takes; they "
            f"have {listed(list(rows.columns))}",
            code="missing-input",
        )
    spec = inputs[0]
    names = feature_columns(rows, spec)
    return {spec.name: _shaped(_side_by_side(rows, names, spec), spec)}


def cast_feeds(feeds: Feeds, inputs: Sequence[TensorSpec]) -> Feeds:
    """Cast to the types that the model takes, refusing to lose whole numbers.

    Raises:
        DataError: Fractions or texts for an integer input, or texts for a numeric one.
    """
    return {spec.name: _cast(feeds[spec.name], spec) for spec in inputs}


def has_missing(feeds: Feeds) -> bool:
    """Whether any value is NaN or infinite."""
    return any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in feeds.values())


def gaps(rows: Rows) -> list[str]:
    """The columns that hold NaN or an infinity, each with the first row where."""
    found = []
    for name, values in rows.columns.items():
        if values.dtype.kind == "f" and name not in rows.asides:
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if bad.any():
                row = int(np.argmax(bad))
                row = row if rows.numbers is None else int(rows.numbers[row])
                found.append(f"{name} (row {row})")
    return found


def feature_columns(rows: Rows, spec: TensorSpec) -> list[str]:
    """The columns that stand side by side in a model's only input.

    Those that the model names; else all but the asides. Asides are features when only with them,
    or with the slices among them, there are as many columns as the model takes.

    Raises:
        DataError: A column that the model names is missing.
    """
    names = list(rows.columns)
    if spec.features and set(spec.features) & set(names):
        missing = [name for name in spec.features if name not in rows.columns]
        if missing:
            raise DataError(
                f"the data have no column {', '.join(missing)}, which the model takes; they have "
                f"{listed(names)}",
                code="missing-input",
            )
        return list(spec.features)
    wanted = spec.shape[-1] if len(spec.shape) == 2 else None
    beside, keys = set(rows.asides), set(rows.keys)
    choices = [[name for name in names if name not in left] for left in (beside, keys, set())]
    fitting = [choice for choice in choices if _width(rows, choice) == wanted]
    return (fitting or choices)[0] or names


def _width(rows: Rows, names: Sequence[str]) -> int:
    shapes = [rows.columns[name].shape for name in names]
    return sum(shape[1] if len(shape) > 1 else 1 for shape in shapes)


def _side_by_side(rows: Rows, names: Sequence[str], spec: TensorSpec) -> Array:
    textual = [name for name in names if rows.columns[name].dtype.kind not in "biuf"]
    if textual and spec.dtype != "str":
        first = _example(rows.columns[textual[0]], rows.numbers)
        raise DataError(
            f"column {', '.join(textual)} holds {first}, the model's input {spec.name!r} "
            f"takes {spec.dtype}; encode it, leave it out, or name the label if it is one",
            code="text-column",
        )
    if len(names) == 1:
        return rows.columns[names[0]]
    deep = [name for name in names if rows.columns[name].ndim > 2]
    if deep:
        raise DataError(
            f"the data have {', '.join(names)}; which of them is the model's input {spec.name!r}? "
            "Give the array that name, or name it in [inputs] of a recipe",
            code="missing-input",
        )
    wanted = spec.shape[-1] if len(spec.shape) == 2 else None
    if isinstance(wanted, int) and (width := _width(rows, names)) != wanted:
        raise DataError(
            f"input {spec.name!r} takes {wanted} columns, the data have {width}: {listed(names)}; "
            "is the label among them? Leave out what is no feature, or list the features as "
            f"columns of {spec.name!r} in [inputs] of a recipe",
            code="bad-shape",
        )
    return np.column_stack([rows.columns[name] for name in names])


def listed(names: Sequence[str]) -> str:
    """Names of columns for people, the middle ones left out of many."""
    if len(names) <= 2 * SHOWN_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:SHOWN_NAMES])}, …, {', '.join(names[-SHOWN_NAMES:])}"


def _example(values: Array, numbers: Array | None = None) -> str:
    """What a column holds instead of numbers, by the first value that shows it."""
    if values.dtype.kind in "mM":
        return f"times such as {values.reshape(-1)[0]}"
    flat = values.reshape(-1).tolist()
    place = next((place for place, value in enumerate(flat) if not _is_number(value)), 0)
    row = place // (values.size // len(values))
    return f"text such as {flat[place]!r} (row {row if numbers is None else numbers[row]})"


def _is_number(value: object) -> bool:
    if value is None:
        return True
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _shaped(array: Array, spec: TensorSpec) -> Array:
    wanted = spec.shape[1:]
    if array.ndim == 1 and len(spec.shape) == 2:
        array = array[:, None]
    fixed = [size for size in wanted if isinstance(size, int)]
    flat = array.ndim == 2 and len(fixed) == len(wanted) > 1
    if flat and array.shape[1] == int(np.prod(fixed)):
        array = array.reshape(len(array), *fixed)
    fits = array.ndim == len(spec.shape) and all(
        not isinstance(size, int) or size == given
        for size, given in zip(wanted, array.shape[1:], strict=True)
    )
    if not fits:
        raise DataError(
            f"input {spec.name!r} takes rows of shape {list(wanted)}, the data have "
            f"{list(array.shape[1:])}; is the label among the columns?",
            code="bad-shape",
        )
    return array


def _cast(array: Array, spec: TensorSpec) -> Array:
    if spec.dtype == "str":
        # a string tensor has no missing value; the empty text is what stands for one
        return np.where(array == None, "", array.astype(object))  # noqa: E711 - elementwise
    wanted = np.dtype(spec.dtype)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"input {spec.name!r} takes {spec.dtype}, the data hold {_example(array)}", code="text"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(cast, array):
        raise DataError(
            f"input {spec.name!r} takes {spec.dtype}, the data hold other numbers", code="bad-type"
        )
    return cast

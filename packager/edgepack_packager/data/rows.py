"""Rows: read from csv, parquet, npy or npz, split by a seed, and bound to a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv as pa_csv
from pyarrow import parquet as pa_parquet

from edgepack_contract.description import TensorSpec
from edgepack_contract.digest import digest_stream
from edgepack_contract.limits import LIMITS
from edgepack_packager.errors import DataError

Array = npt.NDArray[Any]
Feeds = dict[str, Array]

UNNAMED = ""
"""The name of the only array of a ``.npy`` file."""

CALIBRATION_ROWS = 512
CALIBRATION_SHARE = 0.15
EVALUATION_SHARE = 0.60
"""The larger part goes to the proof, since the width of its interval is what decides."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Named columns of equal length, what stands beside them, and the digest of their file.

    ``asides`` are columns that say something of a row and are no feature: time, sequence, slices.
    """

    columns: Mapping[str, Array]
    labels: Array | None
    digest: str
    asides: Mapping[str, Array] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """The number of rows."""
        return len(next(iter(self.columns.values())))

    def take(self, indices: npt.NDArray[np.intp]) -> Rows:
        """The rows at ``indices``, in that order."""
        columns = {name: values[indices] for name, values in self.columns.items()}
        labels = None if self.labels is None else self.labels[indices]
        asides = {name: values[indices] for name, values in self.asides.items()}
        return replace(self, columns=columns, labels=labels, asides=asides)


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


def read_rows(path: Path, *, label: str | None, asides: Sequence[str] = ()) -> Rows:
    """Read a file of rows.

    Args:
        path: ``.csv``, ``.parquet``, ``.npy`` or ``.npz``.
        label: The column or array with the truth; it is taken out of the columns.
        asides: Columns that are wanted beside the features; they stay among the columns too.

    Raises:
        DataError: Unreadable, of another type, empty, ragged, or without the label.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".npy": _read_npy, ".npz": _read_npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path.name}: data are read from {', '.join(sorted(readers))}", code="data-type"
        )
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            digest = digest_stream(stream, size=min(size, LIMITS.layer_bytes), what=path.name)
        columns = reader(path)
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}", code="unreadable-data") from error
    _check_columns(columns, path)
    labels = None if label is None else _take_label(columns, label, path)
    if not columns:
        raise DataError(f"{path.name} has nothing but the label", code="no-columns")
    missing = [name for name in asides if name not in columns]
    if missing:
        raise DataError(
            f"{path.name} has no column {', '.join(missing)}; it has {', '.join(columns)}",
            code="no-column",
        )
    return Rows(columns, labels, digest, {name: columns[name] for name in asides})


def split_rows(rows: Rows, *, seed: int) -> Parts:
    """Split rows into three parts that share no row, the same way for the same seed.

    The reference keeps the order that the rows came in.

    Raises:
        DataError: Fewer than 8 rows: there is nothing to split.
    """
    n = rows.n
    if n < 8:
        raise DataError(f"{n} rows are too few to split; give at least 8", code="too-few-rows")
    order = np.random.default_rng(seed).permutation(n)
    first = min(CALIBRATION_ROWS, max(1, int(n * CALIBRATION_SHARE)))
    second = first + int((n - first) * EVALUATION_SHARE / (1 - CALIBRATION_SHARE))
    return Parts(
        calibration=rows.take(order[:first]),
        evaluation=rows.take(np.sort(order[first:second])),
        reference=rows.take(np.sort(order[second:])),
    )


def read_parts(
    *, calibration: Path | None, evaluation: Path | None, reference: Path | None,
    label: str | None, asides: Sequence[str] = (),
) -> Parts:  # fmt: skip
    """Read parts that were given one by one; only ``evaluation`` must have label and asides.

    Raises:
        DataError: See :func:`read_rows`.
    """

    def read(path: Path | None, *, needed: bool) -> Rows | None:
        if path is None:
            return None
        if needed:
            return read_rows(path, label=label, asides=asides)
        rows = read_rows(path, label=None)
        if label is None or label not in rows.columns:
            return rows
        return read_rows(path, label=label)

    return Parts(
        calibration=read(calibration, needed=False),
        evaluation=read(evaluation, needed=True),
        reference=read(reference, needed=False),
    )


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
            f"the data have no column or array {', '.join(missing)}, which the model takes",
            code="missing-input",
        )
    spec = inputs[0]
    if len(rows.columns) == 1:
        return {spec.name: _shaped(next(iter(rows.columns.values())), spec)}
    return {spec.name: _shaped(_side_by_side(rows, spec), spec)}


def cast_feeds(feeds: Feeds, inputs: Sequence[TensorSpec]) -> Feeds:
    """Cast to the types that the model takes, refusing to lose whole numbers.

    Raises:
        DataError: Fractions or texts for an integer input, or texts for a numeric one.
    """
    return {spec.name: _cast(feeds[spec.name], spec) for spec in inputs}


def has_missing(feeds: Feeds) -> bool:
    """Whether any value is NaN or infinite."""
    return any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in feeds.values())


def _read_csv(path: Path) -> Feeds:
    return _from_arrow(pa_csv.read_csv(path))


def _read_parquet(path: Path) -> Feeds:
    return _from_arrow(pa_parquet.read_table(path))


def _read_npy(path: Path) -> Feeds:
    return {UNNAMED: np.load(path, allow_pickle=False)}


def _read_npz(path: Path) -> Feeds:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _from_arrow(table: pa.Table) -> Feeds:
    names = table.column_names
    if len(set(names)) != len(names):
        raise ValueError("a column is there twice")
    return {name: table.column(name).to_numpy() for name in names}


def _check_columns(columns: Feeds, path: Path) -> None:
    lengths = {values.shape[0] if values.ndim else 0 for values in columns.values()}
    if not columns or lengths == {0}:
        raise DataError(f"{path.name} has no rows", code="no-rows")
    if len(lengths) > 1:
        raise DataError(f"{path.name}: arrays of different lengths", code="ragged-data")


def _take_label(columns: Feeds, label: str, path: Path) -> Array:
    if label not in columns:
        raise DataError(
            f"{path.name} has no label {label!r}; it has {', '.join(map(repr, columns))}",
            code="no-label",
        )
    labels = columns.pop(label)
    if labels.ndim != 1:
        raise DataError(f"the label {label!r} is not one value a row", code="bad-label")
    missing = labels == None if labels.dtype.kind == "O" else np.isnan(_floats(labels))  # noqa: E711 - elementwise
    if np.any(missing):
        raise DataError(f"the label {label!r} is missing in some rows", code="bad-label")
    return labels


def _floats(values: Array) -> Array:
    return values if values.dtype.kind == "f" else np.zeros(len(values))


def _side_by_side(rows: Rows, spec: TensorSpec) -> Array:
    names = list(rows.columns)
    if spec.features and set(spec.features) & set(names):
        missing = [name for name in spec.features if name not in rows.columns]
        if missing:
            raise DataError(
                f"the data have no column {', '.join(missing)}, which the model takes",
                code="missing-input",
            )
        names = spec.features
    textual = [name for name in names if rows.columns[name].dtype.kind not in "biuf"]
    if textual and spec.dtype != "str":
        raise DataError(
            f"column {', '.join(textual)} holds text, the model's input {spec.name!r} takes "
            f"{spec.dtype}; encode it, or name the label if it is one",
            code="text-column",
        )
    return np.column_stack([rows.columns[name] for name in names])


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
        return array.astype(object)
    wanted = np.dtype(spec.dtype)
    if array.dtype.kind not in "biuf":
        raise DataError(f"input {spec.name!r} takes {spec.dtype}, the data hold text", code="text")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(cast, array):
        raise DataError(
            f"input {spec.name!r} takes {spec.dtype}, the data hold other numbers", code="bad-type"
        )
    return cast

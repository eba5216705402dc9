"""Rows of a file or of code, with the label taken out and what stands beside the features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgepack_packager.data.batches import read_batches
from edgepack_packager.data.readers import read_columns
from edgepack_packager.data.rows import Array, Feeds, Parts, Rows, listed
from edgepack_packager.errors import DataError
from edgepack_packager.recipe import code_name


def read_rows(
    path: Path, *, label: str | None, asides: Sequence[str] = (), keys: Sequence[str] = ()
) -> Rows:
    """Read rows.

    Args:
        path: A file that :mod:`edgepack_packager.data.readers` reads, or ``module:function``.
        label: The column or array with the truth; it is taken out of the columns.
        asides: Columns that are wanted beside the features; they stay among the columns too.
        keys: Those of them that name a row's time and sequence.

    Raises:
        DataError: Unreadable, of another type, empty, ragged, or without the label.
        RecipeError: There is no such function.
    """
    columns, digest = read_columns(path) if code_name(path) is None else read_batches(path)
    return make_rows(columns, digest, path.name, label=label, asides=asides, keys=keys)


def make_rows(
    columns: Feeds, digest: str, what: str, *,
    label: str | None, asides: Sequence[str] = (), keys: Sequence[str] = (),
) -> Rows:  # fmt: skip
    """Rows of columns; ``what`` is their name in words. See :func:`read_rows`."""
    _check_columns(columns, what)
    labels = None if label is None else _take_label(columns, label, what)
    if not columns:
        raise DataError(f"{what} has nothing but the label", code="no-columns")
    missing = [name for name in asides if name not in columns]
    if missing:
        raise DataError(
            f"{what} has no column {', '.join(missing)}; it has {listed(list(columns))}",
            code="no-column",
        )
    return Rows(columns, labels, digest, {name: columns[name] for name in asides}, tuple(keys))


def read_parts(
    *, calibration: Path | None, evaluation: Path | None, reference: Path | None,
    label: str | None, asides: Sequence[str] = (), keys: Sequence[str] = (),
) -> Parts:  # fmt: skip
    """Read parts that were given one by one; only ``evaluation`` must have label and asides.

    Raises:
        DataError: See :func:`read_rows`.
    """

    def read(path: Path | None, *, needed: bool) -> Rows | None:
        if path is None:
            return None
        if needed:
            return read_rows(path, label=label, asides=asides, keys=keys)
        rows = read_rows(path, label=None)
        columns = dict(rows.columns)
        there = label if label in columns else None
        beside = [name for name in asides if name in columns]
        return make_rows(columns, rows.digest, path.name, label=there, asides=beside, keys=keys)

    return Parts(
        calibration=read(calibration, needed=False),
        evaluation=read(evaluation, needed=True),
        reference=read(reference, needed=False),
    )


def _check_columns(columns: Feeds, what: str) -> None:
    lengths = {values.shape[0] if values.ndim else 0 for values in columns.values()}
    if not columns or lengths == {0}:
        raise DataError(f"{what} has no rows", code="no-rows")
    if len(lengths) > 1:
        sizes = ", ".join(f"{name} {len(values)}" for name, values in columns.items())
        raise DataError(f"{what}: arrays of different lengths: {sizes}", code="ragged-data")


def _take_label(columns: Feeds, label: str, what: str) -> Array:
    if label not in columns:
        raise DataError(
            f"{what} has no label {label!r}; it has {listed(list(columns))}",
            code="no-label",
        )
    labels = columns.pop(label)
    if labels.dtype.kind in "mM":
        raise DataError(f"the label {label!r} holds times", code="bad-label")
    missing = _missing(labels)
    if missing.any():
        raise DataError(
            f"the label {label!r} is missing in {np.count_nonzero(missing)} of {len(labels)} rows, "
            f"the first is row {int(np.argmax(missing))}",
            code="bad-label",
        )
    return labels


def _missing(labels: Array) -> Array:
    """Whether a row's label has gaps, shape (rows,)."""
    flat = labels.reshape(len(labels), -1)
    if flat.dtype.kind == "O":
        return np.array([any(value is None for value in row) for row in flat.tolist()])
    if flat.dtype.kind == "f":
        return np.asarray(np.isnan(flat).any(axis=1))
    return np.zeros(len(flat), dtype=np.bool_)

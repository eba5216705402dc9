"""Files of rows: csv, parquet, npy, npz and safetensors as named arrays. Nothing here unpickles."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib import format as npy
from pyarrow import csv as pa_csv
from pyarrow import parquet as pa_parquet
from safetensors import SafetensorError
from safetensors.numpy import load_file

from edgepack_contract.digest import digest_stream
from edgepack_contract.limits import GIB
from edgepack_packager.data.rows import UNNAMED, Array, Feeds
from edgepack_packager.errors import DataError

MOST_BYTES = 4 * GIB
"""Of rows, in a file and in memory: they are all held at once, several times."""

BATCH_ROWS = 16384


def read_columns(path: Path) -> tuple[Feeds, str]:
    """The columns or arrays of a file, and the digest of its bytes.

    Raises:
        DataError: Unreadable, of another type, too large, or with columns that hold no values.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path.name}: data are read from {', '.join(sorted(READERS))}, or module:function "
            "that gives batches",
            code="data-type",
        )
    try:
        size = path.stat().st_size
        check_size(size, path.name)
        with path.open("rb") as stream:
            digest = digest_stream(stream, size=size, what=path.name)
        columns = reader(path)
    except (OSError, ValueError, EOFError, MemoryError, struct.error) as error:
        # pyarrow's errors derive from ValueError and OSError
        raise _unreadable(path, error) from error
    except (pa.ArrowException, zipfile.BadZipFile, SafetensorError) as error:
        raise _unreadable(path, error) from error
    return {name: plain(values, name, path.name) for name, values in columns.items()}, digest


def _unreadable(path: Path, error: BaseException) -> DataError:
    system = error.strerror if isinstance(error, OSError) else None
    words = system or str(error) or type(error).__name__
    return DataError(f"cannot read {path}: {words}", code="unreadable-data")


def check_size(size: int, what: str) -> None:
    """Refuse more bytes than are held.

    Raises:
        DataError: ``size`` is over :data:`MOST_BYTES`.
    """
    if size > MOST_BYTES:
        raise DataError(
            f"{what} has {size} bytes of rows, over {MOST_BYTES}; a sample is enough",
            code="too-much-data",
        )


def plain(values: Array, name: str, what: str) -> Array:
    """Values that a model may take: numbers, texts, or times; bytes become texts.

    Raises:
        DataError: Of another kind, such as structures.
    """
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8")
    if values.dtype.kind == "O" and not _holds_texts(values):
        raise DataError(
            f"{what}: {name or 'the array'} holds objects that are neither numbers nor texts",
            code="column-type",
        )
    if values.dtype.kind not in "biufUOmM":
        raise DataError(
            f"{what}: {name or 'the array'} holds {values.dtype}; numbers, texts and times "
            "are read",
            code="column-type",
        )
    return values


def _holds_texts(values: Array) -> bool:
    return all(value is None or isinstance(value, str) for value in values.reshape(-1).tolist())


def _read_csv(path: Path) -> Feeds:
    table = pa_csv.read_csv(path)
    columns = _from_arrow(table)
    # an empty cell is missing whatever the column holds; "NA" may be a text
    return {name: _emptied(values) for name, values in columns.items()}


def _emptied(values: Array) -> Array:
    if values.dtype.kind != "O":
        return values
    return np.array([value or None for value in values.tolist()], dtype=object)


def _read_parquet(path: Path) -> Feeds:
    batches, size = [], 0
    with pa_parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            # a dictionary of few values can stand for any number of rows
            size += batch.nbytes
            check_size(size, path.name)
            batches.append(batch)
        return _from_arrow(pa.Table.from_batches(batches, schema=file.schema_arrow))


def _read_npy(path: Path) -> Feeds:
    with path.open("rb") as stream:
        _check_npy(stream, path.name)
    return {UNNAMED: np.load(path, allow_pickle=False)}


def _read_npz(path: Path) -> Feeds:
    with zipfile.ZipFile(path) as archive:
        check_size(sum(entry.file_size for entry in archive.infolist()), path.name)
        for entry in archive.infolist():
            with archive.open(entry) as stream:
                _check_npy(stream, f"{path.name}: {entry.filename}")
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _check_npy(stream: Any, what: str) -> None:
    """An array is made as large as its header says before its bytes are read."""
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    check_size(math.prod(shape) * dtype.itemsize, what)


def _read_safetensors(path: Path) -> Feeds:
    return dict(load_file(path))


def _from_arrow(table: pa.Table) -> Feeds:
    names = table.column_names
    if len(set(names)) != len(names):
        raise ValueError("a column is there twice")
    return {name: _from_column(table.column(name), name) for name in names}


def _from_column(column: pa.ChunkedArray, name: str) -> Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _from_column(column.cast(kind.value_type), name)
    if pa.types.is_decimal(kind):
        return _array(column.cast(pa.float64()))
    if pa.types.is_boolean(kind) and column.null_count:
        return _array(column.cast(pa.uint8()).cast(pa.float32()))
    if pa.types.is_date(kind):
        return _array(column.cast(pa.timestamp("ms")))
    if _is_list(kind):
        return _from_lists(column, name)
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    simple = (
        pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    )
    if not simple or pa.types.is_interval(kind):
        raise DataError(
            f"column {name!r} holds {kind}; numbers, texts, times and lists of numbers of one "
            "length are read: leave it out",
            code="column-type",
        )
    return _array(column)


def _array(column: pa.ChunkedArray) -> Array:
    return np.asarray(column.to_numpy())


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _from_lists(column: pa.ChunkedArray, name: str) -> Array:
    """Lists of one length as an array with one dimension more."""
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(lengths) != 1 or lengths[0] in {None, 0}:
        raise DataError(
            f"column {name!r} holds lists of different lengths; pad them to one length",
            code="column-type",
        )
    inner = _from_column(pa.chunked_array([pc.list_flatten(column.combine_chunks())]), name)
    return inner.reshape(len(column), int(lengths[0]), *inner.shape[1:])


READERS: Mapping[str, Callable[[Path], Feeds]] = {
    ".csv": _read_csv,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
    ".safetensors": _read_safetensors,
}

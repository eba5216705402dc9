"""Tables on disk, csv or parquet, read and written piece by piece in constant memory."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import pyarrow as pa
from pyarrow import csv as pa_csv
from pyarrow import parquet as pa_parquet

from edgepack_contract.atomic import replacing
from edgepack_contract.digest import CHUNK_BYTES
from edgepack_packager.errors import DataError

CSV, PARQUET = ".csv", ".parquet"
BLOCK_BYTES = 4 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_ONE_THREAD = pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)


class TableReader:
    """A table that is read once, from beginning to end. Use it as a context manager.

    Args:
        path: A ``.csv`` with a header, or a ``.parquet`` file.

    Raises:
        DataError: Of another type, or unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind = table_kind(path)
        self.digest = ""
        self._file: Any = None
        self._parquet: Any = None
        self.names: list[str] = []
        self.rows: int | None = None

    def __enter__(self) -> Self:
        with self._blamed():
            self._file = pa.OSFile(str(self.path))
        try:
            self.digest = self._hash()
            with self._blamed():
                self._open()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._parquet is not None:
            self._parquet.close()
        self._file.close()

    @property
    def progress(self) -> float:
        """The share of the bytes of a csv that was read, 0 to 1."""
        return float(self._file.tell() / max(self._file.size(), 1))

    def batches(
        self, columns: Sequence[str], *, texts: Sequence[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        """The rows, in pieces of at most ``rows``.

        Args:
            columns: The columns that are wanted, in this order.
            texts: Those that are to come as they are written, when it is a csv.
            rows: The most rows of a piece.

        Raises:
            DataError: It cannot be read to its end.
        """
        with self._blamed():
            for batch in self._read(columns, texts, rows):
                for start in range(0, batch.num_rows, rows):
                    yield batch.slice(start, rows)

    def schema(self, columns: Sequence[str], *, texts: Sequence[str]) -> pa.Schema:
        """Names and types of columns, as :meth:`batches` gives them.

        Raises:
            DataError: The beginning of the file cannot be read.
        """
        if self._parquet is not None:
            known = self._parquet.schema_arrow
            return pa.schema([known.field(name) for name in columns])
        with self._blamed(), self._csv(columns, texts) as reader:
            return reader.schema

    def _open(self) -> None:
        if self.kind == PARQUET:
            # without pre-buffering a row group is decoded as it is read, however large it is
            self._parquet = pa_parquet.ParquetFile(
                self._file,
                pre_buffer=False,
                buffer_size=_READ_BYTES,
                page_checksum_verification=True,
            )
            self.names, self.rows = (
                self._parquet.schema_arrow.names,
                self._parquet.metadata.num_rows,
            )
            return
        self._file.seek(0)
        with pa_csv.open_csv(_kept_open(self._file), read_options=_ONE_THREAD) as reader:
            self.names = reader.schema.names

    def _read(
        self, columns: Sequence[str], texts: Sequence[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        if self._parquet is None:
            with self._csv(columns, texts) as reader:
                yield from reader
            return
        for batch in self._parquet.iter_batches(rows, columns=list(dict.fromkeys(columns))):
            yield batch.select(list(columns))

    def _csv(self, columns: Sequence[str], texts: Sequence[str]) -> Any:
        self._file.seek(0)
        convert = pa_csv.ConvertOptions(
            include_columns=list(columns), column_types=dict.fromkeys(texts, pa.string())
        )
        return pa_csv.open_csv(
            _kept_open(self._file), read_options=_ONE_THREAD, convert_options=convert
        )

    def _hash(self) -> str:
        hasher = hashlib.sha256()
        while chunk := self._file.read(CHUNK_BYTES):
            hasher.update(chunk)
        return f"sha256:{hasher.hexdigest()}"

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            words = str(error).splitlines()[0][:300]
            raise DataError(f"cannot read {self.path}: {words}", code="unreadable-data") from error


class TableWriter(Protocol):
    """Where the rows of a table go."""

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Write some rows."""
        ...


def table_kind(path: Path) -> str:
    """``.csv`` or ``.parquet``.

    Raises:
        DataError: The name ends otherwise.
    """
    kind = path.suffix.lower()
    if kind not in (CSV, PARQUET):
        raise DataError(
            f"{path.name}: tables are read and written as {CSV} or {PARQUET}", code="data-type"
        )
    return kind


@contextmanager
def new_table(path: Path, schema: pa.Schema) -> Iterator[TableWriter]:
    """Write a table that is there whole under its name, or not at all.

    What a killed process left of the same table is removed first.

    Raises:
        DataError: A column has a type that a csv cannot hold.
        OSError: It cannot be written.
    """
    remove_leavings(path)
    if table_kind(path) == CSV:
        _check_csv(schema)
    with replacing(path) as part, part.open("xb") as stream:
        # held until the end: whoever finds the file and gets its lock knows that its writer is dead
        fcntl.flock(stream, fcntl.LOCK_EX)
        writer = (
            pa_csv.CSVWriter(
                stream, schema, write_options=pa_csv.WriteOptions(quoting_style="needed")
            )
            if table_kind(path) == CSV
            else pa_parquet.ParquetWriter(stream, schema, write_page_checksum=True)
        )
        with writer:
            yield writer
        stream.flush()
        os.fsync(stream.fileno())


def remove_leavings(path: Path) -> None:
    """Remove what writers of ``path`` left that were killed; those alive keep theirs."""
    for part in path.parent.glob(f".{glob.escape(path.name[:200])}.*.part"):
        with part.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            part.unlink(missing_ok=True)


def _check_csv(schema: pa.Schema) -> None:
    for field in schema:
        if pa.types.is_nested(field.type):
            raise DataError(
                f"the column {field.name!r} holds {field.type}, for which a csv has no place; "
                "write a .parquet",
                code="bad-type",
            )


def _kept_open(file: Any) -> Any:
    """The same file for a reader that closes what it reads."""
    return _Borrowed(file)


class _Borrowed:
    """A file whose end is its owner's business."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.closed = False

    def read(self, size: int = -1) -> Any:
        return self._file.read(size)

    def close(self) -> None:
        self.closed = True

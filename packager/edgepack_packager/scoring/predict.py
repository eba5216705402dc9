"""Score a table with a bundle: in chunks, in constant memory, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa

from edgepack_contract import __version__
from edgepack_contract.atomic import replacing
from edgepack_contract.canonical import canonical_json
from edgepack_contract.keyring import Keyring
from edgepack_packager.errors import DataError, RecipeError
from edgepack_packager.scoring.answers import AnswerColumn, answer_columns, to_arrays
from edgepack_packager.scoring.batch_model import BatchModel, open_model, run_apart
from edgepack_packager.scoring.binding import Binding, bind_columns
from edgepack_packager.scoring.columns import make_feeds
from edgepack_packager.scoring.tables import CSV, TableReader, TableWriter, new_table, table_kind
from edgepack_runtime.inference.errors import InputError
from edgepack_runtime.inference.session import onnxruntime_version

TOLD_REFUSALS = 20

Watch = Callable[[int, float], None]
"""Told after each chunk: rows so far, and the share of the table, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a table is scored.

    Attributes:
        keep: Columns that are carried through, before the answers; ``all`` of them, or none.
        on_error: ``fail`` at the first row that cannot be scored, or give it ``null``.
        prefix: Stands before the name of every column of answers.
        variant: The variant; None for the best for this machine.
        threads: Threads of the model; None for the cores that this process may use.
        chunk_rows: Rows at a time; None for as many as fit into some tens of MB.
        overwrite: Whether an existing output is replaced.
    """

    keep: Sequence[str] | Literal["all"] = ()
    on_error: Literal["fail", "null"] = "fail"
    prefix: str = ""
    variant: str | None = None
    threads: int | None = None
    chunk_rows: int | None = None
    overwrite: bool = False


class ScoredBundle(msgspec.Struct, frozen=True, kw_only=True):
    """Who answered."""

    name: str
    version: str
    digest: str
    signed_by: str | None
    variant: str
    precision: str


class ScoredInput(msgspec.Struct, frozen=True, kw_only=True):
    """What was read: the file's name, the digest of its bytes, and the columns of each input."""

    name: str
    digest: str
    columns: dict[str, list[str]]


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A row without an answer; rows count from 1, without a csv's header."""

    row: int
    why: str


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What was done; the content of ``OUTPUT.meta.json``.

    ``refused`` rows have null as their answers, and ``refusals`` are the first of them. Times are
    UTC.
    """

    schema: Literal["edgepack-prediction/1"] = "edgepack-prediction/1"
    bundle: ScoredBundle
    input: ScoredInput
    output: str
    columns: list[str]
    rows: int
    refused: int
    refusals: list[Refused]
    started: datetime
    finished: datetime
    tools: dict[str, str]


@dataclass(slots=True)
class _Tally:
    rows: int = 0
    refused: int = 0
    refusals: list[Refused] = field(default_factory=list)

    def refuse(self, row: int, why: Callable[[], str]) -> None:
        """Count a row of the current chunk, counted from 0."""
        self.refused += 1
        if len(self.refusals) < TOLD_REFUSALS:
            self.refusals.append(Refused(row=self.rows + row + 1, why=why()))


def predict(
    bundle: Path,
    source: Path,
    output: Path,
    scoring: Scoring,
    *,
    keyring: Keyring | None = None,
    watch: Watch | None = None,
    clock: Callable[[], datetime],
) -> Prediction:
    """Score the rows of ``source`` into ``output``, and say in ``OUTPUT.meta.json`` what was done.

    The metadata are written last: where they are, the output is whole and theirs.

    Args:
        bundle: A bundle file, or the folder that ``unpack`` wrote.
        source: A csv or parquet file.
        output: A csv or parquet file.
        scoring: How.
        keyring: Who may have signed the bundle; None checks no signature.
        watch: Told after each chunk.
        clock: The time, with a zone.

    Raises:
        RecipeError: The output exists, or cannot be written.
        DataError: The table does not fit the model, or a row cannot be scored.
        BundleError: The bundle is not intact, not vouched for, or not for this machine.
        ModelError: The model fails.
    """
    started = clock()
    _check_places(source, output, overwrite=scoring.overwrite)
    threads = scoring.threads or len(os.sched_getaffinity(0))
    with (
        open_model(bundle, keyring=keyring, variant=scoring.variant, threads=threads) as model,
        TableReader(source) as reader,
    ):
        job = _Job.plan(model, reader, scoring, output)
        meta = metadata_path(output)
        meta.unlink(missing_ok=True)
        with _blamed(output):
            with new_table(output, job.schema) as writer, _unchanged(source):
                tally = job.score(writer, watch)
            made = job.told(tally, output, started=started, finished=clock())
            with replacing(meta) as part:
                part.write_bytes(canonical_json(made) + b"\n")
    return made


def metadata_path(output: Path) -> Path:
    """Where the metadata of an output are."""
    return output.with_name(f"{output.name}.meta.json")


@dataclass(frozen=True, slots=True)
class _Job:
    """One table and the model that scores it, bound to each other."""

    model: BatchModel
    reader: TableReader
    scoring: Scoring
    bindings: list[Binding]
    kept: list[str]
    answers: list[AnswerColumn]
    schema: pa.Schema
    texts: list[str]

    @classmethod
    def plan(cls, model: BatchModel, reader: TableReader, scoring: Scoring, output: Path) -> _Job:
        """Decide everything that can be decided before the first row."""
        kept = _kept(reader, scoring)
        named = () if scoring.keep == "all" else kept
        bindings = bind_columns(model.description, reader.names, kept=named)
        answers = answer_columns(model.description, model.golden.outputs, prefix=scoring.prefix)
        clash = sorted({one.name for one in answers} & set(kept))
        if clash:
            raise DataError(
                f"{', '.join(clash)} would be a kept column and an answer; give the answers "
                "another name with --prefix",
                code="column-clash",
            )
        if (
            len(answers) + len(kept) == 1
            and table_kind(output) == CSV
            and scoring.on_error == "null"
        ):
            raise DataError(
                "a csv of one column shows a missing answer as an empty line, which readers skip; "
                "carry another column through with --keep, or write a .parquet",
                code="no-null",
            )
        features = [name for one in bindings for name in one.columns]
        # a csv is parsed to the model's types, and what is carried through stays as it is written
        texts = [*features, *(kept if table_kind(output) == CSV else ())]
        fields = [reader.schema([name], texts=texts).field(0) for name in kept]
        answered = [pa.field(one.name, one.kind) for one in answers]
        return cls(
            model, reader, scoring, bindings, kept, answers,
            pa.schema([*map(_plain, fields), *answered]), list(dict.fromkeys(texts)),
        )  # fmt: skip

    def score(self, writer: TableWriter, watch: Watch | None) -> _Tally:
        """Score every row."""
        tally = _Tally()
        features = [name for one in self.bindings for name in one.columns]
        rows = self.scoring.chunk_rows or self.model.chunk_rows
        columns = list(dict.fromkeys([*features, *self.kept]))
        for batch in self.reader.batches(columns, texts=self.texts, rows=rows):
            answers = self._answer(batch, tally)
            kept = [_decoded(batch.column(name)) for name in self.kept]
            writer.write_batch(pa.RecordBatch.from_arrays([*kept, *answers], schema=self.schema))
            tally.rows += batch.num_rows
            if watch is not None:
                total = self.reader.rows
                watch(tally.rows, tally.rows / total if total else self.reader.progress)
        return tally

    def told(
        self, tally: _Tally, output: Path, *, started: datetime, finished: datetime
    ) -> Prediction:
        """What was done."""
        bundle, description = self.model.bundle, self.model.description
        return Prediction(
            bundle=ScoredBundle(
                name=bundle.name,
                version=bundle.version,
                digest=bundle.digest,
                signed_by=bundle.signed_by,
                variant=description.variant,
                precision=description.precision,
            ),
            input=ScoredInput(
                name=self.reader.path.name,
                digest=self.reader.digest,
                columns={one.spec.name: list(one.columns) for one in self.bindings},
            ),
            output=output.name,
            columns=self.schema.names,
            rows=tally.rows,
            refused=tally.refused,
            refusals=tally.refusals,
            started=started,
            finished=finished,
            tools={"edgepack": __version__, "onnxruntime": onnxruntime_version()},
        )

    def _answer(self, batch: pa.RecordBatch, tally: _Tally) -> list[pa.Array]:
        feeds, faults = make_feeds(self.model.description, self.bindings, batch)
        bad = faults.bad
        for row in np.flatnonzero(bad):
            self._refuse(tally, int(row), partial(faults.words, int(row), batch))
        good = np.flatnonzero(~bad)
        if not len(good):
            return to_arrays(self.answers, {}, bad)
        if len(good) < len(bad):
            feeds = {name: values[good] for name, values in feeds.items()}
        try:
            outputs, failed = run_apart(self.model, feeds)
        except InputError as error:
            raise DataError(f"{self.reader.path.name}: {error}", code=error.code) from error
        for place, why in failed.items():
            self._refuse(tally, int(good[place]), partial(str, why))
            bad[good[place]] = True
        return to_arrays(self.answers, outputs or {}, bad)

    def _refuse(self, tally: _Tally, row: int, why: Callable[[], str]) -> None:
        if self.scoring.on_error == "fail":
            raise DataError(
                f"{self.reader.path.name}: row {tally.rows + row + 1}: {why()}; correct it, or "
                "give such rows null with --on-error null",
                code="bad-row",
            )
        tally.refuse(row, why)


def _kept(reader: TableReader, scoring: Scoring) -> list[str]:
    if scoring.keep == "all":
        return list(reader.names)
    missing = [name for name in scoring.keep if name not in reader.names]
    if missing:
        raise DataError(
            f"{reader.path.name} has no column {', '.join(missing)} to keep; it has "
            f"{', '.join(reader.names)[:400]}",
            code="no-column",
        )
    return list(dict.fromkeys(scoring.keep))


def _plain(column: pa.Field) -> pa.Field:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return pa.field(column.name, kind)


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _check_places(source: Path, output: Path, *, overwrite: bool) -> None:
    table_kind(output)
    if not output.parent.is_dir():
        raise RecipeError(f"there is no folder {output.parent} to write into", code="no-folder")
    if not output.exists():
        return
    if source.exists() and output.samefile(source):
        raise RecipeError(f"{output} is what is to be read", code="output-exists")
    if not overwrite:
        raise RecipeError(
            f"{output} is there already; give --overwrite to replace it", code="output-exists"
        )


@contextmanager
def _blamed(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        words = error.strerror or str(error)
        raise RecipeError(f"cannot write {output}: {words}", code="cannot-write") from error


@contextmanager
def _unchanged(path: Path) -> Iterator[None]:
    """What was hashed must be what was scored."""
    try:
        before = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", code="unreadable-data") from error
    yield
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{path} was changed while it was read", code="unreadable-data")

"""``edgepack predict``: score a table, in a batch job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click

from edgepack_cli.output import emit_json, say
from edgepack_cli.stopping import stoppable
from edgepack_cli.trust import FILE, read_keyring, trust_options
from edgepack_packager.scoring.predict import Prediction, Scoring, Watch, predict

ALL = "all"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.argument("rows", type=FILE)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="A .csv or .parquet; what was done goes to OUTPUT.meta.json.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--keep", multiple=True, metavar="COLUMN",
              help="Carry it through to the output; repeatable; `all` for every one.")  # fmt: skip
@click.option("--on-error", type=click.Choice(["fail", "null"]), default="fail", show_default=True,
              help="At a row that cannot be scored.")  # fmt: skip
@click.option("--prefix", default="", help="Before the name of every column of answers.")
@click.option("--variant", help="This one; default: the best for this machine.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Of the model; default: the cores.")
@click.option("--chunk-rows", type=click.IntRange(1, 10_000_000),
              help="Rows at a time; default: some tens of MB.")  # fmt: skip
@trust_options(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the metadata as one JSON object.")
def command(
    bundle: Path, rows: Path, *, output: Path, overwrite: bool, keep: tuple[str, ...],
    on_error: Literal["fail", "null"], prefix: str, variant: str | None, threads: int | None,
    chunk_rows: int | None, keyring: Path | None, owner: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Score ROWS, a csv or parquet file, with BUNDLE, a file or the folder that `unpack` wrote.

    Columns are found by the names of the model's inputs or features. Nothing appears under OUTPUT
    until all rows are scored.

    Exit codes: 3 a row or a column does not fit, 6 the bundle does not verify, 7 it does not run
    here.

    Example: edgepack predict churn-1.4.0.edgepack june.parquet -o scores.parquet --keep id
    """
    scoring = Scoring(
        keep=ALL if ALL in keep else keep,
        on_error=on_error,
        prefix=prefix,
        variant=variant,
        threads=threads,
        chunk_rows=chunk_rows,
        overwrite=overwrite,
    )
    with stoppable() as check_stopped, _bar(check_stopped) as watch:
        made = predict(
            bundle, rows, output, scoring, keyring=read_keyring(keyring, owner), watch=watch,
            clock=lambda: datetime.now(UTC),
        )  # fmt: skip
    if as_json:
        emit_json(made)
    else:
        say(_words(made, output))


def _words(made: Prediction, output: Path) -> str:
    seconds = (made.finished - made.started).total_seconds()
    refused = f", {made.refused} of them without an answer" if made.refused else ""
    lines = [f"{output}: {made.rows} rows{refused}, in {seconds:.1f} s"]
    lines += [f"  row {one.row}: {one.why}" for one in made.refusals]
    return "\n".join(lines)


@contextmanager
def _bar(check_stopped: Callable[[], None]) -> Iterator[Watch]:
    """A progress bar on stderr, when somebody watches it."""
    if not sys.stderr.isatty():
        yield lambda _rows, _share: check_stopped()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(), TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[rows]} rows, {task.fields[rate]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, rows=0, rate="")

        def watch(rows: int, share: float) -> None:
            check_stopped()
            seconds = bar.tasks[0].elapsed or 0.0
            rate = f"{rows / seconds:,.0f} rows/s" if seconds else ""
            bar.update(task, completed=share, rows=f"{rows:,}", rate=rate)

        yield watch

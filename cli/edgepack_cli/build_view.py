"""What a person sees while a bundle is built: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from edgepack_cli.output import note
from edgepack_packager import CandidateRow, Progress
from edgepack_packager.report.table import spell_bytes

Listener = Callable[[Progress], None]

_AROUND = 6
"""Lines of the screen that are not candidates."""


@contextmanager
def watching(stream: TextIO) -> Iterator[Listener]:
    """Show progress on ``stream`` for as long as the block runs.

    In a terminal a table grows candidate by candidate, and goes away at the end: the result is
    another table, on standard output.
    """
    if not stream.isatty():
        yield lambda progress: note(line_of(progress))
        return
    screen = Screen(Console(file=stream), time.monotonic)
    with Live(screen, console=screen.console, transient=True, refresh_per_second=8):
        yield screen.take


def line_of(progress: Progress) -> str:
    """Progress as one line of a log; a candidate that was tried with its figures."""
    row = progress.tried
    if row is None:
        return str(progress)
    figures = f"{row.metric}, {spell_bytes(row.size_bytes)}, {row.latency}"
    return f"{progress.seconds:6.1f} s  {progress.step}: {row.target}: {row.name}: {figures}"


class Screen:
    """The candidates so far, and what is being done; drawn anew several times a second.

    Args:
        console: Where it is drawn.
        clock: Seconds, for the time since the build began.
    """

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self.console = console
        self._clock = clock
        self._begin = clock()
        self._doing = ""
        self._rows: list[CandidateRow] = []
        self._spinner = Spinner("dots")

    def take(self, progress: Progress) -> None:
        """Remember what happened."""
        self._doing = f"{progress.step}  {progress.detail}"
        if progress.tried is not None:
            self._rows.append(progress.tried)

    def __rich__(self) -> Group:
        """What to show now."""
        seconds = self._clock() - self._begin
        self._spinner.update(text=Text(f"{seconds:5.1f} s  {self._doing}"))
        return Group(*([self._table()] if self._rows else []), self._spinner)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for heading in ("target", "candidate", "metric (95 % interval, rows)"):
            table.add_column(heading, overflow="fold")
        for heading in ("size", "p50"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self._rows[-max(1, self.console.height - _AROUND) :]:
            cells = (row.target, row.name, row.metric, spell_bytes(row.size_bytes), row.latency)
            # names come from models: text, never markup
            table.add_row(*(Text(cell) for cell in cells))
        return table

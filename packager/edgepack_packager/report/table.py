"""The table of candidates: for a terminal, a log, and a program."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # the search tells rows of this table as it goes
    from edgepack_packager.search.trials import Outcome, Trial

WIDTH = 100
_HEAD = ("", "target", "candidate", "metric (95 % interval, rows)", "size", "p50")
_METRIC = 3


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """One line of the table.

    Attributes:
        target: For which hardware.
        name: The candidate.
        metric: Its headline figure with interval and number of rows.
        size_bytes: Of the model file.
        latency_ms: Median milliseconds of one row; None when the target is not this machine.
        chosen: Whether it ships.
        reason: Why, or why not; empty while the search runs.
    """

    target: str
    name: str
    metric: str
    size_bytes: int
    latency_ms: float | None
    chosen: bool = False
    reason: str = ""

    @property
    def latency(self) -> str:
        """The latency for people."""
        return "not measured" if self.latency_ms is None else spell_ms(self.latency_ms)


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What a build gave.

    Attributes:
        path: The bundle; None when only a check was asked for.
        digest: Its identity.
        table: Every candidate of every target.
        warnings: What the user should know.
        report: The evidence, as in ``report.json``.
    """

    path: Path | None
    digest: str
    table: tuple[CandidateRow, ...]
    warnings: tuple[str, ...]
    report: dict[str, Any]


def row_of(target: str, trial: Trial) -> CandidateRow:
    """The line of a candidate that nothing was decided of yet."""
    return CandidateRow(
        target=target,
        name=trial.name,
        metric=trial.made.figures.text(),
        size_bytes=trial.made.size_bytes,
        latency_ms=None if trial.latency is None else trial.latency.p50_ms,
    )


def table_of(outcomes: Sequence[Outcome]) -> tuple[CandidateRow, ...]:
    """A line for every candidate of every target, in the order they were tried."""
    return tuple(
        CandidateRow(
            target=outcome.target.name,
            name=trial.name,
            metric=trial.made.figures.text(),
            size_bytes=trial.made.size_bytes,
            latency_ms=None if trial.latency is None else trial.latency.p50_ms,
            chosen=trial.name == outcome.choice.chosen,
            reason=outcome.choice.reasons[trial.name],
        )
        for outcome in outcomes
        for trial in outcome.trials
    )


def render_table(result: BuildResult, *, width: int = WIDTH) -> str:
    """The candidates as aligned plain text of at most ``width`` columns, with the reasons below."""
    cells = [_HEAD, *(_cells(row) for row in result.table)]
    lines = _fitted([list(line) for line in cells], width)
    reasons = [_wrapped(row, width) for row in result.table]
    return "\n".join([*lines, "", *reasons])


def spell_ms(milliseconds: float) -> str:
    """A latency for people: microseconds where they say more."""
    if milliseconds < 10:
        return f"{milliseconds * 1000:.0f} us"
    return f"{milliseconds:.1f} ms"


def spell_bytes(size: float) -> str:
    """A size for people: ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _cells(row: CandidateRow) -> tuple[str, ...]:
    mark = "*" if row.chosen else ""
    return mark, row.target, row.name, row.metric, spell_bytes(row.size_bytes), row.latency


def _fitted(lines: list[list[str]], width: int) -> list[str]:
    """Aligned lines; a metric that is too long continues on lines of its own."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(_HEAD))]
    others = sum(widths) - widths[_METRIC] + 2 * (len(widths) - 1)
    widths[_METRIC] = min(widths[_METRIC], max(width - others, len(_HEAD[_METRIC])))
    text = []
    for line in lines:
        first, *more = textwrap.wrap(line[_METRIC], widths[_METRIC]) or [""]
        text.append(_aligned([*line[:_METRIC], first, *line[_METRIC + 1 :]], widths))
        text += [_aligned(["", "", "", part, "", ""], widths) for part in more]
    return text


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(size) for cell, size in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()


def _wrapped(row: CandidateRow, width: int) -> str:
    return textwrap.fill(
        f"{row.target} {row.name}: {row.reason}",
        width,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )

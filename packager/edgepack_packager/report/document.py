"""The table of candidates, and the evidence of a build as JSON and as one HTML page."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgepack_packager.search.trials import Outcome, Trial
from edgepack_packager.targets import this_hardware


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
        reason: Why, or why not.
    """

    target: str
    name: str
    metric: str
    size_bytes: int
    latency_ms: float | None
    chosen: bool
    reason: str


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


def render_table(result: BuildResult) -> str:
    """The candidates as aligned plain text, with the reasons below."""
    head = ("", "target", "candidate", "metric (95 % interval, rows)", "size", "latency")
    lines = [head, *(_cells(row) for row in result.table)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    reasons = [f"{row.target} {row.name}: {row.reason}" for row in result.table]
    return "\n".join([*text, "", *reasons])


def report_of(
    *,
    name: str,
    version: str,
    outcomes: Sequence[Outcome],
    warnings: Sequence[str],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The evidence: everything that was measured, on which machine.

    Args:
        name: The bundle's name.
        version: The bundle's version.
        outcomes: What was tried and chosen.
        warnings: What the user should know.
        seconds: Time by step.
    """
    return {
        "schema": "edgepack-report/1",
        "bundle": {"name": name, "version": version},
        "host": msgspec.to_builtins(this_hardware()),
        "seconds": {step: round(value, 3) for step, value in seconds.items()},
        "warnings": list(warnings),
        "targets": [_target_report(outcome) for outcome in outcomes],
    }


def to_json(report: dict[str, Any]) -> bytes:
    """The report as readable JSON."""
    return (json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def to_html(report: dict[str, Any]) -> bytes:
    """The report as one page that needs nothing else."""
    bundle = report["bundle"]
    title = html.escape(f"{bundle['name']} {bundle['version']}")
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style>",
        f"<h1>{title}</h1>",
        f"<p>Built on {html.escape(_host(report['host']))}.</p>",
        *(f"<p class=warning>{html.escape(text)}</p>" for text in report["warnings"]),
        *(_target_html(target) for target in report["targets"]),
    ]
    return ("\n".join(parts) + "\n").encode()


def _host(host: dict[str, Any]) -> str:
    return f"{host['model']}, {host['cores']} cores, onnxruntime {host['onnxruntime']}"


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;"
    "color:#1a1a1a;background:#fff}table{border-collapse:collapse;width:100%}"
    "th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    "tr.chosen{background:#e8f3e8}.warning{border-left:4px solid #c80;padding-left:.6rem}"
)


def _cells(row: CandidateRow) -> tuple[str, ...]:
    latency = "not measured" if row.latency_ms is None else f"{row.latency_ms * 1000:.0f} us"
    mark = "*" if row.chosen else ""
    return mark, row.target, row.name, row.metric, f"{row.size_bytes:,} B", latency


def _target_report(outcome: Outcome) -> dict[str, Any]:
    return {
        "target": outcome.target.name,
        "title": outcome.target.title,
        "measured_here": outcome.measured_here,
        "chosen": outcome.choice.chosen,
        "candidates": [_trial_report(trial, outcome) for trial in outcome.trials],
    }


def _trial_report(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    figures = trial.made.figures
    return {
        "name": trial.name,
        "plan": msgspec.to_builtins(trial.made.plan),
        "size_bytes": trial.made.size_bytes,
        "size_ratio": round(trial.made.size_bytes / outcome.fp32.made.size_bytes, 4),
        "latency_ms": None if trial.latency is None else asdict(trial.latency),
        "memory_bytes": trial.memory_bytes,
        "headline": figures.text(),
        "metrics": msgspec.to_builtins(figures.metrics("evaluation")),
        "gates": [
            {"gate": v.gate.name, "metric": v.gate.metric, "outcome": v.outcome, "words": v.words}
            for v in trial.verdicts
        ],
        "chosen": trial.name == outcome.choice.chosen,
        "reason": outcome.choice.reasons[trial.name],
    }


def _target_html(target: dict[str, Any]) -> str:
    rows = "\n".join(_candidate_html(item) for item in target["candidates"])
    return (
        f"<h2>{html.escape(target['title'])} ({html.escape(target['target'])})</h2>\n"
        "<table><tr><th>candidate<th>metric (95 % interval, rows)<th>size<th>of fp32"
        f"<th>p50<th>p99<th>reason</tr>\n{rows}\n</table>"
    )


def _candidate_html(item: dict[str, Any]) -> str:
    latency = item["latency_ms"]
    times = [f"{latency[key] * 1000:.0f} us" if latency else "not measured" for key in _TIMES]
    numbers = [f"{item['size_bytes']:,} B", f"{item['size_ratio']:.2f}x", *times]
    style = " class=chosen" if item["chosen"] else ""
    return (
        f"<tr{style}><td>{html.escape(item['name'])}<td>{html.escape(item['headline'])}"
        + "".join(f"<td class=n>{text}" for text in numbers)
        + f"<td>{html.escape(item['reason'])}</tr>"
    )


_TIMES = ("p50_ms", "p99_ms")

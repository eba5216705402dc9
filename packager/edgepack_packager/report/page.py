"""``report.html``: one page that needs nothing else, for a screen, a phone and paper.

It has no script and loads nothing; its content security policy allows its own style and no more.
Sources: W3C Content Security Policy 3 (hashes of inline styles), WCAG 2.2 (1.4.1 and 1.4.3: colour
is never the only sign, text stands out by 4.5 to 1 or more in both schemes).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from xml.etree.ElementTree import Element

from edgepack_contract.description import Metric
from edgepack_packager.report.markup import Child, node, to_text
from edgepack_packager.report.pictures import (
    confusion_map,
    layer_errors,
    legend,
    losses,
    mark_of,
    size_and_loss,
    size_and_speed,
    slice_figures,
)
from edgepack_packager.report.schema import (
    CandidateReport,
    GateReport,
    Interval,
    Report,
    TargetReport,
    WorstReport,
)
from edgepack_packager.report.table import spell_bytes, spell_ms

OUTCOMES = {
    "pass": "✓ ok",
    "fail": "✗ failed",
    "inconclusive": "? not proven",
    "not_measured": "- not measured",
}
_NOT_MEASURED = "not measured"
_FIGURES = "figures (95 % interval, rows)"
_MOST_PAIRS = 30
_MOST_ROWS = 10


def to_html(report: Report) -> bytes:
    """The report as a page."""
    title = f"{report.bundle.name} {report.bundle.version}"
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", http_equiv="Content-Security-Policy", content=_policy()),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="color-scheme", content="light dark"),
        node("title", f"{title}: build report"),
        node("style", _style()),
    )
    body = node("body", _header(report, title), _main(report))
    return to_text(node("html", head, body, lang="en"))


@cache
def _style() -> str:
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _header(report: Report, title: str) -> Element:
    digest = report.bundle.digest
    return node(
        "header",
        node("h1", title),
        node("p", node("code", digest), class_="digest") if digest else node("p", "not written"),
        node("ul", *(_verdict(target) for target in report.targets), class_="verdicts"),
    )


def _verdict(target: TargetReport) -> Element:
    winner = target.winner
    open_gates = [gate for gate in winner.gates if gate.outcome != "pass"]
    gates = "every gate ok" if winner.gates and not open_gates else _open_gates(open_gates)
    share = "" if winner.size_ratio == 1 else f", {winner.size_ratio:.2f} of the size in float"
    return node(
        "li",
        node("strong", target.target),
        f": {winner.name}, {spell_bytes(winner.size_bytes)}{share}; {gates}",
    )


def _open_gates(gates: Sequence[GateReport]) -> str:
    named = (f"{gate.gate} {OUTCOMES[gate.outcome][2:]}" for gate in gates)
    return ", ".join(named) or "no gate was asked for"


def _main(report: Report) -> Element:
    return node(
        "main",
        *_warnings(report.warnings),
        *(_target(target) for target in report.targets),
        _section("How it was made", _facts(report)),
        _section("How to build it again", *_repeat(report)),
    )


def _section(title: str, *parts: Child) -> Element:
    return node("section", node("h2", title), *parts)


def _warnings(texts: Sequence[str]) -> list[Element]:
    if not texts:
        return []
    items = (node("li", text) for text in texts)
    return [node("aside", node("h2", "Warnings"), node("ul", *items), class_="warnings")]


def _target(target: TargetReport) -> Element:
    pictures = [size_and_speed(target), size_and_loss(target), losses(target)]
    marks = legend([mark_of(item) for item in target.candidates])
    return _section(
        f"{target.target}: {target.title}",
        node("p", f"{target.architecture}; {_measured(target)}.", class_="muted"),
        _candidates(target),
        node("p", marks, class_="legend"),
        _row([picture for picture in pictures if picture is not None]),
        *(_details(number, item) for number, item in enumerate(target.candidates, 1)),
    )


def _measured(target: TargetReport) -> str:
    memory = any(item.memory_bytes is not None for item in target.candidates)
    what = "latency and memory" if memory else "latency"
    more = "" if memory else "; memory is not measured, since nothing asks for it"
    if target.measured_here:
        return f"{what} on this machine{more}"
    if target.measured_on is not None:
        return f"{what} as measured on {target.measured_on.model}{more}"
    return "latency and memory are not measured: the device's own probe judges them"


def _row(pictures: Sequence[Element]) -> Element:
    return node("div", *(_figure(picture) for picture in pictures), class_="pictures")


def _figure(picture: Element) -> Element:
    caption = picture.findtext("title") or ""
    return node("figure", node("figcaption", caption), picture)


def _candidates(target: TargetReport) -> Element:
    """The table of candidates; a column that nobody has a figure for is left out."""
    columns = [_candidate_cells(number, item) for number, item in enumerate(target.candidates, 1)]
    shown = [name for name in columns[0] if any(cells[name] != "" for cells in columns)]
    rows: list[tuple[list[Child], str]] = [
        (
            [_NOT_MEASURED if cells[name] == "" else cells[name] for name in shown],
            "chosen" if item.chosen else mark_of(item),
        )
        for cells, item in zip(columns, target.candidates, strict=True)
    ]
    words = {"candidate", _FIGURES, "why"}
    numbers = [place for place, name in enumerate(shown) if name not in words]
    return _table(shown, rows, numbers=numbers, brief=False)


def _candidate_cells(number: int, item: CandidateReport) -> dict[str, Child]:
    """Cells by heading; empty where something was not measured."""
    times, memory = item.latency_ms, item.memory_bytes
    return {
        "#": str(number),
        "candidate": node("strong", f"◆ {item.name}") if item.chosen else item.name,
        _FIGURES: item.headline,
        "size": spell_bytes(item.size_bytes),
        "of float": f"{item.size_ratio:.2f}x",
        "p50": "" if times is None else spell_ms(times.p50_ms),
        "p95": "" if times is None else spell_ms(times.p95_ms),
        "p99": "" if times is None else spell_ms(times.p99_ms),
        "memory": "" if memory is None else spell_bytes(memory),
        "why": item.reason,
    }


def _table(
    head: Sequence[str],
    rows: Sequence[tuple[Sequence[Child], str]],
    *,
    numbers: Collection[int] = (),
    brief: bool = True,
) -> Element:
    """A table that scrolls by itself where it is wider than the screen; rows have a class."""
    lines = [
        node("tr", *_table_cells(cells, numbers), class_=kind or False) for cells, kind in rows
    ]
    return node(
        "div",
        node(
            "table",
            node("thead", node("tr", *_table_head(head, numbers))),
            node("tbody", *lines),
        ),
        class_="wide brief" if brief else "wide",
        tabindex="0",
    )


def _table_head(head: Sequence[str], numbers: Collection[int]) -> list[Element]:
    return [
        node("th", name, scope="col", class_="n" if place in numbers else False)
        for place, name in enumerate(head)
    ]


def _table_cells(cells: Sequence[Child], numbers: Collection[int]) -> list[Element]:
    return [
        node("td", cell, class_="n" if place in numbers else False)
        for place, cell in enumerate(cells)
    ]


def _details(number: int, item: CandidateReport) -> Element:
    pictures = (slice_figures(item), layer_errors(item), confusion_map(item))
    shown = [picture for picture in pictures if picture is not None]
    return node(
        "details",
        node("summary", f"{number} {item.name}: gates, rows, layers"),
        _gates(item.gates),
        *([_row(shown)] if shown else []),
        node("div", *_metrics(item), *_worst(item), *_confusions(item), class_="tables"),
        _plan(item),
        open=item.chosen,
    )


def _gates(gates: Sequence[GateReport]) -> Element:
    rows = [
        ([gate.gate, gate.metric, OUTCOMES[gate.outcome], gate.words], f"gate-{gate.outcome}")
        for gate in gates
    ]
    return _table(("gate", "of", "outcome", "in words"), rows)


def _metrics(item: CandidateReport) -> list[Element]:
    rows: list[tuple[list[Child], str]] = [(_metric_cells(one), "") for one in item.metrics]
    if item.loss is not None:
        rows.append(([f"{item.loss_metric} lost", *_interval_cells(item.loss), "source"], ""))
    head = ("figure", "value", "95 % interval", "n", "against")
    return [_titled("Figures", _table(head, rows, numbers={1, 2, 3}))] if rows else []


def _metric_cells(metric: Metric) -> list[Child]:
    figure = Interval(value=metric.value, low=metric.low, high=metric.high, n=metric.n)
    return [metric.name, *_interval_cells(figure), metric.reference or "truth"]


def _interval_cells(figure: Interval) -> list[Child]:
    value, low, high = (
        "∞" if one is None else f"{one:z.4f}" for one in (figure.value, figure.low, figure.high)
    )
    return [value, f"{low} to {high}", str(figure.n)]


def _worst(item: CandidateReport) -> list[Element]:
    rows = [(_worst_cells(row), "") for row in item.worst[:_MOST_ROWS]]
    head = ("row of the data", "truth", "source", "candidate", "distance")
    more = f" ({len(rows)} of {len(item.worst)}; report.json has all)"
    title = f"Worst rows{more if len(rows) < len(item.worst) else ''}"
    return [_titled(title, _table(head, rows, numbers={0, 4}))] if rows else []


def _worst_cells(row: WorstReport) -> list[Child]:
    distance = "∞" if row.distance is None else f"{row.distance:.4g}"
    return [str(row.row), row.truth or "", row.source, row.candidate, distance]


def _confusions(item: CandidateReport) -> list[Element]:
    rows = [([pair.source, pair.candidate, str(pair.n)], "") for pair in item.confusions]
    if not rows:
        return []
    title = f"Changed labels (rows: {sum(pair.n for pair in item.confusions)})"
    head = ("source", "candidate", "rows")
    return [_titled(title, _table(head, rows[:_MOST_PAIRS], numbers={2}))]


def _titled(title: str, table: Element) -> Element:
    return node("div", node("h3", title), table)


def _plan(item: CandidateReport) -> Element:
    told = ["precision"] if item.plan.get("precision") == "fp32" else item.plan.keys() - {"name"}
    parts = [
        f"{key} {_spelt(item.plan[key])}" for key in item.plan if key in told and item.plan[key]
    ]
    if not item.judged_on_all:
        parts.append("given up on the first rows")
    if item.ships_as is not None:
        parts.append(f"ships as variant {item.ships_as}")
    if item.quantized_share:
        parts.append(f"{item.quantized_share:.0%} of the weight bytes are quantized")
    return node("p", "Plan: ", "; ".join(parts), ".", class_="muted")


def _spelt(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value)
    return "yes" if value is True else str(value)


def _facts(report: Report) -> Element:
    host, data = report.host, report.data
    rows = (
        f"{data.calibration_rows} to calibrate, {data.evaluation_rows} to judge, "
        f"{data.reference_rows} for the drift reference"
    )
    known = ", labels known" if data.labelled else ", no labels"
    facts = {
        "source": f"{report.source.framework}, {report.source.task}",
        "digest of the source": report.source.digest,
        "passes": ", ".join(report.source.passes) or "none",
        "rows": f"{rows}{known}{', some values missing' if data.missing else ''}",
        **{f"data: {name}": text for name, text in data.digests.items()},
        "machine": f"{host.model}, {host.cores} cores, {spell_bytes(host.memory_bytes)} of memory",
        "processor features": ", ".join(host.features) or "none",
        "tools": ", ".join(f"{name} {version}" for name, version in sorted(report.tools.items())),
        "seconds": ", ".join(f"{step} {value:.1f}" for step, value in report.seconds.items()),
    }
    pairs = [part for name, text in facts.items() for part in (node("dt", name), node("dd", text))]
    return node("dl", *pairs)


def _repeat(report: Report) -> list[Element]:
    return [
        node("pre", node("code", report.repeat.command)),
        node("p", "The same as a recipe file, for edgepack build --recipe recipe.toml:"),
        node("pre", node("code", report.repeat.recipe)),
    ]

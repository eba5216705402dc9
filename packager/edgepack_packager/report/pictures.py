"""The pictures of a report: what each shows of a candidate, a target, or both."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from edgepack_packager.report.charts import (
    Bar,
    Mark,
    Point,
    Span,
    bars,
    heat_map,
    intervals,
    scatter,
)
from edgepack_packager.report.schema import CandidateReport, Interval, SliceReport, TargetReport
from edgepack_packager.report.table import spell_bytes, spell_ms

MOST_LAYERS = 20
MOST_CLASSES = 12
MOST_SLICES = 40

MARKS: dict[Mark, str] = {
    "chosen": "chosen",
    "inside": "inside all gates",
    "unproven": "not proven or not measured",
    "outside": "outside a gate",
}


def mark_of(candidate: CandidateReport) -> Mark:
    """How a candidate is drawn."""
    if candidate.chosen:
        return "chosen"
    if candidate.outside:
        return "outside"
    passed = all(gate.outcome == "pass" for gate in candidate.gates)
    return "inside" if passed else "unproven"


def size_and_speed(target: TargetReport) -> Element | None:
    """Size against latency of all candidates; None where nothing was timed."""
    points = [
        Point(
            x=item.size_bytes / _unit(target)[1],
            y=item.latency_ms.p50_ms,
            label=str(number),
            words=_words(item),
            mark=mark_of(item),
        )
        for number, item in enumerate(target.candidates, 1)
        if item.latency_ms is not None
    ]
    if not points:
        return None
    return scatter(
        points,
        title=f"{target.target}: size and latency of every candidate",
        x_name=f"size of the model, {_unit(target)[0]}",
        y_name="latency of one row (p50), ms",
    )


def size_and_loss(target: TargetReport) -> Element | None:
    """Size against the share lost; None without rows, and where no candidate loses anything."""
    points = [
        Point(
            x=item.size_bytes / _unit(target)[1],
            y=max(item.loss.value, 0.0) * 100,
            label=str(number),
            words=_words(item),
            mark=mark_of(item),
        )
        for number, item in enumerate(target.candidates, 1)
        if item.loss is not None and item.loss.value is not None
    ]
    if not any(point.y for point in points):
        return None
    return scatter(
        points,
        title=f"{target.target}: size and loss of every candidate",
        x_name=f"size of the model, {_unit(target)[0]}",
        y_name=f"{target.winner.loss_metric} lost against the source, % (0 when none is)",
    )


def losses(target: TargetReport) -> Element | None:
    """What every candidate loses, with intervals and the gate; None without rows."""
    spans = [
        _span(f"{number} {item.name}", item.loss, mark=mark_of(item))
        for number, item in enumerate(target.candidates, 1)
    ]
    drawn = [span for span in spans if span is not None]
    if not drawn:
        return None
    gates = [gate for gate in target.winner.gates if gate.gate == "max-drop"]
    limit = gates[0].threshold if gates else None
    return intervals(
        drawn,
        title=f"{target.target}: {target.winner.loss_metric} lost against the source, by candidate",
        limit=limit,
        limit_words=f"at most {limit:.2%}" if limit is not None else "",
    )


def layer_errors(candidate: CandidateReport) -> Element | None:
    """The most sensitive nodes: longer bars for more noise; None without."""
    known = [layer for layer in candidate.layers if layer.sqnr_db is not None]
    if not known:
        return None
    worst = sorted(known, key=lambda layer: (layer.sqnr_db or 0.0, layer.node))[:MOST_LAYERS]
    rows = [
        Bar(
            label=f"{layer.node} ({layer.operator})",
            length=_noise(layer.sqnr_db or 0.0),
            text=f"{layer.sqnr_db:.1f} dB",
            words=f"{layer.sqnr_db:.1f} dB, {spell_bytes(layer.weight_bytes)} of weights",
        )
        for layer in worst
    ]
    return bars(rows, title=f"{candidate.name}: error by layer, the most sensitive first")


def confusion_map(candidate: CandidateReport) -> Element | None:
    """Labels that changed, from the source's to the candidate's; None when a list says more."""
    pairs = candidate.confusions
    names = sorted({name for pair in pairs for name in (pair.source, pair.candidate)}, key=_numeric)
    if not pairs or len(names) > MOST_CLASSES:
        return None
    place = {name: number for number, name in enumerate(names)}
    cells = {(place[pair.source], place[pair.candidate]): pair.n for pair in pairs}
    return heat_map(names, cells, title=f"{candidate.name}: rows by changed label")


def slice_figures(candidate: CandidateReport) -> Element | None:
    """The loss of every slice beside that of all rows; the figure itself where there is none."""
    lossy = any(item.loss is not None for item in candidate.slices)
    shown = sorted(candidate.slices, key=lambda item: _worst_first(item, lossy=lossy))[:MOST_SLICES]
    spans = [
        _span(f"{item.column} = {item.value}", item.loss if lossy else item.estimate, mark="inside")
        for item in shown
    ]
    drawn = [span for span in spans if span is not None]
    if not drawn:
        return None
    what = f"{candidate.loss_metric} lost" if lossy else candidate.slices[0].metric
    whole = candidate.loss.value if lossy and candidate.loss else None
    return intervals(
        drawn,
        title=f"{candidate.name}: {what} by slice",
        limit=whole,
        limit_words="all rows" if whole is not None else "",
    )


def _worst_first(item: SliceReport, *, lossy: bool) -> tuple[float, str, str]:
    figure = item.loss if lossy else item.estimate
    value = 0.0 if figure is None or figure.value is None else figure.value
    return (-value if lossy else value), item.column, item.value


def _span(label: str, figure: Interval | None, *, mark: Mark) -> Span | None:
    if figure is None or figure.value is None or figure.low is None or figure.high is None:
        return None
    words = f"{figure.value:.2%} ({figure.low:.2%} to {figure.high:.2%}), n = {figure.n}"
    return Span(
        label=label,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        text=f"{figure.value:.2%}, n = {figure.n}",
        words=f"{label}: {words}",
        mark=mark,
    )


def _words(item: CandidateReport) -> str:
    latency = "not measured" if item.latency_ms is None else spell_ms(item.latency_ms.p50_ms)
    size = spell_bytes(item.size_bytes)
    return (
        f"{item.name} ({MARKS[mark_of(item)]}): {size}, {latency}, {item.headline}. {item.reason}"
    )


def _unit(target: TargetReport) -> tuple[str, float]:
    largest = max(item.size_bytes for item in target.candidates)
    return ("MiB", 1024.0**2) if largest >= 1024**2 else ("KiB", 1024.0)


def _noise(decibels: float) -> float:
    """The length of a bar: longer for more noise; 0 at 60 dB, where int8 is as good as float."""
    return max(60.0 - decibels, 0.0)


def _numeric(name: str) -> tuple[int, float | str]:
    """Classes that are numbers in the order of numbers, the others after them."""
    try:
        return 0, float(name)
    except ValueError:
        return 1, name


def legend(used: Sequence[Mark]) -> str:
    """What the shapes mean, in words."""
    shapes = {"chosen": "◆", "inside": "●", "unproven": "○", "outside": "✕"}
    return "  ".join(f"{shapes[mark]} {words}" for mark, words in MARKS.items() if mark in used)

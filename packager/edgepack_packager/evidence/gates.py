"""Gates: pure judgements of figures against limits. A gate without data never passes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edgepack_packager.evidence.intervals import Estimate

Outcome = Literal["pass", "fail", "inconclusive", "not_measured"]
Severity = Literal["accuracy", "budget"]

FURTHEST = 1e9
"""How far outside what cannot be judged is: finite, since reports hold no infinity."""

_NO_ROWS = "there are no rows to judge it on"


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit.

    Attributes:
        name: ``max-drop``, ``min-metric``, ``max-metric``, ``not-worse-than``, ``max-latency``,
            ``max-size`` or ``max-memory``.
        severity: Whether accuracy or a budget is judged; they fail with different exit codes.
        metric: What is judged.
        threshold: The limit.
        unit: Of the limit.
    """

    name: str
    severity: Severity
    metric: str
    threshold: float
    unit: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one gate says of one candidate.

    Attributes:
        gate: The limit.
        outcome: The judgement.
        words: The judgement with its numbers, for people.
        excess: How far outside as a share of the limit, to find the nearest miss; 0 inside.
    """

    gate: Gate
    outcome: Outcome
    words: str
    excess: float = 0.0


def judge_loss(gate: Gate, loss: Estimate | None, *, rows: int | None) -> Verdict:
    """Judge the share lost against the source model: the whole interval must be inside.

    Args:
        gate: The limit.
        loss: The share lost; None when there were no rows.
        rows: Rows that would prove it, when it is inconclusive and that is known.
    """
    if loss is None:
        return Verdict(gate, "not_measured", _NO_ROWS)
    limit = gate.threshold
    seen = f"{gate.metric} loss {loss}"
    excess = max(loss.high - limit, 0.0) / limit
    if loss.high <= limit:
        return Verdict(gate, "pass", f"{seen} within {limit:.4g}")
    if loss.value > limit:
        return Verdict(gate, "fail", f"{seen} is over {limit:.4g}", excess)
    more = f"; about {rows} rows would prove it" if rows else ""
    return Verdict(gate, "inconclusive", f"{seen} is not proven within {limit:.4g}{more}", excess)


def judge_minimum(gate: Gate, figure: Estimate | None) -> Verdict:
    """Judge a metric that must reach a value: proven when the whole interval does."""
    if figure is None:
        return Verdict(gate, "not_measured", _NO_ROWS)
    least = gate.threshold
    seen = f"{gate.metric} {figure}"
    if figure.low >= least:
        return Verdict(gate, "pass", f"{seen} reaches {least:g}")
    if figure.value < least:
        excess = (least - figure.value) / (abs(least) or 1.0)
        return Verdict(gate, "fail", f"{seen} is under {least:g}", excess)
    words = f"{seen} is not proven to reach {least:g}"
    return Verdict(gate, "inconclusive", words + _rows_wanted(figure, figure.low, least))


def judge_maximum(gate: Gate, figure: Estimate | None) -> Verdict:
    """Judge an error that must not pass a value: proven when the whole interval does not."""
    if figure is None:
        return Verdict(gate, "not_measured", _NO_ROWS)
    most = gate.threshold
    seen = f"{gate.metric} {figure}"
    if figure.high <= most:
        return Verdict(gate, "pass", f"{seen} within {most:g}")
    if figure.value > most:
        excess = (figure.value - most) / (abs(most) or 1.0)
        return Verdict(gate, "fail", f"{seen} is over {most:g}", excess)
    words = f"{seen} is not proven within {most:g}"
    return Verdict(gate, "inconclusive", words + _rows_wanted(figure, figure.high, most))


def judge_failure(gate: Gate, failure: str) -> Verdict:
    """Answers that are no answers are outside of every gate, further than any other."""
    return Verdict(gate, "fail", failure, FURTHEST)


def _rows_wanted(figure: Estimate, end: float, limit: float) -> str:
    """The rows whose interval would end at ``limit``: its width shrinks with their root.

    At the very end of its range a share has no spread, and its interval shrinks with the rows.
    """
    gap, half = abs(figure.value - limit), abs(figure.value - end)
    if gap == 0 or not math.isfinite(half):
        return ""
    times = half / gap if figure.value in {0.0, 1.0} else (half / gap) ** 2
    return f"; about {math.ceil(figure.n * times)} rows would prove it"


def judge_budget(gate: Gate, value: float | None) -> Verdict:
    """Judge a measured cost; one that was not measured is left to the device's own probe."""
    limit = gate.threshold
    most = _cost(limit, gate.unit)
    if value is None:
        words = f"{gate.metric} at most {most}: not measured here, enforced on the device"
        return Verdict(gate, "not_measured", words)
    seen = f"{gate.metric} {_cost(value, gate.unit)}"
    if value <= limit:
        return Verdict(gate, "pass", f"{seen} within {most}")
    words = f"{seen} is over {most}"
    return Verdict(gate, "fail", words, (value - limit) / limit)


def _cost(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:.4g} {unit}"

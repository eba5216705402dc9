"""``report.json``: everything a build tried, measured and decided, as ``edgepack-report/1``.

The report is evidence: it travels beside the bundle's identity, never under it. A number that could
not be computed is null, which is never zero.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edgepack_contract.description import Metric
from edgepack_contract.hardware import Hardware

SCHEMA: Literal["edgepack-report/1"] = "edgepack-report/1"

Status = Literal["pass", "fail", "inconclusive", "not_measured"]


class BundleName(msgspec.Struct, frozen=True, kw_only=True):
    """Which bundle; ``digest`` is its identity."""

    name: str
    version: str
    digest: str | None = None


class SourceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The model as it came.

    Attributes:
        digest: Of its file.
        framework: What made it, with the version.
        task: What its outputs are taken for.
        passes: What was done to its graph, in order.
    """

    digest: str
    framework: str
    task: str
    passes: tuple[str, ...]


class DataFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The rows.

    Attributes:
        digests: Digests of their files by part, and how they were split.
        calibration_rows: Rows that ranges were measured on; 0 without.
        evaluation_rows: Rows that candidates were judged on; 0 without.
        reference_rows: Rows that the drift reference was counted from; 0 without.
        labelled: Whether the truth of the evaluation rows is known.
        missing: Whether any value is NaN or infinite.
    """

    digests: dict[str, str]
    calibration_rows: int
    evaluation_rows: int
    reference_rows: int
    labelled: bool
    missing: bool


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A figure, the ends of its 95 % interval, and the number of rows behind it."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class GateReport(msgspec.Struct, frozen=True, kw_only=True):
    """A limit and what it says of a candidate; ``excess`` is how far outside, as a share of it."""

    gate: str
    metric: str
    severity: Literal["accuracy", "budget"]
    threshold: float
    unit: str
    outcome: Status
    words: str
    excess: float | None


class SliceReport(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of the rows with one value in one column."""

    column: str
    value: str
    n: int
    metric: str
    estimate: Interval | None
    loss: Interval | None


class WorstReport(msgspec.Struct, frozen=True, kw_only=True):
    """A row on which the candidate is furthest from the source; ``row`` is where in the data."""

    row: int
    truth: str | None
    source: str
    candidate: str
    distance: float | None


class ConfusionReport(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows the source calls ``source`` and the candidate ``candidate``."""

    source: str
    candidate: str
    n: int


class LayerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What int8 does to one node alone: signal to noise in dB (less is worse), and its weights."""

    node: str
    operator: str
    sqnr_db: float | None
    weight_bytes: int


class LatencyReport(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of one row: half, 95 and 99 of 100 runs took at most so long."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


class CandidateReport(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate for one target.

    Attributes:
        name: In the table.
        plan: Everything that decides its graph.
        size_bytes: Of the model files.
        size_ratio: Of the size in float.
        quantized_share: Of the bytes of float weights, the share that is quantized.
        latency_ms: Null when it was not timed: the target is not this machine.
        memory_bytes: Peak memory of a process that serves it; null when it was not measured.
        headline: Its first figures, in words.
        metrics: All its figures, each with n and interval.
        loss_metric: What ``loss`` is a loss of.
        loss: The share lost against the source model; null without rows.
        slices: Its figures by the values of columns.
        worst: The rows that are furthest off, the worst first.
        confusions: Pairs of different labels, the most frequent first.
        layers: Per node, the most sensitive first.
        gates: What every gate says.
        judged_on_all: Whether it saw all rows; what is hopeless on the first ones is given up.
        ships_as: The variant of the bundle that it becomes; null when it stays behind.
        chosen: Whether it is the best for its target.
        reason: Why, or why not.
    """

    name: str
    plan: dict[str, Any]
    size_bytes: int
    size_ratio: float
    quantized_share: float
    latency_ms: LatencyReport | None
    memory_bytes: int | None
    headline: str
    metrics: tuple[Metric, ...]
    loss_metric: str
    loss: Interval | None
    slices: tuple[SliceReport, ...]
    worst: tuple[WorstReport, ...]
    confusions: tuple[ConfusionReport, ...]
    layers: tuple[LayerReport, ...]
    gates: tuple[GateReport, ...]
    judged_on_all: bool
    ships_as: str | None
    chosen: bool
    reason: str

    @property
    def outside(self) -> bool:
        """Whether a gate forbids it."""
        return any(gate.outcome == "fail" for gate in self.gates)


class TargetReport(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of hardware: what was tried for it and what ships.

    Attributes:
        target: The name of its device config.
        title: The same in words.
        architecture: As OCI names it.
        features: What its processor must have.
        measured_on: The machine that latency and memory were measured on; null for none.
        measured_here: Whether that is the machine that built.
        chosen: The name of the best candidate.
        candidates: Everything that was tried, in that order.
    """

    target: str
    title: str
    architecture: str
    features: tuple[str, ...]
    measured_on: Hardware | None
    measured_here: bool
    chosen: str
    candidates: tuple[CandidateReport, ...]

    @property
    def winner(self) -> CandidateReport:
        """The candidate that ships."""
        return next(item for item in self.candidates if item.chosen)


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """How to build it again: a command, and the same as a recipe file; names of files only."""

    command: str
    recipe: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence of a build.

    Attributes:
        schema: The version of this form.
        bundle: Which bundle.
        host: The machine that built and measured.
        tools: Versions of the tools.
        source: The model as it came.
        data: The rows.
        seconds: Time by step.
        warnings: What the user should know, known pitfalls among it.
        targets: What was tried and chosen, by target.
        repeat: How to build it again.
    """

    schema: Literal["edgepack-report/1"] = SCHEMA
    bundle: BundleName
    host: Hardware
    tools: dict[str, str]
    source: SourceFacts
    data: DataFacts
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    targets: tuple[TargetReport, ...]
    repeat: Repeat


def to_json(report: Report) -> bytes:
    """The report as readable JSON; what is not finite becomes null."""
    return msgspec.json.format(msgspec.json.encode(report, order="sorted"), indent=2) + b"\n"

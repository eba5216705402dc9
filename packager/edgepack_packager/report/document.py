"""The evidence of a build, gathered from what was tried and chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import msgspec

from edgepack_packager.data.rows import Feeds
from edgepack_packager.evidence.figures import Figures
from edgepack_packager.evidence.gates import Verdict
from edgepack_packager.evidence.intervals import Estimate
from edgepack_packager.lock import tool_versions
from edgepack_packager.quantize.share import quantized_share
from edgepack_packager.recipe import Recipe
from edgepack_packager.report.repeat import repeat_of
from edgepack_packager.report.schema import (
    BundleName,
    CandidateReport,
    ConfusionReport,
    DataFacts,
    GateReport,
    Interval,
    LatencyReport,
    LayerReport,
    Report,
    SliceReport,
    SourceFacts,
    TargetReport,
    WorstReport,
)
from edgepack_packager.search.trials import Made, Outcome, Trial, variant_names
from edgepack_packager.subject import Subject
from edgepack_packager.targets import this_hardware

_SECONDS_DIGITS = 3


def report_of(
    recipe: Recipe,
    subject: Subject,
    outcomes: Sequence[Outcome],
    *,
    warnings: Sequence[str],
    seconds: Mapping[str, float],
    digest: str | None,
) -> Report:
    """The evidence: everything that was measured, on which machine.

    Args:
        recipe: What was asked for.
        subject: What candidates were made of.
        outcomes: What was tried and chosen.
        warnings: What the user should know.
        seconds: Time by step.
        digest: The bundle's identity, as soon as it is known.
    """
    return Report(
        bundle=BundleName(name=recipe.name, version=recipe.version, digest=digest),
        host=this_hardware(),
        tools={**tool_versions(), **subject.source.tools},
        source=SourceFacts(
            digest=subject.source.digest,
            framework=subject.source.framework,
            task=subject.decisions.task,
            passes=subject.passes,
        ),
        data=_data(subject),
        seconds={step: round(value, _SECONDS_DIGITS) for step, value in seconds.items()},
        warnings=tuple(warnings),
        targets=tuple(_target(outcome) for outcome in outcomes),
        repeat=repeat_of(recipe),
    )


def _data(subject: Subject) -> DataFacts:
    exam = subject.exam
    return DataFacts(
        digests=subject.data,
        calibration_rows=_rows(subject.calibration),
        evaluation_rows=0 if exam is None else exam.n,
        reference_rows=_rows(subject.reference),
        labelled=exam is not None and exam.truth is not None,
        missing=subject.missing,
    )


def _rows(feeds: Feeds | None) -> int:
    return 0 if feeds is None else len(next(iter(feeds.values())))


def _target(outcome: Outcome) -> TargetReport:
    names = variant_names(outcome.target.name, outcome.shipped)
    ships = dict(zip((trial.name for trial in outcome.shipped), names, strict=True))
    # what ships was looked into more closely
    closer = {trial.name: trial for trial in outcome.shipped}
    trials = [closer.get(trial.name, trial) for trial in outcome.trials]
    return TargetReport(
        target=outcome.target.name,
        title=outcome.target.title,
        architecture=outcome.target.architecture,
        features=tuple(outcome.target.features),
        measured_on=outcome.measured_on,
        measured_here=outcome.measured_here,
        chosen=outcome.choice.chosen,
        candidates=tuple(_candidate(trial, outcome, ships) for trial in trials),
    )


def _candidate(trial: Trial, outcome: Outcome, ships: Mapping[str, str]) -> CandidateReport:
    made, figures = trial.made, trial.made.figures
    return CandidateReport(
        name=trial.name,
        plan=msgspec.to_builtins(made.plan),
        size_bytes=made.size_bytes,
        size_ratio=round(made.size_bytes / outcome.fp32.made.size_bytes, 4),
        quantized_share=round(quantized_share(outcome.fp32.made.graph, made.graph), 4),
        latency_ms=None if trial.latency is None else LatencyReport(**asdict(trial.latency)),
        memory_bytes=trial.memory_bytes,
        headline=figures.text(),
        metrics=tuple(figures.metrics("evaluation")),
        loss_metric=figures.loss_metric,
        loss=_interval(figures.loss),
        slices=_slices(figures),
        worst=tuple(
            WorstReport(**{**asdict(row), "distance": _finite(row.distance)})
            for row in figures.worst
        ),
        confusions=tuple(ConfusionReport(**asdict(pair)) for pair in figures.confusions),
        layers=_layers(made),
        gates=tuple(_gate(verdict) for verdict in trial.verdicts),
        judged_on_all=made.whole,
        ships_as=ships.get(trial.name),
        chosen=trial.name == outcome.choice.chosen,
        reason=outcome.choice.reasons[trial.name],
    )


def _slices(figures: Figures) -> tuple[SliceReport, ...]:
    return tuple(
        SliceReport(
            column=item.column,
            value=item.value,
            n=item.n,
            metric=item.metric,
            estimate=_interval(item.estimate),
            loss=_interval(item.loss),
        )
        for item in figures.slices
    )


def _layers(made: Made) -> tuple[LayerReport, ...]:
    return tuple(
        LayerReport(
            node=layer.node,
            operator=layer.operator,
            sqnr_db=_finite(layer.sqnr_db),
            weight_bytes=layer.weight_bytes,
        )
        for layer in made.layers
    )


def _gate(verdict: Verdict) -> GateReport:
    gate = verdict.gate
    return GateReport(
        gate=gate.name,
        metric=gate.metric,
        severity=gate.severity,
        threshold=gate.threshold,
        unit=gate.unit,
        outcome=verdict.outcome,
        words=verdict.words,
        excess=_finite(verdict.excess),
    )


def _interval(estimate: Estimate | None) -> Interval | None:
    if estimate is None:
        return None
    return Interval(
        value=_finite(estimate.value),
        low=_finite(estimate.low),
        high=_finite(estimate.high),
        n=estimate.n,
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

"""What the accuracy gates of a recipe say of a candidate's figures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgepack_packager.evidence.exam import Exam
from edgepack_packager.evidence.figures import Figures
from edgepack_packager.evidence.gates import (
    Gate,
    Verdict,
    judge_failure,
    judge_loss,
    judge_maximum,
    judge_minimum,
)
from edgepack_packager.evidence.intervals import Estimate
from edgepack_packager.quantities import Drop
from edgepack_packager.recipe import Recipe

Judge = Callable[[Gate, Estimate | None], Verdict]


def judge_accuracy(recipe: Recipe, exam: Exam | None, figures: Figures) -> tuple[Verdict, ...]:
    """The verdict of every gate on how good the answers are, ``max-drop`` first."""
    gates = [
        _judge_drop(recipe, exam, figures),
        *(
            _judged(_limit("min-metric", name, least), figures, judge_minimum)
            for name, least in sorted(recipe.min_metric.items())
        ),
        *(
            _judged(_limit("max-metric", name, most), figures, judge_maximum)
            for name, most in sorted(recipe.max_metric.items())
        ),
    ]
    if recipe.not_worse_than is not None:
        gates.append(_judge_incumbent(recipe, exam, figures))
    return tuple(gates)


def allowed_loss(drop: Drop, exam: Exam | None) -> float:
    """The share that may be lost against the source model.

    Per cent are relative to the source model's own accuracy or score. Errors of numbers have no
    scale of points, so that both forms are relative, and so is what is lost without labels.
    """
    if exam is None or not drop.relative:
        return drop.value
    if exam.source_scores is not None:
        return drop.value * abs(float(np.mean(exam.source_scores)))
    if exam.truth is None or exam.decisions.task != "classification":
        return drop.value
    return drop.value * float(np.mean(exam.source == exam.truth))


def _allowed_against(margin: Drop, exam: Exam | None) -> float:
    old = None if exam is None else exam.incumbent
    if exam is None or old is None or not margin.relative:
        return margin.value
    if old.scores is not None:
        return margin.value * abs(float(np.mean(old.scores)))
    if exam.decisions.task != "classification":
        return margin.value
    return margin.value * float(np.mean(old.answers == exam.truth))


def _judge_drop(recipe: Recipe, exam: Exam | None, figures: Figures) -> Verdict:
    allowed = allowed_loss(recipe.drop, exam)
    unit = "relative" if recipe.drop.relative else "points"
    gate = Gate("max-drop", "accuracy", figures.loss_metric, allowed, unit)
    if figures.failure is not None:
        return judge_failure(gate, figures.failure)
    rows = None if figures.proof is None else figures.proof.rows(allowed)
    return judge_loss(gate, figures.loss, rows=rows)


def _judge_incumbent(recipe: Recipe, exam: Exam | None, figures: Figures) -> Verdict:
    margin = Drop.parse(recipe.margin, what="margin")
    allowed = _allowed_against(margin, exam)
    old = "" if exam is None or exam.incumbent is None else f" against {exam.incumbent.name}"
    unit = "relative" if margin.relative else "points"
    gate = Gate("not-worse-than", "accuracy", f"{figures.loss_metric}{old}", allowed, unit)
    if figures.failure is not None:
        return judge_failure(gate, figures.failure)
    rows = None if figures.incumbent_proof is None else figures.incumbent_proof.rows(allowed)
    return judge_loss(gate, figures.incumbent, rows=rows)


def _limit(name: str, metric: str, threshold: float) -> Gate:
    return Gate(name, "accuracy", metric, threshold, "value")


def _judged(gate: Gate, figures: Figures, judge: Judge) -> Verdict:
    if figures.failure is not None:
        return judge_failure(gate, figures.failure)
    return judge(gate, figures.estimates.get(gate.metric))

"""Set the exam: the rows, what is true of them, and the answers that are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgepack_packager.code import code_digest, load_function
from edgepack_packager.data.rows import Array, Feeds, Rows
from edgepack_packager.data.sequences import sequence_numbers
from edgepack_packager.errors import DataError, InputError, RecipeError
from edgepack_packager.evidence.agreement import class_axis
from edgepack_packager.evidence.decisions import Decisions
from edgepack_packager.evidence.exam import Exam, Incumbent, check_truth, unknown_labels
from edgepack_packager.evidence.incumbents import Asked
from edgepack_packager.evidence.metrics import LOWER_IS_BETTER, is_metric, known_metrics
from edgepack_packager.evidence.scores import call_scorer
from edgepack_packager.graphs.steps import Steps
from edgepack_packager.recipe import Recipe
from edgepack_packager.sources.model import as_labels

_NEED_SCORES = frozenset({"auc", "log-loss"})
_FEW_SEQUENCES = 10


def set_exam(
    recipe: Recipe,
    rows: Rows,
    feeds: Feeds,
    decisions: Decisions,
    outputs: Feeds,
    *,
    steps: Steps | None,
) -> Exam:
    """Put together what candidates are judged on.

    Args:
        recipe: What was asked for.
        rows: The evaluation rows.
        feeds: The same as inputs, cast.
        decisions: How to read outputs.
        outputs: The source model's own outputs to the rows.
        steps: What is carried from row to row.

    Raises:
        DataError: The labels do not match, the source model gives no numbers, or the user's metric
            fails on its answers.
    """
    exam = Exam(
        decisions=decisions,
        feeds=feeds,
        truth=None,
        source=decisions.answers(outputs),
        dataset=rows.digest,
        source_outputs=outputs,
        slices={name: rows.asides[name] for name in recipe.slices},
        units=_units(recipe, rows, steps),
        labels=rows.labels,
        numbers=rows.numbers,
        wanted=(*recipe.min_metric, *recipe.max_metric),
        steps=steps,
    )
    if recipe.metric is None:
        _check_source(exam)
        exam = replace(exam, truth=_truth(rows.labels, exam))
        check_truth(exam)
        return exam
    scored = _with_metric(exam, recipe.metric)
    try:
        judged = replace(scored, truth=_truth(rows.labels, exam))
        check_truth(judged)
    except DataError:
        # what the user's metric knows to read need not be one label a row
        return scored
    return judged


def _units(recipe: Recipe, rows: Rows, steps: Steps | None) -> Array | None:
    if steps is not None:
        return steps.units
    if recipe.sequence_column is None:
        return None
    return sequence_numbers(rows.asides[recipe.sequence_column], rows.n)


def _with_metric(exam: Exam, reference: str) -> Exam:
    scorer, name = load_function(Path(reference)), metric_name(reference)
    scores = call_scorer(scorer, name, exam.source_outputs, exam.labels, exam.n)
    return replace(exam, metric=name, scorer=scorer, source_scores=scores)


def metric_name(reference: str) -> str:
    """What a metric is called: the function's name."""
    return reference.rpartition(":")[2]


def metric_facts(recipe: Recipe) -> dict[str, str]:
    """What a build says of the code that scored it."""
    if recipe.metric is None:
        return {}
    function: Callable[..., object] = load_function(Path(recipe.metric))
    return {"metric": f"{recipe.metric} {code_digest(function)}"}


def _truth(labels: Array | None, exam: Exam) -> Array | None:
    if labels is None:
        return None
    if exam.decisions.task == "classification":
        width = labels.reshape(len(labels), -1).shape[1]
        if width != 1:
            raise DataError(
                f"the label has {width} values a row; a classifier's is one",
                code="bad-label",
            )
        return as_labels(labels)
    if labels.dtype.kind not in "biuf":
        raise DataError("the label holds text, the model gives numbers", code="bad-label")
    if labels.ndim > 2:
        return _mask_truth(labels, exam)
    return labels.reshape(len(labels), -1).astype(np.float64)


def _mask_truth(labels: Array, exam: Exam) -> Array:
    for values in exam.source_outputs.values():
        if values.shape == labels.shape or class_axis(values, labels) is not None:
            return labels
    shapes = {name: list(values.shape[1:]) for name, values in exam.source_outputs.items()}
    raise DataError(
        f"the label has rows of shape {list(labels.shape[1:])}, the outputs have {shapes}; a mask "
        "has one whole number for each place",
        code="bad-label",
    )


def _check_source(exam: Exam) -> None:
    if exam.decisions.task == "classification":
        return
    for name, values in exam.source_outputs.items():
        if values.dtype.kind != "f" or name in exam.decisions.carried:
            continue
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if bad.any():
            first = exam.row_number(int(np.argmax(bad)))
            raise DataError(
                f"the source model's own output {name!r} is not a number or infinite in "
                f"{np.count_nonzero(bad)} of {exam.n} evaluation rows, the first is row {first}; "
                f"nothing can be held against that: leave such rows out",
                code="source-nonfinite",
            )


def with_incumbent(exam: Exam, asked: Asked) -> Exam:
    """The same exam, with the answers of a bundle that candidates must not be worse than.

    Raises:
        InputError: There is no truth to compare by, or its numbers are more or fewer.
    """
    answers = asked.decisions.answers(asked.outputs)
    if exam.scorer is not None:
        name = exam.metric or "metric"
        scores = call_scorer(exam.scorer, name, asked.outputs, exam.labels, exam.n)
        return replace(exam, incumbent=Incumbent(asked.name, answers, scores))
    if exam.truth is None or exam.truth.ndim > 2:
        raise InputError(
            "not_worse_than compares by one label a row: name it, or give a metric",
            code="no-label",
        )
    if exam.decisions.task != "classification" and answers.shape != exam.truth.shape:
        raise InputError(
            f"{asked.name} gives {answers.shape[1]} numbers a row, the truth has "
            f"{exam.truth.shape[1]}",
            code="bad-incumbent",
        )
    return replace(exam, incumbent=Incumbent(asked.name, answers))


def check_metrics(recipe: Recipe, decisions: Decisions) -> None:
    """Refuse limits on what this model has no figure of.

    Raises:
        RecipeError: Unknown, of the wrong side, or of scores where the model gives labels only.
    """
    own = None if recipe.metric is None else metric_name(recipe.metric)
    _check_known("min_metric", recipe.min_metric, own, decisions)
    _check_known("max_metric", recipe.max_metric, own, decisions)
    for name in recipe.min_metric:
        if name != own and name in LOWER_IS_BETTER:
            raise RecipeError(f"min_metric {name}: less of it is better; give it a maximum",
                              code="wrong-side")  # fmt: skip
    for name in recipe.max_metric:
        if name == own or name not in LOWER_IS_BETTER:
            raise RecipeError(f"max_metric {name}: more of it is better; give it a minimum",
                              code="wrong-side")  # fmt: skip
    if decisions.task == "classification" and decisions.scores is None:
        wanted = {*recipe.min_metric, *recipe.max_metric} - {own}
        missing = sorted(n for n in wanted if n in _NEED_SCORES or n.startswith("top-"))
        if missing:
            raise RecipeError(
                f"{', '.join(missing)} needs a score for each class, this model gives labels only",
                code="unknown-metric",
            )


def _check_known(
    option: str, limits: Mapping[str, float], own: str | None, decisions: Decisions
) -> None:
    task = decisions.task
    unknown = [name for name in sorted(limits) if name != own and not is_metric(name, task)]
    if unknown:
        known = known_metrics(task) + ("" if own is None else f", {own}")
        raise RecipeError(
            f"{option} {', '.join(unknown)}: a {task} model has {known}",
            code="unknown-metric",
        )


def _looks_binary(exam: Exam) -> bool:
    """Whether numbers are judged that look like the share of one class of two."""
    if exam.decisions.task != "regression" or exam.labels is None or exam.labels.dtype.kind == "f":
        return False
    shares = exam.source.size == exam.n and np.all((exam.source >= 0) & (exam.source <= 1))
    return bool(shares and np.isin(exam.labels, (0, 1)).all())


def exam_warnings(exam: Exam) -> tuple[str, ...]:
    """What the user should know of the rows that candidates are judged on."""
    found = []
    odd = unknown_labels(exam)
    if odd:
        found.append(
            f"{odd} of {exam.n} labels are none of the model's classes; they count as wrong"
        )
    if _looks_binary(exam):
        found.append(
            "the labels are 0 and 1 and the only output is a share: it is judged as a number; to "
            "judge classes, give --postprocess with a step that makes a label: threshold, at 0.5"
        )
    if exam.labels is None and exam.scorer is None:
        found.append("no labels: accuracy is not measured, agreement with the source model is")
    if exam.units is not None and (count := len(np.unique(exam.units))) < _FEW_SEQUENCES:
        found.append(
            f"the evaluation has {count} sequences; intervals over so few are wide: more "
            "sequences prove more, longer ones do not"
        )
    return tuple(found)

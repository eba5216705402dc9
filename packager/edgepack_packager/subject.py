"""Load and clean: from files to a graph that says the same as its source, on rows that show it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgepack_contract.description import TensorSpec
from edgepack_packager.data.rows import (
    Array,
    Feeds,
    Parts,
    Rows,
    bind_rows,
    cast_feeds,
    has_missing,
    read_parts,
    read_rows,
    split_rows,
)
from edgepack_packager.errors import ConversionError, DataError, RecipeError
from edgepack_packager.evidence.decisions import Decisions, input_specs, open_inputs, read_decisions
from edgepack_packager.evidence.evaluate import METRICS_BY_TASK, Exam, check_truth
from edgepack_packager.graphs.clean import clean_passes, fix_batch, loading_passes, raise_opset
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import (
    is_batched,
    open_folder,
    run_rows,
    save_model,
    take_rows,
)
from edgepack_packager.recipe import Recipe
from edgepack_packager.sources import LoadContext, SourceModel, load_source
from edgepack_packager.sources.model import as_labels
from edgepack_runtime.inference.errors import ModelError
from edgepack_runtime.inference.session import Session

SAMPLE_ROWS = 16
SAME_RTOL, SAME_ATOL = 1e-4, 1e-5
"""Cleaning re-orders sums at most; anything beyond this is another model."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What candidates are made of and judged on.

    Attributes:
        source: The model as it came.
        model: The cleaned graph.
        inputs: Its inputs as the bundle describes them.
        decisions: How to read its outputs.
        sample: A few rows, real where there are any.
        calibration: Rows to calibrate with, cast; None without.
        reference: Rows to count the drift reference from, cast; None without.
        exam: The rows to judge on; None without.
        data: What the bundle says about the rows: digests and the split.
        missing: Whether any row holds NaN or an infinity.
        passes: What was done to the graph.
        warnings: What the user should know.
    """

    source: SourceModel
    model: onnx.ModelProto
    inputs: list[TensorSpec]
    decisions: Decisions
    sample: Feeds
    calibration: Feeds | None
    reference: Feeds | None
    exam: Exam | None
    data: dict[str, str]
    missing: bool
    passes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Cleaned:
    model: onnx.ModelProto
    session: Session
    outputs: Feeds
    passes: tuple[str, ...]
    warnings: tuple[str, ...]


def load_subject(recipe: Recipe, folder: Path) -> Subject:
    """Load model and rows, clean the graph, and hold it against its source.

    Args:
        recipe: What to build.
        folder: A place for files in between.

    Raises:
        InputError: The model or the rows cannot be used.
        RecipeError: The recipe asks for something that this model has not.
    """
    parts, data = _load_parts(recipe)
    source = load_source(recipe.model, _context(recipe, parts, folder / "source"))
    original = _open_original(source, folder / "original")
    specs = open_inputs(original, source.features)
    sample = _sample(parts, specs, seed=recipe.seed)
    cleaned = _clean(source.graph, original, sample, folder)
    truth = parts.evaluation.labels if parts.evaluation is not None else None
    decisions = read_decisions(
        cleaned.model.graph,
        cleaned.session,
        cleaned.outputs,
        task=recipe.task or source.task,
        classes=source.classes,
        has_class_labels=truth is not None and truth.dtype.kind != "f",
    )
    _check_metrics(recipe, decisions)
    feeds = {
        name: cast_feeds(bind_rows(rows, specs), specs) for name, rows in _named(parts).items()
    }
    exam = _exam(recipe, parts.evaluation, feeds, source, original, decisions, specs)
    return Subject(
        source=source,
        model=cleaned.model,
        inputs=input_specs(cleaned.session, sample, source.features or _column_names(parts)),
        decisions=decisions,
        sample=sample,
        calibration=feeds.get("calibration"),
        reference=feeds.get("reference"),
        exam=exam,
        data=data,
        missing=any(has_missing(part) for part in feeds.values()),
        passes=(*source.passes, *cleaned.passes),
        warnings=(*source.warnings, *cleaned.warnings, *_data_warnings(parts, exam)),
    )


def _context(recipe: Recipe, parts: Parts, folder: Path) -> LoadContext:
    folder.mkdir()
    rows = parts.evaluation or parts.calibration or parts.reference
    few = {} if rows is None else take_rows(dict(rows.columns), slice(0, SAMPLE_ROWS))
    return LoadContext(
        folder=folder,
        columns=few,
        trusted_types=recipe.trusted_types,
        trust_pickle=recipe.trust_pickle,
        seed=recipe.seed,
    )


def _load_parts(recipe: Recipe) -> tuple[Parts, dict[str, str]]:
    if recipe.data is None:
        parts = read_parts(
            calibration=recipe.calibration,
            evaluation=recipe.evaluation,
            reference=recipe.reference,
            label=recipe.label,
            asides=recipe.asides,
        )
        return parts, parts.digests
    rows = read_rows(recipe.data, label=recipe.label, asides=recipe.asides)
    parts = split_rows(rows, seed=recipe.seed)
    sizes = " ".join(f"{name} {part.n}" for name, part in _named(parts).items())
    return parts, {"data": rows.digest, "split": f"seed {recipe.seed}: {sizes}"}


def _named(parts: Parts) -> dict[str, Rows]:
    named = {
        "calibration": parts.calibration,
        "evaluation": parts.evaluation,
        "reference": parts.reference,
    }
    return {name: rows for name, rows in named.items() if rows is not None}


def _open_original(source: SourceModel, folder: Path) -> Session:
    """Load the graph with as little changed as the runtime allows."""
    graph, _ = run_passes(source.graph, loading_passes())
    try:
        return _open(graph, folder)
    except ModelError:
        # an opset that is too new, perhaps only by number: the cleaning lowers it
        graph, _ = run_passes(source.graph, clean_passes())
    try:
        return _open(graph, folder)
    except ModelError as error:
        raise ConversionError(f"the runtime cannot load this model: {error}") from error


def _open(graph: onnx.ModelProto, folder: Path) -> Session:
    save_model(graph, folder)
    return open_folder(folder)


def _clean(graph: onnx.ModelProto, original: Session, sample: Feeds, folder: Path) -> _Cleaned:
    _check_batch(original)
    truth = _run(original, sample, "the model as it came fails on the rows")
    cleaned, passes = run_passes(graph, clean_passes())
    raised = raise_opset(cleaned)
    if raised is not None:
        raised, more = run_passes(raised, clean_passes())
        if _same(raised, truth, sample, folder / "raised"):
            cleaned, passes = raised, (*passes, "raise-opset", *more)
    session = _open(cleaned, folder / "cleaned")
    warnings: tuple[str, ...] = ()
    if is_batched(session) and not _takes_batches(session, sample):
        cleaned = fix_batch(cleaned)
        session = _open(cleaned, folder / "fixed")
        passes = (*passes, "fix-batch")
        warnings = ("the graph answers wrongly to several rows at once; it is packed for one",)
    outputs = _run(session, sample, "the cleaned model fails on the rows")
    if not _close(truth, outputs):
        raise ConversionError(
            "the cleaned graph gives other answers than the model as it came", code="not-faithful"
        )
    return _Cleaned(cleaned, session, outputs, tuple(dict.fromkeys(passes)), warnings)


def _check_batch(session: Session) -> None:
    sizes = {info.shape[0] for info in session.inputs if info.shape}
    fixed = sorted(size for size in sizes if isinstance(size, int) and size != 1)
    if fixed:
        raise ConversionError(
            f"the graph takes exactly {fixed[0]} rows at a time; export it with an open first "
            "dimension, or with 1",
            code="fixed-batch",
        )


def _run(session: Session, feeds: Feeds, what: str) -> Feeds:
    rows = len(next(iter(feeds.values())))
    try:
        # row by row: a graph that only claims to take several rows is found out later
        outputs = run_rows(session, feeds, chunk=1)
    except (ModelError, ValueError) as error:
        raise ConversionError(f"{what}: {error}", code="run-failed") from error
    odd = [name for name, values in outputs.items() if len(values) != rows]
    if odd:
        raise ConversionError(
            f"output {', '.join(odd)} has no entry per row", code="unsupported-output"
        )
    return outputs


def _takes_batches(session: Session, sample: Feeds) -> bool:
    try:
        together = session.run(sample)
    except ModelError:
        return False
    return _close(run_rows(session, sample, chunk=1), together)


def _same(model: onnx.ModelProto, truth: Feeds, sample: Feeds, folder: Path) -> bool:
    try:
        return _close(truth, run_rows(_open(model, folder), sample, chunk=1))
    except ModelError:
        return False


def _close(one: Feeds, two: Feeds) -> bool:
    return one.keys() == two.keys() and all(_equal(one[name], two[name]) for name in one)


def _equal(one: Array, two: Array) -> bool:
    if one.shape != two.shape:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, two))
    return bool(np.allclose(one, two, rtol=SAME_RTOL, atol=SAME_ATOL, equal_nan=True))


def _sample(parts: Parts, specs: list[TensorSpec], *, seed: int) -> Feeds:
    """A few rows of the first part there is; made-up ones when there are none."""
    rows = parts.evaluation or parts.calibration or parts.reference
    if rows is None:
        return synthetic_rows(specs, SAMPLE_ROWS, seed=seed)
    return take_rows(cast_feeds(bind_rows(rows, specs), specs), slice(0, SAMPLE_ROWS))


def synthetic_rows(specs: list[TensorSpec], rows: int, *, seed: int) -> Feeds:
    """Made-up rows of the right shape: normal floats, small integers, empty texts."""
    random = np.random.default_rng(seed)
    made: Feeds = {}
    for spec in specs:
        shape = (rows, *(size if isinstance(size, int) else 1 for size in spec.shape[1:]))
        if spec.dtype == "str":
            made[spec.name] = np.full(shape, "", dtype=object)
        elif spec.dtype.startswith("float"):
            made[spec.name] = random.standard_normal(shape).astype(spec.dtype)
        else:
            made[spec.name] = random.integers(0, 2, shape).astype(spec.dtype)
    return made


def _check_metrics(recipe: Recipe, decisions: Decisions) -> None:
    known = METRICS_BY_TASK[decisions.task]
    unknown = sorted(set(recipe.min_metric) - set(known))
    if unknown:
        raise RecipeError(
            f"min_metric {', '.join(unknown)}: a {decisions.task} model has "
            f"{', '.join(known) or 'no metric with a minimum'}",
            code="unknown-metric",
        )


def _exam(
    recipe: Recipe,
    rows: Rows | None,
    feeds: dict[str, Feeds],
    source: SourceModel,
    original: Session,
    decisions: Decisions,
    specs: list[TensorSpec],
) -> Exam | None:
    if rows is None:
        return None
    try:
        if source.answer is not None:
            outputs = source.answer(bind_rows(rows, specs))
        else:
            outputs = run_rows(original, feeds["evaluation"], chunk=1)
    except (ValueError, ModelError) as error:
        raise DataError(
            f"the source model fails on the evaluation rows: {error}", code="source-failed"
        ) from error
    exam = Exam(
        decisions=decisions,
        feeds=feeds["evaluation"],
        truth=None if rows.labels is None else _truth(rows.labels, decisions),
        source=decisions.answers(outputs),
        source_outputs=outputs,
        dataset=rows.digest,
        slices={name: rows.asides[name] for name in recipe.slices},
    )
    check_truth(exam)
    return exam


def _truth(labels: Array, decisions: Decisions) -> Array:
    if decisions.task == "classification":
        return as_labels(labels)
    if labels.dtype.kind not in "biuf":
        raise DataError("the label holds text, the model gives numbers", code="bad-label")
    return labels.reshape(len(labels), -1).astype(np.float64)


def _column_names(parts: Parts) -> tuple[str, ...] | None:
    """Names of the columns side by side, when the rows came with some."""
    rows = parts.evaluation or parts.calibration or parts.reference
    if rows is None or len(rows.columns) < 2:
        return None
    return tuple(rows.columns)


def _data_warnings(parts: Parts, exam: Exam | None) -> tuple[str, ...]:
    if not _named(parts):
        return ("no data: accuracy gates not measured, golden rows made up, drift off; give data",)
    found = []
    if exam is None:
        found.append("no evaluation rows: accuracy and agreement are not measured")
    elif exam.truth is None:
        found.append("no labels: accuracy is not measured, agreement with the source model is")
    if parts.reference is None:
        found.append("no reference rows: drift is off")
    return tuple(found)

"""Load and clean: from files to a graph that says the same as its source, on rows that show it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from edgepack_contract.description import DimensionRange, TensorSpec
from edgepack_packager.data.arranging import arrange
from edgepack_packager.data.loading import read_parts, read_rows
from edgepack_packager.data.rows import (
    Array,
    Feeds,
    Parts,
    Rows,
    bind_rows,
    cast_feeds,
    feature_columns,
    gaps,
    has_missing,
    listed,
)
from edgepack_packager.data.sequences import sequence_numbers
from edgepack_packager.data.splitting import split_in_order, split_rows
from edgepack_packager.errors import DataError
from edgepack_packager.evidence.decisions import Decisions, input_specs, open_inputs, read_decisions
from edgepack_packager.evidence.exam import Exam
from edgepack_packager.evidence.incumbents import ask_bundle
from edgepack_packager.evidence.setting import (
    check_metrics,
    exam_warnings,
    metric_facts,
    set_exam,
    with_incumbent,
)
from edgepack_packager.graphs.cleaning import clean, open_original
from edgepack_packager.graphs.dimensions import widened
from edgepack_packager.graphs.running import run_rows, take_rows
from edgepack_packager.graphs.states import state_sources
from edgepack_packager.graphs.steps import Steps, fill_states, run_steps
from edgepack_packager.preparing import prepare_source
from edgepack_packager.recipe import Recipe
from edgepack_packager.sources import LoadContext, SourceModel, load_source
from edgepack_packager.sources.flips import settle_precision
from edgepack_packager.targets import jobs_here, this_hardware
from edgepack_runtime.inference.errors import ModelError
from edgepack_runtime.inference.session import Session

SAMPLE_ROWS = 16


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
        dimensions: Between which lengths each named dimension besides the rows works.
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
    dimensions: dict[str, DimensionRange]


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
    parts = _arranged(recipe, parts)
    loaded = load_source(recipe.model, _context(recipe, parts, folder / "source"))
    settled = _settled(recipe, loaded, parts, folder / "precision")
    source, folded = prepare_source(settled, recipe, folder)
    original = open_original(source.graph, folder / "original")
    specs = open_inputs(original, source.features, recipe.inputs)
    sample = _sample(recipe, parts, specs, original, source.sample)
    cleaned = clean(source.graph, original, sample, folder)
    truth = parts.evaluation.labels if parts.evaluation is not None else None
    decisions = read_decisions(
        cleaned.model.graph,
        cleaned.session,
        cleaned.outputs,
        task=recipe.task or source.task,
        classes=source.classes,
        has_class_labels=truth is not None and truth.ndim == 1 and truth.dtype.kind != "f",
        carried=state_sources(recipe.inputs).values(),
    )
    check_metrics(recipe, decisions)
    feeds = {
        name: _filled(cleaned.session, cast_feeds(bind(rows, specs), specs), _steps(recipe, rows))
        for name, rows in _named(parts).items()
    }
    exam, facts = _exam(recipe, parts.evaluation, feeds, source, original, decisions, specs, folder)
    return Subject(
        source=source,
        model=cleaned.model,
        inputs=input_specs(
            cleaned.session, sample, source.features or _column_names(parts, specs), recipe.inputs
        ),
        decisions=decisions,
        sample=sample,
        calibration=feeds.get("calibration"),
        reference=feeds.get("reference"),
        exam=exam,
        data=data | facts | folded,
        missing=any(has_missing(part) for part in feeds.values()),
        passes=(*source.passes, *cleaned.passes),
        warnings=(
            *source.warnings,
            *cleaned.warnings,
            *_state_warnings(recipe),
            *_data_warnings(parts, exam),
        ),
        dimensions=widened(cleaned.dimensions, cleaned.session.inputs, list(feeds.values())),
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


def _settled(recipe: Recipe, source: SourceModel, parts: Parts, folder: Path) -> SourceModel:
    """The source in the precision in which its rows take the fewest branches otherwise."""
    rows = parts.evaluation or parts.calibration or parts.reference
    if rows is None or recipe.preprocess is not None:
        return source

    def bound(session: Session) -> tuple[list[TensorSpec], Feeds]:
        specs = open_inputs(session, source.features, recipe.inputs)
        return specs, bind(rows, specs)

    return settle_precision(source, bound, folder)


def _load_parts(recipe: Recipe) -> tuple[Parts, dict[str, str]]:
    if recipe.data is None:
        parts = read_parts(
            calibration=recipe.calibration,
            evaluation=recipe.evaluation,
            reference=recipe.reference,
            label=recipe.label,
            asides=recipe.asides,
            keys=recipe.keys,
        )
        return parts, parts.digests
    rows = read_rows(recipe.data, label=recipe.label, asides=recipe.asides, keys=recipe.keys)
    times, sequences = (
        None if name is None else rows.asides[name]
        for name in (recipe.time_column, recipe.sequence_column)
    )
    if state_sources(recipe.inputs) and sequences is None:
        parts, how = split_in_order(rows), "in order"
    else:
        parts = split_rows(rows, seed=recipe.seed, times=times, sequences=sequences)
        how = f"seed {recipe.seed}" + "".join(f", by {name}" for name in recipe.keys)
    sizes = " ".join(f"{name} {part.n}" for name, part in _named(parts).items())
    return parts, {"data": rows.digest, "split": f"{how}: {sizes}"}


def _arranged(recipe: Recipe, parts: Parts) -> Parts:
    """The rows with the columns side by side that the recipe gives to inputs."""
    made = {name: arrange(rows, recipe.inputs) for name, rows in _named(parts).items()}
    return Parts(made.get("calibration"), made.get("evaluation"), made.get("reference"))


def _named(parts: Parts) -> dict[str, Rows]:
    named = {
        "calibration": parts.calibration,
        "evaluation": parts.evaluation,
        "reference": parts.reference,
    }
    return {name: rows for name, rows in named.items() if rows is not None}


def _sample(
    recipe: Recipe,
    parts: Parts,
    specs: list[TensorSpec],
    original: Session,
    example: Feeds | None,
) -> Feeds:
    """A few rows of the first part there is, or like the model's own example, or made up."""
    rows = parts.evaluation or parts.calibration or parts.reference
    if rows is None and example is not None and example.keys() == {spec.name for spec in specs}:
        return cast_feeds(_varied(example, SAMPLE_ROWS), specs)
    if rows is None:
        return synthetic_rows(specs, SAMPLE_ROWS, seed=recipe.seed)
    few = rows.take(np.arange(min(rows.n, SAMPLE_ROWS)))
    return _filled(original, cast_feeds(bind(few, specs), specs), _steps(recipe, few))


def bind(rows: Rows, specs: list[TensorSpec]) -> Feeds:
    """The rows as inputs, uncast; states are zero until they are filled.

    Raises:
        DataError: See :func:`edgepack_packager.data.rows.bind_rows`.
    """
    fed = bind_rows(rows, [spec for spec in specs if spec.role == "data"])
    states = {spec.name: _zeros(spec, rows.n) for spec in specs if spec.role == "state"}
    return {**fed, **states}


def _zeros(spec: TensorSpec, rows: int) -> Array:
    shape = (rows, *(size for size in spec.shape[1:] if isinstance(size, int)))
    return np.zeros(shape, dtype=spec.dtype)


def _steps(recipe: Recipe, rows: Rows) -> Steps | None:
    """How rows follow each other; None for a model without states."""
    sources = state_sources(recipe.inputs)
    if not sources:
        return None
    names = None if recipe.sequence_column is None else rows.asides.get(recipe.sequence_column)
    return Steps(sources, sequence_numbers(names, rows.n))


def _filled(session: Session, feeds: Feeds, steps: Steps | None) -> Feeds:
    """The rows with the states that this model carries through them."""
    if steps is None:
        return feeds
    return fill_states(feeds, run_steps(partial(run_rows, session), feeds, steps), steps)


def _state_warnings(recipe: Recipe) -> tuple[str, ...]:
    if not state_sources(recipe.inputs) or recipe.sequence_column is not None:
        return ()
    words = (
        "no sequence column: all rows are one sequence, in order; name the column that tells "
        "sequences apart if there are several"
    )
    return (words,)


def _varied(example: Feeds, rows: int) -> Feeds:
    """The example's rows again and again, floats a little smaller each time: no two are equal."""
    shrink = np.linspace(1.0, 0.5, rows)
    varied = {}
    for name, array in example.items():
        full = np.resize(array, (rows, *array.shape[1:]))
        scale = shrink.reshape(rows, *([1] * (full.ndim - 1)))
        varied[name] = full * scale if full.dtype.kind == "f" else full
    return varied


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


def _exam(
    recipe: Recipe,
    rows: Rows | None,
    feeds: dict[str, Feeds],
    source: SourceModel,
    original: Session,
    decisions: Decisions,
    specs: list[TensorSpec],
    folder: Path,
) -> tuple[Exam | None, dict[str, str]]:
    """The exam, and what the bundle says of it besides the digests of the rows."""
    if rows is None:
        return None, {}
    steps = _steps(recipe, rows)
    try:
        if source.answer is not None:
            outputs = run_steps(source.answer, bind(rows, specs), steps)
        else:
            answer = partial(run_rows, original, chunk=1, threads=jobs_here(recipe.jobs))
            outputs = run_steps(answer, feeds["evaluation"], steps)
    except (ValueError, ModelError) as error:
        raise _source_failed(error, rows) from error
    exam = set_exam(recipe, rows, feeds["evaluation"], decisions, outputs, steps=steps)
    if recipe.not_worse_than is None:
        return exam, metric_facts(recipe)
    asked = ask_bundle(
        recipe.not_worse_than, rows,
        task=decisions.task, bind=bind, units=exam.units, hardware=this_hardware(),
        folder=folder / "incumbent",
    )  # fmt: skip
    facts = {"not-worse-than": asked.digest}
    return with_incumbent(exam, asked), {**metric_facts(recipe), **facts}


def _source_failed(error: Exception, rows: Rows) -> DataError:
    words = (str(error).splitlines() or [type(error).__name__])[0]
    holes = gaps(rows)
    if holes:
        words += f" Missing or infinite: {listed(holes)}; fill them, or leave such rows out"
    return DataError(
        f"the source model fails on the evaluation rows: {words}", code="source-failed"
    )


def _column_names(parts: Parts, specs: list[TensorSpec]) -> tuple[str, ...] | None:
    """Names of the columns side by side, when the rows came with some."""
    rows = parts.evaluation or parts.calibration or parts.reference
    if rows is None or len(specs) != 1:
        return None
    names = feature_columns(rows, specs[0])
    return None if len(names) < 2 else tuple(names)


def _data_warnings(parts: Parts, exam: Exam | None) -> tuple[str, ...]:
    if not _named(parts):
        return ("no data: accuracy gates not measured, golden rows made up, drift off; give data",)
    found: list[str] = []
    for name, rows in _named(parts).items():
        if holes := gaps(rows):
            found.append(f"{name} rows hold no number in {listed(holes)}; the model gets NaN there")
    if exam is None:
        found.append("no evaluation rows: accuracy and agreement are not measured")
    else:
        found += exam_warnings(exam)
    if parts.reference is None:
        found.append("no reference rows: drift is off")
    return tuple(found)

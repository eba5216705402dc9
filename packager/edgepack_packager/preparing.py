"""What a recipe does to a model before anything else: it folds pre- and postprocessing into it."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx

from edgepack_contract.digest import sha256_digest
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small
from edgepack_packager.data.rows import Feeds, cast_feeds
from edgepack_packager.errors import ConversionError, RecipeError
from edgepack_packager.evidence.decisions import open_inputs
from edgepack_packager.graphs.clean import loading_passes
from edgepack_packager.graphs.cleaning import open_original
from edgepack_packager.graphs.first_run import check_first_run
from edgepack_packager.graphs.folding import (
    Fold,
    StepsFile,
    append,
    before_by_graph,
    before_by_steps,
    behind_by_graph,
    behind_by_steps,
    prepend,
)
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import CHUNK_ROWS, chunks, is_batched
from edgepack_packager.graphs.states import Turned, check_rules, rows_first, state_sources
from edgepack_packager.graphs.tensors import check_finite_weights
from edgepack_packager.recipe import Recipe
from edgepack_packager.sources import SourceModel
from edgepack_packager.sources.from_onnx import read_onnx
from edgepack_packager.sources.model import Answer
from edgepack_runtime.inference.session import Session


def prepare_source(
    source: SourceModel, recipe: Recipe, folder: Path
) -> tuple[SourceModel, dict[str, str]]:
    """The model as the recipe wants it packed; it answers as it did, by the new inputs.

    Args:
        source: The model as it came.
        recipe: Says what to fold in, and how inputs are fed.
        folder: A place for files in between.

    Returns:
        The model, and the digests of the files that were folded in.

    Raises:
        ConversionError: A weight is NaN or infinite, or a file cannot be folded in.
        RecipeError: A rule names an input or output that the model has not, or does not fit it.
    """
    check_finite_weights(source.graph)
    digests: dict[str, str] = {}
    if recipe.preprocess is not None:
        source, digests["preprocess"] = _with_before(source, recipe.preprocess, folder / "before")
    if recipe.postprocess is not None:
        source, digests["postprocess"] = _with_behind(source, recipe.postprocess, folder / "behind")
    check_rules(source.graph, recipe.inputs)
    return _with_rows_first(source, recipe), digests


def _with_before(source: SourceModel, path: Path, folder: Path) -> tuple[SourceModel, str]:
    graph, _ = run_passes(source.graph, loading_passes())
    read, digest = _read(path, folder)
    fold = (
        before_by_steps(graph, read)
        if isinstance(read, StepsFile)
        else before_by_graph(graph, read)
    )
    answer = source.answer
    if answer is not None:
        answer = _answer_behind(answer, fold, _open(fold, folder))
    return replace(
        source,
        graph=prepend(graph, fold),
        answer=answer,
        passes=(*source.passes, "fold-preprocess"),
        sample=None,
    ), digest


def _with_behind(source: SourceModel, path: Path, folder: Path) -> tuple[SourceModel, str]:
    graph, _ = run_passes(source.graph, loading_passes())
    read, digest = _read(path, folder)
    fold = (
        behind_by_steps(graph, read)
        if isinstance(read, StepsFile)
        else behind_by_graph(graph, read)
    )
    answer = source.answer
    if answer is not None:
        answer = _answer_before(answer, fold, _open(fold, folder))
    return replace(
        source,
        graph=append(graph, fold),
        answer=answer,
        task=None,
        passes=(*source.passes, "fold-postprocess"),
    ), digest


def _read(path: Path, folder: Path) -> tuple[StepsFile | onnx.ModelProto, str]:
    """A file of steps, or a graph; with its digest."""
    if path.suffix.lower() == ".onnx":
        graph, digest, _ = read_onnx(path)
        check_first_run(graph, folder)
        return run_passes(graph, loading_passes())[0], digest
    if path.suffix.lower() != ".toml":
        raise RecipeError(
            f"{path.name}: pre- and postprocessing are ONNX files (.onnx) or steps in TOML (.toml)",
            code="fold-file",
        )
    try:
        raw = read_small(path, LIMITS.config_bytes)
        if len(raw) > LIMITS.config_bytes:
            raise RecipeError(f"{path.name} has over {LIMITS.config_bytes} bytes", code="too-large")
        return msgspec.convert(tomllib.loads(raw.decode()), StepsFile), sha256_digest(raw)
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}", code="no-file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path.name} is not TOML: {error}", code="bad-toml") from error
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path.name}: {error}", code="bad-steps") from error


def _open(fold: Fold, folder: Path) -> Session:
    return open_original(fold.model, folder)


def _answer_behind(answer: Answer, fold: Fold, session: Session) -> Answer:
    """The framework's answers to rows that went through ``fold`` first."""
    specs = open_inputs(session, None, {}) if session.inputs else []
    names = {spec.name for spec in specs}
    size = CHUNK_ROWS if is_batched(session) else 1

    def go(feeds: Feeds) -> Feeds:
        made = []
        for part in chunks(feeds, size):
            given = session.run(cast_feeds({name: part[name] for name in names}, specs))
            fed = {place: given[tensor] for place, tensor in fold.wires.items()}
            made.append(answer({**part, **fed}))
        return _joined(made)

    return go


def _answer_before(answer: Answer, fold: Fold, session: Session) -> Answer:
    """The framework's answers, which go through ``fold`` afterwards."""
    specs = open_inputs(session, None, {})
    size = CHUNK_ROWS if is_batched(session) else 1

    def go(feeds: Feeds) -> Feeds:
        given = dict(answer(feeds))
        lost = [name for name in fold.wires.values() if name not in given]
        if lost:
            raise ConversionError(
                f"the framework itself gives no {', '.join(lost)}, which the postprocess takes, so "
                "that nothing can be held against it; build from the exported ONNX file instead",
                code="no-answer",
            )
        taken = {tensor: given.pop(name) for tensor, name in fold.wires.items()}
        parts = chunks(cast_feeds(taken, specs), size)
        return {**given, **_joined([session.run(part) for part in parts])}

    return go


def _joined(parts: list[Feeds]) -> Feeds:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _with_rows_first(source: SourceModel, recipe: Recipe) -> SourceModel:
    graph, turned = rows_first(source.graph, state_sources(recipe.inputs))
    if not turned:
        return source
    return replace(
        source,
        graph=graph,
        answer=None if source.answer is None else _turned_answer(source.answer, turned),
        passes=(*source.passes, "rows-first"),
        warnings=(*source.warnings, _turned_words(turned)),
    )


def _turned_words(turned: tuple[Turned, ...]) -> str:
    names = ", ".join(state.name for state in turned)
    return f"state {names}: rows are the first dimension in the bundle, as of everything else"


def _turned_answer(answer: Answer, turned: tuple[Turned, ...]) -> Answer:
    def turn(feeds: Feeds) -> Feeds:
        inner = dict(feeds)
        for state in turned:
            inner[state.name] = np.moveaxis(feeds[state.name], 0, state.axis)
        outputs = dict(answer(inner))
        for source, axis in {state.source: state.axis for state in turned}.items():
            if source in outputs:
                outputs[source] = np.moveaxis(outputs[source], axis, 0)
        return outputs

    return turn

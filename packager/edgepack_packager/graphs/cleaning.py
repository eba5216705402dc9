"""Load and clean a graph so that it provably answers as it did before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from edgepack_contract.description import MODEL_PATH, DimensionRange
from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.errors import ConversionError
from edgepack_packager.graphs.clean import clean_passes, fix_batch, loading_passes, raise_opset
from edgepack_packager.graphs.dimensions import fix_lengths, try_lengths
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import (
    is_batched,
    open_folder,
    run_rows,
    save_model,
    take_rows,
)
from edgepack_runtime.inference.errors import ModelError
from edgepack_runtime.inference.session import Session

LENGTH_ROWS = 2
SAME_RTOL, SAME_ATOL = 1e-4, 1e-5
"""Cleaning re-orders sums at most; anything beyond this is another model."""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned graph.

    Attributes:
        model: The graph.
        session: The same, loaded.
        outputs: Its answers to the sample.
        passes: What was done to it.
        warnings: What the user should know.
        dimensions: Between which lengths each named dimension besides the rows works.
    """

    model: onnx.ModelProto
    session: Session
    outputs: Feeds
    passes: tuple[str, ...]
    warnings: tuple[str, ...]
    dimensions: dict[str, DimensionRange]


def open_original(model: onnx.ModelProto, folder: Path) -> Session:
    """Load the graph with as little changed as the runtime allows.

    Raises:
        ConversionError: The runtime cannot load it.
    """
    graph, _ = run_passes(model, loading_passes())
    try:
        return _open(graph, folder)
    except ModelError:
        # an opset that is too new, perhaps only by number: the cleaning lowers it
        graph, _ = run_passes(model, clean_passes())
    try:
        return _open(graph, folder)
    except ModelError as error:
        # the path is that of a copy, which tells the user nothing
        words = str(error).replace(f"Load model from {folder / MODEL_PATH} failed:", "")
        raise ConversionError(f"the runtime cannot load this model: {words}") from error


def _open(graph: onnx.ModelProto, folder: Path) -> Session:
    save_model(graph, folder)
    return open_folder(folder)


def clean(graph: onnx.ModelProto, original: Session, sample: Feeds, folder: Path) -> Cleaned:
    """Clean a graph and hold its answers against those of the graph as it came.

    Args:
        graph: The graph as it came.
        original: The same, loaded.
        sample: A few rows, cast to the types that the graph takes.
        folder: A place for files in between.

    Raises:
        ConversionError: The graph fails on the rows, or has no clean form that answers as it does.
    """
    _check_batch(original)
    truth = _run(original, sample, "the model as it came fails on the rows")
    cleaned, passes = run_passes(graph, clean_passes())
    raised = raise_opset(cleaned)
    if raised is not None:
        raised, more = run_passes(raised, clean_passes())
        if _same(raised, truth, sample, folder / "raised"):
            cleaned, passes = raised, (*passes, "raise-opset", *more)
    session = _open(cleaned, folder / "cleaned")
    warnings: list[str] = []
    if is_batched(session) and not _works(session, sample):
        cleaned, passes = fix_batch(cleaned), (*passes, "fix-batch")
        session = _open(cleaned, folder / "fixed")
        warnings.append("the graph answers wrongly to several rows at once; it is packed for one")
    ranges, only = try_lengths(session.inputs, _few(sample), partial(_works, session))
    if only:
        cleaned, passes = fix_lengths(cleaned, only), (*passes, "fix-lengths")
        session = _open(cleaned, folder / "lengths")
        warnings.append(_fixed_words(only))
    outputs = _run(session, sample, "the cleaned model fails on the rows")
    if not _close(truth, outputs):
        raise ConversionError(
            "the cleaned graph gives other answers than the model as it came", code="not-faithful"
        )
    applied = tuple(dict.fromkeys(passes))
    return Cleaned(cleaned, session, outputs, applied, tuple(warnings), ranges)


def _few(sample: Feeds) -> Feeds:
    return take_rows(sample, slice(0, LENGTH_ROWS))


def _fixed_words(only: Mapping[str, int]) -> str:
    sizes = ", ".join(f"{name} at {size}" for name, size in sorted(only.items()))
    return (
        f"the graph says that {', '.join(sorted(only))} may vary, but works at one length only; it "
        f"is packed with {sizes}"
    )


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


def _works(session: Session, sample: Feeds) -> bool:
    """Whether rows have an answer each, the same one by one and, if it takes several, together."""
    rows = len(next(iter(sample.values())))
    try:
        alone = run_rows(session, sample, chunk=1)
        together = session.run(sample) if is_batched(session) else alone
    except (ModelError, ValueError):
        return False
    return all(len(values) == rows for values in alone.values()) and _close(alone, together)


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

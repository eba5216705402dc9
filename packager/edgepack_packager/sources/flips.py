"""Rows that take another branch in float32 than in their framework, and what float64 does to them.

Pitfall B7 of the packager: trees are steps, so that one branch taken otherwise changes an answer by
any amount, on the rows whose values lie next to a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from edgepack_contract.description import TensorSpec
from edgepack_packager.data.rows import Array, Feeds, cast_feeds
from edgepack_packager.errors import ConversionError
from edgepack_packager.graphs.clean import loading_passes
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import open_folder, run_rows, save_model, take_rows
from edgepack_packager.sources.model import SourceModel, as_labels
from edgepack_runtime.inference.errors import ModelError
from edgepack_runtime.inference.session import Session

CHECKED_ROWS = 20_000
"""Rows that are compared at most."""

ROUNDING = 1e-5
"""Differences up to this share of an output's largest value come from adding floats in another
order: some eighty times the precision of a float, which sums of a thousand leaves stay within."""

Bind = Callable[[Session], tuple[Sequence[TensorSpec], Feeds]]
"""Gives the inputs of a loaded graph, and the rows by input, uncast."""


def settle_precision(source: SourceModel, bind: Bind, folder: Path) -> SourceModel:
    """The source with float64 inputs where that takes fewer branches otherwise; else itself.

    Args:
        source: As it was converted; only one with trees has a wider form.
        bind: Gives the rows to compare on.
        folder: A place for files in between.

    Returns:
        The source, with a warning that counts the rows when there are any.
    """
    if source.wider is None or source.answer is None:
        return source
    try:
        narrow = _differing(source, source.graph, bind, folder / "narrow")
    except (ModelError, ValueError):
        return source  # what fails here fails again, in the words of the step it belongs to
    differ, rows = int(np.count_nonzero(narrow)), len(narrow)
    if not differ:
        return source
    said = (
        f"{differ:,} of {rows:,} rows take another branch with inputs in float32 than in "
        f"{source.framework}"
    )
    try:
        graph = source.wider()
        left = int(np.count_nonzero(_differing(source, graph, bind, folder / "wide")))
    except (ConversionError, ModelError) as error:
        return _noted(source, f"{said}; it has no form in float64: {error}")
    if left >= differ:
        return _noted(source, f"{said}; float64 leaves {left:,}, so inputs stay float32")
    wide = replace(source, graph=graph, passes=(*source.passes, "float64"))
    return _noted(wide, f"{said}; inputs are float64, which leaves {left:,}")


def differing_rows(theirs: Feeds, ours: Feeds) -> Array:
    """Which rows have another label, or a value that differs beyond rounding; shape (rows,).

    Args:
        theirs: The framework's outputs by name, one entry per row.
        ours: The graph's; outputs that the framework did not give are not looked at.
    """
    rows = len(next(iter(theirs.values())))
    found = np.zeros(rows, dtype=bool)
    for name, wanted in theirs.items():
        given = ours[name]
        if wanted.dtype.kind != "f":
            found |= as_labels(given) != wanted
            continue
        far = ~np.isclose(
            given.reshape(rows, -1), wanted.reshape(rows, -1), rtol=0, atol=_tolerance(wanted),
            equal_nan=True,
        )  # fmt: skip
        found |= far.any(axis=1)
    return found


def _tolerance(values: Array) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return ROUNDING * float(finite.max(initial=0.0)) or ROUNDING


def _differing(source: SourceModel, graph: onnx.ModelProto, bind: Bind, folder: Path) -> Array:
    if source.answer is None:
        raise ValueError("this source has no answers of its own")
    loadable, _ = run_passes(graph, loading_passes())
    save_model(loadable, folder)
    session = open_folder(folder)
    specs, bound = bind(session)
    rows = take_rows(bound, slice(0, CHECKED_ROWS))
    return differing_rows(source.answer(rows), run_rows(session, cast_feeds(rows, specs)))


def _noted(source: SourceModel, warning: str) -> SourceModel:
    return replace(source, warnings=(*source.warnings, warning))

"""Rows between the thresholds of a graph's trees, which show whether it answers as its source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from edgepack_packager.data.rows import Array
from edgepack_packager.graphs.clean import loading_passes
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import open_folder, run_rows, save_model
from edgepack_packager.sources.columns import INPUT
from edgepack_packager.sources.flips import differing_rows
from edgepack_packager.sources.model import Answer

PROBE_ROWS = 256
MISSING_SHARE = 0.1
SEED = 0


def probe(graph: onnx.ModelProto, answer: Answer, folder: Path) -> tuple[int, int]:
    """Hold ``graph`` against ``answer`` on rows that no rounding can send another way.

    Args:
        graph: With one input of numbers that trees look at directly.
        answer: The source's own answers.
        folder: A place for files in between.

    Returns:
        How many rows are answered otherwise, and of how many.

    Raises:
        ModelLoadError: onnxruntime refuses the graph.
        ModelRunError: It fails on the rows.
    """
    loadable, _ = run_passes(graph, loading_passes())
    save_model(loadable, folder)
    width = loadable.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    rows = probing_rows(loadable, width)
    ours = run_rows(open_folder(folder), {INPUT: rows})
    differ = differing_rows(answer({INPUT: rows}), ours)
    return int(np.count_nonzero(differ)), len(rows)


def probing_rows(graph: onnx.ModelProto, width: int) -> Array:
    """Rows of values half-way between neighbouring thresholds, of zeros, and of missing values.

    Returns:
        Shape (PROBE_ROWS, width), float32; the same for the same graph.
    """
    random = np.random.default_rng(SEED)
    thresholds = _thresholds(graph)
    columns = [
        random.choice(_between(thresholds.get(place, [])), PROBE_ROWS) for place in range(width)
    ]
    rows = np.column_stack(columns).astype(np.float32)
    rows[random.random(rows.shape) < MISSING_SHARE] = np.nan
    return rows


def _thresholds(graph: onnx.ModelProto) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for node in graph.graph.node:
        values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if "nodes_values" not in values:
            continue
        for mode, place, threshold in zip(
            values["nodes_modes"], values["nodes_featureids"], values["nodes_values"], strict=True
        ):
            if mode != b"LEAF":
                found.setdefault(place, []).append(threshold)
    return found


def _between(thresholds: list[float]) -> Array:
    """Values with every threshold well below or above; zero too, where it is none itself."""
    known = np.unique(np.asarray(thresholds, dtype=np.float32)).astype(np.float64)
    if not len(known):
        return np.array([0.0, 1.0, -1.0])
    middles = ((known[:-1] + known[1:]) / 2).astype(np.float32)
    apart = (middles > known[:-1]) & (middles < known[1:])
    step = max(1.0, float(np.abs(known).max()))
    ends = [known[0] - step, known[-1] + step]
    zero = [] if np.any(np.abs(known) < np.finfo(np.float32).tiny) else [0.0]
    return np.concatenate([middles[apart], ends, zero])

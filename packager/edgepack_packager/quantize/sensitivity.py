"""Which nodes lose most in int8: one at a time where that is quick, else all in one comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx

from edgepack_packager.data.rows import Feeds
from edgepack_packager.graphs.running import chunks, is_batched, open_folder, save_model
from edgepack_packager.quantize.calibration import MOST_ROWS, Ranges, exposed
from edgepack_packager.quantize.operators import STATIC_TYPES, static_nodes, weight_names
from edgepack_packager.quantize.plan import Plan
from edgepack_packager.quantize.share import tensor_bytes
from edgepack_packager.quantize.static import quantize_static

MOST_SINGLE_NODES = 32
"""Beyond this many nodes, quantizing them one by one takes longer than it is worth."""

SILENT_DB = 200.0
"""Stands for no error at all, which has no finite ratio."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """What int8 does to one node.

    Attributes:
        node: Its name in the fused graph, as ``Plan.excluded`` takes it.
        operator: Its type.
        sqnr_db: Signal to quantization noise, in decibels; less is worse. Of the model's outputs
            with only this node in int8; in models of more than 32 such nodes, of the node's own
            output with all of them in int8.
        weight_bytes: Of its constants in float.
    """

    node: str
    operator: str
    sqnr_db: float
    weight_bytes: int


def rank_nodes(
    model: onnx.ModelProto, ranges: Ranges, plan: Plan, rows: Feeds, folder: Path
) -> tuple[LayerError, ...]:
    """The nodes of ``plan``, excluded ones too, the one that does most harm first.

    Args:
        model: A fused graph.
        ranges: Of the values around those nodes.
        plan: A static plan.
        rows: A few rows, cast.
        folder: A place for graphs in between.
    """
    nodes = static_nodes(model, plan.operators or STATIC_TYPES)
    whole = msgspec.structs.replace(plan, excluded=())
    if len(nodes) <= MOST_SINGLE_NODES:
        noise = _one_by_one(model, ranges, whole, rows, folder, nodes)
        harm = noise
    else:
        noise, harm = _all_at_once(model, ranges, whole, rows, folder, nodes)
    weights, sizes = weight_names(model, nodes), tensor_bytes(model)
    kinds = {node.name: node.op_type for node in model.graph.node}
    return tuple(
        LayerError(
            node=name,
            operator=kinds[name],
            sqnr_db=decibels(noise[name]),
            weight_bytes=sum(sizes[weight] for weight in weights[name]),
        )
        for name in sorted(nodes, key=lambda name: (-harm[name], name))
    )


def decibels(noise: float) -> float:
    """Signal to noise in decibels, from the noise's share of the signal's energy."""
    return SILENT_DB if noise <= 0 else min(SILENT_DB, float(-10 * np.log10(noise)))


def _one_by_one(
    model: onnx.ModelProto,
    ranges: Ranges,
    plan: Plan,
    rows: Feeds,
    folder: Path,
    nodes: Sequence[str],
) -> dict[str, float]:
    """The share of noise in the model's outputs with each node alone in int8."""
    save_model(model, folder / "float")
    truth = _outputs(folder / "float", rows)
    noise: dict[str, float] = {}
    for position, name in enumerate(nodes):
        others = tuple(node for node in nodes if node != name)
        alone = quantize_static(model, ranges, msgspec.structs.replace(plan, excluded=others))
        place = folder / f"alone-{position}"
        if alone is None:
            continue
        save_model(alone, place)
        noise[name] = _noise(truth, _outputs(place, rows))
    return noise


def _all_at_once(
    model: onnx.ModelProto,
    ranges: Ranges,
    plan: Plan,
    rows: Feeds,
    folder: Path,
    nodes: Sequence[str],
) -> tuple[dict[str, float], dict[str, float]]:
    """The share of noise in each node's output with all in int8, and how much the node added.

    As onnxruntime's ``qdq_loss_debug`` compares, but in one pass and without holding the values.
    """
    quantized = quantize_static(model, ranges, plan)
    produced = {name for node in (quantized or model).graph.node for name in node.output}
    produced |= {item.name for item in model.graph.input}
    around = {
        node.name: ([name for name in node.input if name in produced], node.output[0])
        for node in model.graph.node
        if node.name in set(nodes)
    }
    floats = {item for given, made in around.values() for item in (*given, made)}
    wanted = sorted(floats & produced & set(ranges))
    shares = _compare(model, quantized or model, wanted, rows, folder)
    noise = {name: shares.get(made, 0.0) for name, (_, made) in around.items()}
    added = {
        name: noise[name] - max((shares.get(item, 0.0) for item in given), default=0.0)
        for name, (given, _) in around.items()
    }
    return noise, added


def _compare(
    one: onnx.ModelProto,
    two: onnx.ModelProto,
    tensors: Sequence[str],
    rows: Feeds,
    folder: Path,
) -> dict[str, float]:
    """The share of noise in each of some tensors that both graphs have."""
    save_model(exposed(one, tensors), folder / "float")
    save_model(exposed(two, tensors), folder / "int8")
    truth, other = (open_folder(folder / name, optimisation="off") for name in ("float", "int8"))
    signal, noise = (dict.fromkeys(tensors, 0.0) for _ in range(2))
    for part in chunks(rows, MOST_ROWS if is_batched(truth) else 1):
        left, right = {**part, **truth.run(part)}, {**part, **other.run(part)}
        for name in tensors:
            signal[name] += _energy(left[name])
            noise[name] += _energy(left[name] - right[name])
    return {name: noise[name] / signal[name] if signal[name] else 0.0 for name in tensors}


def _outputs(folder: Path, rows: Feeds) -> Feeds:
    session = open_folder(folder)
    runs = [session.run(part) for part in chunks(rows, MOST_ROWS if is_batched(session) else 1)]
    floats = [name for name, value in runs[0].items() if value.dtype.kind == "f"]
    return {
        name: np.concatenate([run[name].astype(np.float64).reshape(-1) for run in runs])
        for name in floats
    }


def _noise(truth: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """The mean over outputs of the noise's share of the signal's energy."""
    shares = [_energy(truth[name] - other[name]) / (_energy(truth[name]) or 1.0) for name in truth]
    return sum(shares) / len(shares) if shares else 0.0


def _energy(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)].astype(np.float64)
    return float(np.square(finite).sum())

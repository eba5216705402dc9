"""int8: ranges measured once on calibration rows, then graphs with fewer or more nodes in int8."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# importing this after the session module, which turns the library's usage reports off
from onnxruntime import GraphOptimizationLevel, InferenceSession
from onnxruntime import SessionOptions as OrtSessionOptions
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edgepack_packager.data.rows import Feeds
from edgepack_packager.errors import ConversionError
from edgepack_packager.graphs.clean import all_nodes, clean_passes
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import chunks, is_batched, open_folder, save_model
from edgepack_packager.quantize.operators import (
    ABSORBED_TYPES,
    DYNAMIC_TYPES,
    FLOAT_OUTPUT_TYPES,
    STATIC_TYPES,
    quantizable,
)
from edgepack_runtime.inference.session import Session

RANGE_BITS = 12
"""Ranges are rounded outwards to so many bits, which hides last-bit differences of processors."""


class QuantizerError(ConversionError):
    """The quantizer does not cope with a graph; its other candidates are not touched."""

    default_code = "quantizer"


@dataclass(frozen=True, slots=True)
class StaticPlan:
    """How to quantize.

    Attributes:
        activations: ``uint8`` on amd64, whose kernels multiply U8 by S8; ``int8`` on arm64.
        per_channel: One scale per output channel instead of per weight tensor.
        reduce_range: 7-bit weights, for processors whose 8-bit kernels saturate.
        excluded: Names of nodes that stay in float.
    """

    activations: str
    per_channel: bool = False
    reduce_range: bool = False
    excluded: tuple[str, ...] = ()


Ranges = dict[str, tuple[np.float32, np.float32]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A graph ready for static quantization, and the ranges of its tensors."""

    model: onnx.ModelProto
    ranges: Ranges
    nodes: tuple[str, ...]


def prepare(model: onnx.ModelProto, rows: Feeds) -> Prepared | None:
    """Fuse, then measure the range of every tensor that could become int8.

    Args:
        model: A cleaned graph.
        rows: Calibration rows, cast to the types that the model takes.

    Returns:
        None when no node can be quantized.

    Raises:
        ModelLoadError: onnxruntime refuses the graph.
        ModelRunError: The graph fails on the rows.
    """
    fused = _flat_biases(_fuse(model))
    nodes = quantizable(fused, STATIC_TYPES)
    if not nodes:
        return None
    return Prepared(model=fused, ranges=_measure(fused, rows), nodes=tuple(nodes))


def quantize_static(prepared: Prepared, plan: StaticPlan) -> onnx.ModelProto:
    """The graph with the nodes of ``prepared`` in int8, except the excluded ones.

    Raises:
        ValueError: All are excluded.
        QuantizerError: The quantizer does not cope with this graph.
    """
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    kept = [name for name in prepared.nodes if name not in plan.excluded]
    if not kept:
        raise ValueError("every node is excluded; that is the graph in float")
    absorbed = [node.name for node in model.graph.node if node.op_type in ABSORBED_TYPES]
    quantizer = QDQQuantizer(
        model,
        plan.per_channel,
        plan.reduce_range,
        QuantType.QInt8,
        QuantType.QUInt8 if plan.activations == "uint8" else QuantType.QInt8,
        TensorsData(CalibrationMethod.MinMax, dict(prepared.ranges)),
        [*kept, *absorbed],
        [],
        [*STATIC_TYPES, *ABSORBED_TYPES],
        {"OpTypesToExcludeOutputQuantization": list(FLOAT_OUTPUT_TYPES)},
    )
    with _quiet(), _foreseen():
        quantizer.quantize_model()
    return _recleaned(quantizer.model.model)


def quantize_dynamically(model: onnx.ModelProto, *, reduce_range: bool) -> onnx.ModelProto | None:
    """The graph with int8 weights and scales computed per run; None when nothing gains by it.

    Raises:
        QuantizerError: The quantizer does not cope with this graph.
    """
    nodes = quantizable(model, DYNAMIC_TYPES)
    gemms = quantizable(model, ("Gemm",))  # which the library turns into MatMul itself
    if not nodes and not gemms:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with TemporaryDirectory(prefix="edgepack-") as folder, _quiet(), _foreseen():
        path = Path(folder) / "dynamic.onnx"
        quantize_dynamic(
            copy,
            path,
            op_types_to_quantize=list(DYNAMIC_TYPES),
            weight_type=QuantType.QInt8,
            reduce_range=reduce_range,
        )
        return _recleaned(onnx.load(path))


def sensitivity(prepared: Prepared, plan: StaticPlan, rows: Feeds, folder: Path) -> list[str]:
    """The nodes of ``prepared``, the one that does most harm in int8 first.

    Each node is quantized alone and the outputs are compared with those in float.
    """
    save_model(prepared.model, folder / "float")
    truth = _outputs(folder / "float", rows)
    harm: dict[str, float] = {}
    for position, name in enumerate(prepared.nodes):
        others = tuple(node for node in prepared.nodes if node != name)
        alone = StaticPlan(plan.activations, plan.per_channel, plan.reduce_range, others)
        place = folder / f"alone-{position}"
        save_model(quantize_static(prepared, alone), place)
        harm[name] = _distance(truth, _outputs(place, rows))
    return sorted(prepared.nodes, key=lambda name: (-harm[name], name))


def _outputs(folder: Path, rows: Feeds) -> Feeds:
    session = open_folder(folder)
    size = 64 if is_batched(session) else 1
    runs = [session.run(part) for part in chunks(rows, size)]
    floats = [name for name, value in runs[0].items() if value.dtype.kind == "f"]
    return {name: np.concatenate([run[name] for run in runs]) for name in floats}


def _distance(one: Feeds, two: Feeds) -> float:
    """The mean over outputs of the relative L2 distance."""
    shares = [
        float(np.linalg.norm(one[name] - two[name]) / (np.linalg.norm(one[name]) or 1.0))
        for name in one
    ]
    return sum(shares) / len(shares) if shares else 0.0


def _fuse(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants, batch normalisation and biases, as the session would while loading."""
    with TemporaryDirectory(prefix="edgepack-") as folder:
        place = Path(folder)
        save_model(model, place)
        options = OrtSessionOptions()
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(place / "fused.onnx")
        options.log_severity_level = 4
        InferenceSession(str(place / "model.onnx"), options, providers=["CPUExecutionProvider"])
        return _recleaned(onnx.load(place / "fused.onnx"))


def _flat_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Reshape biases of [1, N] to [N]: the quantizer takes one for a matrix and fails."""
    biases = {
        node.input[2] for node in model.graph.node if node.op_type == "Gemm" and len(node.input) > 2
    }
    uses = [name for node in all_nodes(model.graph) for name in node.input]
    for tensor in model.graph.initializer:
        single = len(tensor.dims) == 2 and tensor.dims[0] == 1
        if tensor.name in biases and single and uses.count(tensor.name) == 1:
            flat = numpy_helper.to_array(tensor).reshape(-1)
            tensor.CopyFrom(numpy_helper.from_array(flat, tensor.name))
    return model


def _recleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    return run_passes(model, clean_passes())[0]


def _measure(model: onnx.ModelProto, rows: Feeds) -> Ranges:
    """Least and greatest value of every float tensor around a quantizable node."""
    wanted = _activations(model)
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    given = {item.name for item in (*probed.graph.input, *probed.graph.output)}
    probed.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in wanted
        if name not in given
    )
    with TemporaryDirectory(prefix="edgepack-") as folder:
        save_model(probed, Path(folder))
        session = open_folder(Path(folder), optimisation="off")
        ranges = _stream_ranges(session, rows, wanted)
        session.release()
    return {name: _rounded(low, high) for name, (low, high) in ranges.items()}


def _stream_ranges(
    session: Session, rows: Feeds, wanted: Sequence[str]
) -> dict[str, tuple[float, float]]:
    # one chunk of activations is held at a time: the library's own calibrators hold them all
    ranges: dict[str, tuple[float, float]] = {}
    for part in chunks(rows, 16 if is_batched(session) else 1):
        seen = {**part, **session.run(part)}
        for name in wanted:
            values = seen[name][np.isfinite(seen[name])]
            low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
            old = ranges.get(name, (low, high))
            ranges[name] = min(low, old[0]), max(high, old[1])
    return ranges


def _activations(model: onnx.ModelProto) -> list[str]:
    weights = {tensor.name for tensor in model.graph.initializer}
    types = (*STATIC_TYPES, *ABSORBED_TYPES)
    return sorted(
        {
            name
            for node in model.graph.node
            if node.op_type in types
            for name in (*node.input, *node.output)
            if name and name not in weights
        }
    )


def _rounded(low: float, high: float) -> tuple[np.float32, np.float32]:
    return np.float32(-_outwards(-low)), np.float32(_outwards(high))


def _outwards(value: float) -> float:
    """The next larger number of ``RANGE_BITS`` significant bits."""
    mantissa, exponent = np.frexp(value)
    return float(np.ldexp(np.ceil(np.ldexp(mantissa, RANGE_BITS)), exponent - RANGE_BITS))


@contextmanager
def _foreseen() -> Iterator[None]:
    # what the library raises, without a class of its own, for graphs it was not written for
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise QuantizerError(f"the quantizer fails on this graph: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    # the quantizer logs advice through the root logger, about steps that were already taken
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)

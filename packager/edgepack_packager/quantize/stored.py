"""Weights stored small and unpacked while the model loads: every operator, and no run is slower.

The session folds constant expressions when it loads a graph. A weight that is written as a cast
of a shorter one is therefore whole again before the first run: the file is smaller, while memory,
speed and the kernels in use are those of float. Computing in float16 itself gains nothing on the
processors that edgepack serves on: their kernels cast every value to float and back, which was
measured to be 2 to 4 times slower (onnxruntime#25824, #16778).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from edgepack_packager.graphs.clean import all_nodes
from edgepack_packager.quantize.library import copied, recleaned
from edgepack_packager.quantize.plan import Plan

FEWEST_WEIGHTS = 256
"""Below, the nodes that unpack take more bytes than they save."""

GREATEST_HALF = 65504.0
INT8_LEVELS = 127

WEIGHT_INPUTS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "GRU": (1, 2),
    "Gather": (0,),
    "Gemm": (1,),
    "LSTM": (1, 2),
    "MatMul": (1,),
    "RNN": (1, 2),
}
"""Which inputs of an operator are weights that bear rounding."""

_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "GRU": 1, "Gather": 0, "LSTM": 1, "RNN": 1}


@dataclass(frozen=True, slots=True)
class _Packed:
    """What stands for a weight: smaller constants, and the nodes that make it out of them."""

    constants: tuple[onnx.TensorProto, ...]
    nodes: tuple[onnx.NodeProto, ...]


_Pack = Callable[[onnx.TensorProto, Sequence[onnx.NodeProto]], "_Packed | None"]
"""From a weight and the nodes that take it; None leaves it as it is."""


def store_half(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto | None:
    """The graph with its float32 weights stored as float16; None when it has none to speak of.

    Weights that float16 cannot hold stay as they are.
    """
    return _stored(model, plan.excluded, _half)


def store_int8(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto | None:
    """The graph with its weights stored as int8, each output channel with a scale of its own.

    Returns:
        None when it has no weights to speak of.
    """
    return _stored(model, plan.excluded, _int8)


def _stored(model: onnx.ModelProto, excluded: Sequence[str], pack: _Pack) -> onnx.ModelProto | None:
    made = copied(model)
    if not sum(_store(graph, excluded, pack) for graph in _graphs(made.graph)):
        return None
    return recleaned(made)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _store(graph: onnx.GraphProto, excluded: Sequence[str], pack: _Pack) -> int:
    """Replace the weights of one graph; how many were."""
    takers: dict[str, list[onnx.NodeProto]] = {}
    for node in all_nodes(graph):
        for name in node.input:
            takers.setdefault(name, []).append(node)
    given = {item.name for item in graph.output}
    constants: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    found = 0
    for tensor in graph.initializer:
        by = takers.get(tensor.name, [])
        wanted = _is_large(tensor) and tensor.name not in given
        kept = any(node.name in excluded for node in by)
        packed = pack(tensor, by) if wanted and not kept else None
        found += packed is not None
        constants += packed.constants if packed else (tensor,)
        nodes += packed.nodes if packed else ()
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(constants)
    graph.node.extend(nodes)
    return found


def _is_large(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims)) >= FEWEST_WEIGHTS


def _half(tensor: onnx.TensorProto, _: Sequence[onnx.NodeProto]) -> _Packed | None:
    values = numpy_helper.to_array(tensor)
    if not (np.abs(values) <= GREATEST_HALF).all():
        return None
    short = f"{tensor.name}.half"
    cast = helper.make_node("Cast", [short], [tensor.name], to=TensorProto.FLOAT)
    return _Packed((numpy_helper.from_array(values.astype(np.float16), short),), (cast,))


def _int8(tensor: onnx.TensorProto, takers: Sequence[onnx.NodeProto]) -> _Packed | None:
    axes = {_channel_axis(tensor, node) for node in takers}
    axis = axes.pop() if len(axes) == 1 else None
    values = numpy_helper.to_array(tensor)
    if axis is None or not np.isfinite(values).all():
        return None
    others = tuple(other for other in range(values.ndim) if other != axis)
    scale = np.abs(values).max(axis=others, keepdims=True) / np.float32(INT8_LEVELS)
    scale[scale == 0] = 1
    levels = np.rint(values / scale).astype(np.int8)
    short, wide, by = (f"{tensor.name}.{part}" for part in ("int8", "cast", "scale"))
    return _Packed(
        (numpy_helper.from_array(levels, short), numpy_helper.from_array(scale, by)),
        (
            helper.make_node("Cast", [short], [wide], to=TensorProto.FLOAT),
            helper.make_node("Mul", [wide, by], [tensor.name]),
        ),
    )


def _channel_axis(tensor: onnx.TensorProto, node: onnx.NodeProto) -> int | None:
    """The axis of one output channel in a weight; None where it is no weight of ``node``."""
    places = [place for place, name in enumerate(node.input) if name == tensor.name]
    if len(tensor.dims) < 2 or not set(places) <= set(WEIGHT_INPUTS.get(node.op_type, ())):
        return None
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return _CHANNEL_AXIS.get(node.op_type, len(tensor.dims) - 1)

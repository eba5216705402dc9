"""How much of a model's weights a quantization reached."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def float_weight_bytes(model: onnx.ModelProto, kinds: tuple[int, ...] = _FLOATS) -> int:
    """Bytes of the constants of some kinds, those inside of branches and loops included."""
    return sum(_bytes(tensor) for tensor in weights(model.graph) if tensor.data_type in kinds)


def hidden_weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of float constants inside of branches and loops, where the quantizers do not look."""
    top = sum(_bytes(t) for t in _own_weights(model.graph) if t.data_type in _FLOATS)
    return float_weight_bytes(model) - top


def quantized_share(model: onnx.ModelProto, quantized: onnx.ModelProto) -> float:
    """The share of the bytes of ``model``'s float weights that are not in its own form any more.

    Args:
        model: The graph in float.
        quantized: What was made of it. Scales count as weights that were left in float.

    Returns:
        0 to 1; 0 for a graph without weights.
    """
    kinds = (TensorProto.FLOAT, TensorProto.DOUBLE)
    before = float_weight_bytes(model, kinds)
    after = float_weight_bytes(quantized, kinds)
    return max(0.0, 1.0 - after / before) if before else 0.0


def tensor_bytes(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of every initializer of the outermost graph."""
    return {tensor.name: _bytes(tensor) for tensor in model.graph.initializer}


def weights(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant of a graph, in initializers and in Constant nodes, at every depth."""
    yield from _own_weights(graph)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from weights(attribute.g)
            for inner in attribute.graphs:
                yield from weights(inner)


def _own_weights(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (a.t for a in node.attribute if a.type == AttributeProto.TENSOR)


def _bytes(tensor: onnx.TensorProto) -> int:
    # counted from the shape: the data may lie in another file
    width = int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return width * int(np.prod(tensor.dims, dtype=np.int64))

"""The constants of a graph: they hold what they claim, and numbers to compute with."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepack_packager.errors import ConversionError, ModelSourceError
from edgepack_packager.graphs.clean import all_nodes

WEIGHING = frozenset({
    "Attention", "BatchNormalization", "Conv", "ConvTranspose", "GRU", "Gather", "Gemm",
    "GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization", "MatMul", "PRelu",
    "RNN",
})  # fmt: skip
"""Operators whose constants are trained: no infinity belongs there, unlike in a mask."""


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant: initializers, attributes, parts of sparse ones, at every depth."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _tensors_of_node(node)


def check_claims(model: onnx.ModelProto) -> None:
    """Check that every constant holds as many values as its dimensions say.

    A few bytes may claim gigabytes, which would be allocated before anything is found wrong.

    Raises:
        ModelSourceError: One does not.
    """
    for tensor in all_tensors(model):
        problem = _claim(tensor)
        if problem:
            raise ModelSourceError(f"tensor {tensor.name[:80]!r}: {problem}", code="bad-tensor")
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise ConversionError(
            f"tensor {name[:80]!r} is stored sparse, which the runtime does not read; export the "
            "model with dense weights",
            code="sparse-tensor",
        )


def check_finite_weights(model: onnx.ModelProto) -> None:
    """Check that trained weights are numbers.

    A mask may hold infinities, and a single NaN may stand for a missing value; a weight may not.

    Raises:
        ConversionError: A weight is NaN or infinite, or an array of constants holds NaN.
    """
    trained = {
        name for node in all_nodes(model.graph) if node.op_type in WEIGHING for name in node.input
    }
    for tensor in all_tensors(model):
        if tensor.data_type not in _FLOATS:
            continue
        values = numpy_helper.to_array(tensor)
        weight = tensor.name in trained
        wrong = ~np.isfinite(values) if weight else np.isnan(values)
        count = int(np.count_nonzero(wrong))
        if count and (weight or values.size > 1):
            raise ConversionError(
                f"weight {tensor.name[:80]!r}: {count} of {values.size} values are NaN or "
                "infinite; the training diverged, or the file is damaged",
                code="nonfinite-weights",
            )


_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_SMALL: dict[int, int] = {
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1), 4),
    **dict.fromkeys((TensorProto.INT2, TensorProto.UINT2), 2),
}
"""Types of which several share a byte."""


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        yield from _tensors_of_node(node)


def _tensors_of_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            if sparse.HasField("values"):
                yield sparse.values
                yield sparse.indices
        if attribute.HasField("g"):
            yield from _tensors_of_graph(attribute.g)
        for graph in attribute.graphs:
            yield from _tensors_of_graph(graph)


def _claim(tensor: onnx.TensorProto) -> str:
    """What is wrong with the size that a tensor claims; empty when nothing is."""
    shape = list(tensor.dims)
    if any(size < 0 for size in shape):
        return f"its shape {shape} has a negative size"
    count = math.prod(shape)
    if tensor.data_type == TensorProto.STRING:
        held = len(tensor.string_data)
        return "" if held == count else f"its shape {shape} claims {count} texts, it holds {held}"
    width = _bits(tensor.data_type)
    if width is None:
        return f"its type {tensor.data_type} is none that ONNX knows"
    if tensor.HasField("raw_data"):
        wanted, held = math.ceil(count * width / 8), len(tensor.raw_data)
        return "" if held == wanted else f"its shape {shape} claims {wanted} bytes, it holds {held}"
    field = helper.tensor_dtype_to_field(tensor.data_type)
    held = len(getattr(tensor, field))
    wanted = _entries(tensor.data_type, count)
    return "" if held == wanted else f"its shape {shape} claims {wanted} values, it holds {held}"


def _bits(kind: int) -> int | None:
    """Bits of one value; None for what is no type of numbers."""
    if kind in _SMALL:
        return _SMALL[kind]
    try:
        return int(np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize * 8)
    except (KeyError, TypeError, ValueError):
        return None


def _entries(kind: int, count: int) -> int:
    """How many entries of its field ``count`` values take: pairs for complex, packed for 4 bits."""
    if kind in {TensorProto.COMPLEX64, TensorProto.COMPLEX128}:
        return 2 * count
    bits = _bits(kind) or 8
    return math.ceil(count * bits / 8) if bits < 8 else count

"""Which operators gain by which quantization, and which nodes of a graph those are."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from edgepack_packager.graphs.clean import all_nodes

STATIC_TYPES = ("Conv", "Gemm", "MatMul")
"""Operators with fast int8 kernels. The library's own default quantizes far more and ruins real
models: 1.3 % accuracy instead of 98.7 % was measured on one."""

ABSORBED_TYPES = ("Clip", "Relu")
"""Activations that the quantization of their input already performs."""

FLOAT_OUTPUT_TYPES = ("Gemm", "MatMul")
"""Their kernels give floats as fast as int8, so that nothing is lost before a softmax."""

DYNAMIC_TYPES = ("Gather", "LSTM", "MatMul")
"""Not Conv: its dynamic kernel has no fast path, 4 to 10 times slower was measured."""


def quantizable(model: onnx.ModelProto, types: Sequence[str]) -> list[str]:
    """Names of the nodes with constant weights that int8 can do something for."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in types and any(name in weights for name in node.input)
    ]


def is_tree_ensemble(model: onnx.ModelProto) -> bool:
    """Whether the model's work is done by trees, which have no int8 form."""
    return any(node.op_type.startswith("TreeEnsemble") for node in all_nodes(model.graph))

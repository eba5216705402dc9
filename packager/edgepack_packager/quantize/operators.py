"""Which operators gain by which quantization, and which nodes of a graph those are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from edgepack_packager.graphs.clean import all_nodes
from edgepack_packager.graphs.folding import PREFIXES

STATIC_TYPES = ("Conv", "Gemm", "MatMul")
"""Operators with fast int8 kernels. The library's own default quantizes far more and ruins real
models: 1.3 % accuracy instead of 98.7 % was measured on one."""

GROWN_TYPES = (
    "ConvTranspose",
    "Add",
    "Mul",
    "AveragePool",
    "GlobalAveragePool",
    "MaxPool",
    "Concat",
    "Resize",
    "LeakyRelu",
    "Sigmoid",
)
"""What may join, in this order, while the gates hold: it saves the way to float and back."""

ABSORBED_TYPES = ("Clip", "Relu")
"""Activations that the quantization of their input already performs."""

CARRIED_TYPES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""They only move values, so that what is fed by int8 through them is fed by int8."""

FLOAT_OUTPUT_TYPES = ("Gemm", "MatMul")
"""Their kernels give floats as fast as int8, so that nothing is lost before a softmax."""

DYNAMIC_TYPES = ("Attention", "Gather", "LSTM", "MatMul")
"""Not Conv: its dynamic kernel has no fast path, 4 to 10 times slower was measured."""

UNFOLDED_TYPES = (*DYNAMIC_TYPES, "Conv")
"""With Conv named, a dynamic plan makes convolutions into matrix products first."""

RECURRENT_TYPES = ("GRU", "RNN")
"""Recurrent layers for which onnxruntime has no int8 kernel, nor plans one."""


def quantizable(model: onnx.ModelProto, types: Sequence[str]) -> list[str]:
    """Names of the nodes with constant weights that int8 can do something for."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in types
        and not node.name.startswith(PREFIXES)
        and any(name in weights for name in node.input)
    ]


def static_nodes(model: onnx.ModelProto, types: Sequence[str]) -> list[str]:
    """Names of the nodes that a static plan over ``types`` quantizes, in the graph's order.

    What has weights of its own comes first; anything else joins only where every value that
    reaches it is int8 already. So nothing is quantized that a softmax, the parts of a layer
    normalisation, a one-hot code or a cast feed, which is what ruins models.
    """
    chosen = set(
        quantizable(model, [kind for kind in types if kind in (*STATIC_TYPES, "ConvTranspose")])
    )
    constants = {tensor.name for tensor in model.graph.initializer}
    int8 = set(constants)
    for node in model.graph.node:
        fed = [name for name in node.input if name]
        carried = node.op_type in (*ABSORBED_TYPES, *CARRIED_TYPES)
        own = not node.name.startswith(PREFIXES)
        joins = own and node.op_type in types and node.op_type in GROWN_TYPES
        reached = all(name in int8 for name in fed) and not constants.issuperset(fed)
        if node.name in chosen or (reached and (carried or joins)):
            int8.update(node.output)
            if joins:
                chosen.add(node.name)
    return [node.name for node in model.graph.node if node.name in chosen]


def weight_names(model: onnx.ModelProto, nodes: Iterable[str]) -> dict[str, list[str]]:
    """The constant inputs of each of ``nodes``."""
    weights = {tensor.name for tensor in model.graph.initializer}
    wanted = set(nodes)
    return {
        node.name: [name for name in node.input if name in weights]
        for node in model.graph.node
        if node.name in wanted
    }


CLASSICAL = ("Linear", "SVM", "TreeEnsemble")
"""How the names of operators begin that do the whole work of a classical model."""


def classical_operators(model: onnx.ModelProto) -> tuple[str, ...]:
    """Operators of trees, linear models and support vectors; none of them has an int8 form.

    They are in the list of what half precision leaves out, too.
    """
    found = {node.op_type for node in all_nodes(model.graph) if node.domain == "ai.onnx.ml"}
    return tuple(sorted(name for name in found if name.startswith(CLASSICAL)))

"""Small graphs for tests, each with one flaw or one feature."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def weight(name: str, shape: tuple[int, ...], seed: int = 0) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.3
    return numpy_helper.from_array(values, name)


def value(name: str, shape: list, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def build(
    nodes: list,
    inputs: list,
    outputs: list,
    weights: list = (),
    *,
    opsets: dict[str, int] | None = None,
    ir: int = 10,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializer=list(weights))
    imports = [helper.make_opsetid(*item) for item in (opsets or {"": 17}).items()]
    model = helper.make_model(graph, opset_imports=imports, producer_name="tests")
    model.ir_version = ir
    return model


def mlp(features: int = 8, hidden: int = 16, classes: int = 3, **options) -> onnx.ModelProto:
    """Two layers and a softmax."""
    return build(
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"]),
            helper.make_node("Add", ["h", "b1"], ["hb"]),
            helper.make_node("Relu", ["hb"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["s"]),
            helper.make_node("Softmax", ["s"], ["probabilities"]),
        ],
        [value("x", ["n", features])],
        [value("probabilities", ["n", classes])],
        [
            weight("w1", (features, hidden), 1),
            weight("b1", (1, hidden), 2),
            weight("w2", (hidden, classes), 3),
        ],
        **options,
    )


def cnn(channels: int = 8) -> onnx.ModelProto:
    """Convolution, batch normalisation, pooling, dense."""
    return build(
        [
            helper.make_node("Conv", ["x", "k"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["bn"]),
            helper.make_node("Relu", ["bn"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "w", "d"], ["scores"]),
        ],
        [value("x", ["n", 3, 12, 12])],
        [value("scores", ["n", 5])],
        [
            weight("k", (channels, 3, 3, 3), 1),
            *(numpy_helper.from_array(np.ones(channels, np.float32), name) for name in "gv"),
            *(numpy_helper.from_array(np.zeros(channels, np.float32), name) for name in "bm"),
            weight("w", (channels, 5), 2),
            weight("d", (5,), 3),
        ],
    )


def rows(features: int = 8, n: int = 64, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, features)).astype(np.float32)


def recurrent(
    *, width: int = 4, rows_last: bool = False, batch: int | str = "n"
) -> onnx.ModelProto:
    """A state that decays and takes in the input; the answer is a mixture of it.

    With ``rows_last`` the state is (layers, rows, width), as recurrent layers keep it.
    """
    layers = [2] if rows_last else []
    folded = [
        helper.make_node("ReduceMean", ["state"], ["old"], axes=[0], keepdims=0),
        helper.make_node("Tanh", ["mixed"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "layers"], ["one"]),
        helper.make_node("Concat", ["one", "one"], ["next"], axis=0),
    ]
    plain = [
        helper.make_node("Identity", ["state"], ["old"]),
        helper.make_node("Tanh", ["mixed"], ["flat"]),
        helper.make_node("Identity", ["flat"], ["next"]),
    ]
    first, *rest = folded if rows_last else plain
    return build(
        [
            first,
            helper.make_node("MatMul", ["old", "u"], ["kept"]),
            helper.make_node("MatMul", ["x", "w"], ["taken"]),
            helper.make_node("Add", ["kept", "taken"], ["mixed"]),
            *rest,
            helper.make_node("MatMul", ["flat", "v"], ["y"]),
        ],
        [value("x", [batch, 3]), value("state", [*layers, batch, width])],
        [value("y", [batch, 1]), value("next", [*layers, batch, width])],
        [
            weight("w", (3, width), 1),
            weight("u", (width, width), 2),
            weight("v", (width, 1), 3),
            *([numpy_helper.from_array(np.array([0]), "layers")] if rows_last else []),
        ],
    )

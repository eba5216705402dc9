"""Graphs that no device should load, each for a reason of its own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from raw_onnx import part

from edgepack_runtime.inference.variant import read_description

F, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
X = helper.make_tensor_value_info("x", F, ["batch", 4])
Y = helper.make_tensor_value_info("y", F, ["batch", 4])


def model(nodes, initializers=(), *, inputs=(X,), outputs=(Y,), **more) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", list(inputs), list(outputs), list(initializers))
    imports = more.pop("opsets", {"": 17})
    opsets = [helper.make_opsetid(domain, version) for domain, version in imports.items()]
    return helper.make_model(graph, opset_imports=opsets, **{"ir_version": 10, **more})


def adding(*, weights=None, change=None) -> onnx.ModelProto:
    """y = x + w, whose w may be changed."""
    tensor = numpy_helper.from_array(
        np.ones((1, 4), np.float32) if weights is None else weights, "w"
    )
    if change:
        change(tensor)
    return model([helper.make_node("Add", ["x", "w"], ["y"])], [tensor])


def outside(**said) -> onnx.ModelProto:
    """Its weights lie in a file; ``said`` is where."""

    def change(tensor):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in said.items():
            tensor.external_data.add(key=key, value=value)

    return adding(change=change)


def shaped(*dims: int, raw: bytes = b"") -> onnx.ModelProto:
    """Its weights say that they have a shape."""

    def change(tensor):
        del tensor.dims[:]
        tensor.dims.extend(dims)
        tensor.raw_data = raw

    return adding(change=change)


def in_attribute(tensor: TensorProto) -> onnx.ModelProto:
    """The tensor is a Constant's."""
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    return model([constant, helper.make_node("Add", ["x", "w"], ["y"])])


def nested(depth: int) -> onnx.ModelProto:
    """If in If in If."""
    out = helper.make_tensor_value_info("z", F, None)
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [out])
    for _ in range(depth):
        node = helper.make_node("If", ["yes"], ["z"], then_branch=body, else_branch=body)
        node.attribute[1].g.CopyFrom(
            helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "e", [], [out])
        )
        body = helper.make_graph([node], "b", [], [out])
    nodes = [*body.node, helper.make_node("Identity", ["z"], ["y"])]
    return model(nodes, [numpy_helper.from_array(np.array(True), "yes")])


def looping(rounds: int, body: list[onnx.NodeProto], *initializers: TensorProto) -> onnx.ModelProto:
    """y = value after rounds of body, which makes ``next`` of ``value``."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), *body],
        "body",
        [
            helper.make_tensor_value_info("round", I64, []),
            helper.make_tensor_value_info("go", BOOL, []),
            helper.make_tensor_value_info("value", F, None),
        ],
        [
            helper.make_tensor_value_info("go_on", BOOL, []),
            helper.make_tensor_value_info("next", F, None),
        ],
    )
    return model(
        [helper.make_node("Loop", ["rounds", "yes", "x"], ["y"], body=graph)],
        [
            numpy_helper.from_array(np.array(rounds, np.int64), "rounds"),
            numpy_helper.from_array(np.array(True), "yes"),
            *initializers,
        ],
    )


def endless() -> onnx.ModelProto:
    """It loads, and never answers."""
    return looping(2**62, [helper.make_node("Add", ["value", "value"], ["next"])])


def growing() -> onnx.ModelProto:
    """It doubles its value until there is no memory left."""
    body = [helper.make_node("Concat", ["value", "value"], ["next"], axis=0)]
    return looping(48, body)


def deep_tree(depth: int) -> onnx.ModelProto:
    """A valid tree of one long branch: onnxruntime builds it recursively, and its stack ends."""
    leaves, size = depth + 1, 2 * depth + 1
    nothing = [0] * size
    tree = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=4,
        nodes_treeids=nothing,
        nodes_nodeids=list(range(size)),
        nodes_featureids=nothing,
        nodes_values=[float(number) for number in range(size)],
        nodes_modes=["BRANCH_LEQ"] * depth + ["LEAF"] * leaves,
        nodes_truenodeids=[*range(1, depth + 1)] + [0] * leaves,
        nodes_falsenodeids=[*range(depth + 1, size)] + [0] * leaves,
        target_treeids=[0] * leaves,
        target_nodeids=list(range(depth, size)),
        target_ids=[0] * leaves,
        target_weights=[1.0] * leaves,
        post_transform="NONE",
    )
    return model([tree], opsets={"": 17, "ai.onnx.ml": 3})


def not_a_number() -> onnx.ModelProto:
    """Its golden rows were made with other weights."""
    return adding(weights=np.full((1, 4), np.nan, np.float32))


def cyclic() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Add", ["a", "x"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    return model(nodes)


def with_field(graph: onnx.ModelProto, number: int, content: bytes) -> bytes:
    """A field more at the end of a serialised model."""
    return graph.SerializeToString() + part(number, content)


def put(folder: Path, graph: onnx.ModelProto | bytes) -> Path:
    """Lay a graph into the variant, whose description says its opsets when they are unusual."""
    raw = graph if isinstance(graph, bytes) else graph.SerializeToString()
    (folder / "model.onnx").write_bytes(raw)
    description = read_description(folder)
    opsets = {"ai.onnx": 17} | ({"ai.onnx.ml": 3} if b"ai.onnx.ml" in raw[-64:] else {})
    changed = msgspec.structs.replace(description, opsets=opsets)
    (folder / "edgepack.json").write_bytes(changed.to_bytes())
    return folder

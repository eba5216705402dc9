"""Graphs that nobody should have to load, each with one flaw."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.packager.models import build, mlp, value, weight


def chain(*nodes: onnx.NodeProto, weights: list = (), **options) -> onnx.ModelProto:
    """A graph from ``x`` to ``y``."""
    return build(list(nodes), [value("x", ["n", 4])], [value("y", None)], weights, **options)


def node(kind: str, inputs: str, outputs: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def claiming(dims: list[int], raw: bytes = b"x", kind: int = TensorProto.FLOAT):
    """A product with a weight that says it has these dimensions."""
    tensor = TensorProto(name="w", data_type=kind, dims=dims)
    if kind == TensorProto.STRING:
        tensor.string_data.append(raw)
    else:
        tensor.raw_data = raw
    return chain(node("MatMul", "x w", "y"), weights=[tensor])


def claiming_values():
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[30000, 30000])
    tensor.float_data.extend([1.0, 2.0])
    return chain(node("MatMul", "x w", "y"), weights=[tensor])


def claiming_inside():
    """The claim is in an attribute of a node of a sub-graph."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[30000, 30000], raw_data=b"x")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor), node("MatMul", "x c", "o")],
        "inner",
        [],
        [value("o", None)],
    )
    condition = numpy_helper.from_array(np.array(True), "yes")
    return chain(node("If", "yes", "y", then_branch=inner, else_branch=inner), weights=[condition])


def sparse():
    model = chain(node("MatMul", "x w", "y"))
    tensor = model.graph.sparse_initializer.add(dims=[50000, 50000])
    tensor.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "w"))
    tensor.indices.CopyFrom(numpy_helper.from_array(np.array([10**12]), "i"))
    return model


def nonfinite(name: str, number: float, count: int):
    model = mlp()
    tensor = next(item for item in model.graph.initializer if item.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[:count] = number
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model


def functions(*bodies: tuple[str, list[str]], call: str) -> onnx.ModelProto:
    """A graph that calls local functions, each of which calls others by name."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = []
    for name, called in bodies:
        names = ["a", *(f"t{place}" for place in range(len(called) - 1)), "b"]
        nodes = [
            helper.make_node(kind, [one], [two], domain="" if kind == "Relu" else "own")
            for kind, one, two in zip(called, names, names[1:], strict=False)
        ]
        made.append(helper.make_function("own", name, ["a"], ["b"], nodes, imports))
    model = chain(helper.make_node(call, ["x"], ["y"], domain="own"), opsets={"": 17, "own": 1})
    model.functions.extend(made)
    return model


def laughing():
    """Nine functions of ten calls each: a thousand million operators in a few kilobytes."""
    bodies = [("F0", ["Relu"]), *((f"F{n}", [f"F{n - 1}"] * 10) for n in range(1, 10))]
    return functions(*bodies, call="F9")


def endless():
    """A loop that is told to run for ever."""
    body = helper.make_graph(
        [node("Identity", "go", "on"), node("Relu", "v", "w")],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("v", None)],
        [value("on", [], TensorProto.BOOL), value("w", None)],
    )
    weights = [
        numpy_helper.from_array(np.array(2**62), "times"),
        numpy_helper.from_array(np.array(True), "yes"),
    ]
    return chain(node("Loop", "times yes x", "y", body=body), weights=weights)


def greedy():
    """Forty terabytes out of one number."""
    size = numpy_helper.from_array(np.array([10**13]), "size")
    return chain(
        node("ConstantOfShape", "size", "c"),
        helper.make_node("ReduceSum", ["c"], ["r"], keepdims=0),
        node("Add", "x r", "y"),
        weights=[size],
    )


def versions(*, opset: int = 17, ir: int = 10):
    return chain(node("Relu", "x", "y"), opsets={"": opset}, ir=ir)


def training():
    model = mlp()
    model.training_info.add()
    return model


def dropping():
    weights = [
        numpy_helper.from_array(np.float32(0.5), "ratio"),
        numpy_helper.from_array(np.array(True), "on"),
    ]
    return chain(node("Dropout", "x ratio on", "y"), weights=weights)


def branching(outputs: int):
    """A choice whose branches give another number of values than it says."""
    inner = helper.make_graph(
        [node("Abs", "x", f"o{place}") for place in range(outputs)],
        "inner", [], [value(f"o{place}", None) for place in range(outputs)],
    )  # fmt: skip
    condition = numpy_helper.from_array(np.array(True), "yes")
    return chain(node("If", "yes", "y", then_branch=inner, else_branch=inner), weights=[condition])


def nameless() -> bytes:
    """The name of a value is no UTF-8."""
    return chain(node("Relu", "xxxx", "y")).SerializeToString().replace(b"xxxx", b"\xff\xfexx")


def without(part: str) -> onnx.ModelProto:
    if part == "inputs":
        return build([node("Relu", "w", "y")], [], [value("y", None)], [weight("w", (2, 2))])
    model = mlp()
    del getattr(model.graph, part)[:]
    return model


BAD = {
    "truncated": (lambda: mlp().SerializeToString()[:-40], "not-onnx", "damaged or cut off"),
    "empty": (lambda: b"", "not-onnx", "it is empty"),
    "text": (lambda: b"hello, world\n" * 40, "not-onnx", "it is text"),
    "zip": (lambda: b"PK\x03\x04" + bytes(range(256)), "not-onnx", "zip archive"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "not-onnx", "Git LFS"),
    "no operators": (lambda: without("node"), "empty-model", "no operators"),
    "no inputs": (lambda: without("inputs"), "no-inputs", "always the same"),
    "no outputs": (lambda: without("output"), "no-outputs", "nothing to serve"),
    "claim": (lambda: claiming([30000, 30000]), "bad-tensor", "claims 3600000000 bytes"),
    "claim in values": (claiming_values, "bad-tensor", "claims 900000000 values, it holds 2"),
    "claim of texts": (
        lambda: claiming([2**31], kind=TensorProto.STRING), "bad-tensor", "claims 2147483648 texts",
    ),
    "claim inside": (claiming_inside, "bad-tensor", "claims 3600000000 bytes"),
    "negative size": (lambda: claiming([-4, 4], bytes(64)), "bad-tensor", "negative"),
    "overflow": (lambda: claiming([2**62, 4], bytes(64)), "bad-tensor", "claims"),
    "unknown type": (lambda: claiming([2], bytes(8), kind=99), "bad-tensor", "type 99"),
    "sparse": (sparse, "sparse-tensor", "dense"),
    "cycle": (
        lambda: chain(node("Add", "x b", "a"), node("Relu", "a", "b"), node("Identity", "b", "y")),
        "cyclic-graph",
        r"(Relu 'b' <- Add 'a'|Add 'a' <- Relu 'b')",
    ),
    "self": (lambda: chain(node("Add", "x y", "y")), "cyclic-graph", "Add 'y'"),
    "twice": (
        lambda: chain(node("Relu", "x", "y"), node("Abs", "x", "y")), "duplicate-name", "Abs 'y'",
    ),
    "weight twice": (
        lambda: chain(node("MatMul", "x w", "y"), weights=[weight("w", (4, 4))] * 2),
        "duplicate-name",
        "initializer 'w'",
    ),
    "nothing gives": (lambda: chain(node("Add", "x z", "y")), "unknown-value", "Add 'y' takes 'z'"),
    "output from nowhere": (lambda: chain(node("Relu", "x", "z")), "unknown-value", "output 'y'"),
    "operator": (
        lambda: chain(helper.make_node("Rellu", ["x"], ["y"], name="act")),
        "unknown-operator",
        "operator 'Rellu' of domain 'ai.onnx' .Rellu 'act'.",
    ),
    "domain": (
        lambda: chain(node("Foo", "x", "y", domain="acme.ops"), opsets={"": 17, "acme.ops": 1}),
        "unknown-operator",
        "domain 'acme.ops'.*--preprocess",
    ),
    "no attribute": (
        lambda: chain(node("Concat", "x x", "y")), "missing-attribute", "Concat 'y' lacks axis",
    ),
    "branches": (lambda: branching(2), "bad-branch", "If 'y' gives 1 values, a branch of it 2"),
    "no opset": (
        lambda: chain(node("Scaler", "x", "y", domain="ai.onnx.ml")), "no-opset", "'ai.onnx.ml'",
    ),
    "names": (nameless, "not-onnx", "no text"),
    "recursive function": (
        lambda: functions(("F", ["G"]), ("G", ["F"]), call="F"), "recursive-function", " -> ",
    ),
    "laughing functions": (laughing, "too-many-nodes", "up to 200000"),
    "opset 99": (lambda: versions(opset=99), "opset", "opset 99"),
    "opset -1": (lambda: versions(opset=-1), "opset", "opset -1"),
    "IR 99": (lambda: versions(ir=99), "ir-version", "version 99"),
    "training": (training, "training-graph", r"model\.eval"),
    "dropout": (dropping, "training-graph", "Dropout 'y' is in training mode"),
    "endless": (endless, "model-hangs", "Loop"),
    "greedy": (greedy, "model-memory", "ConstantOfShape"),
}  # fmt: skip
"""By name: what makes it, the code of its refusal, and words of it."""

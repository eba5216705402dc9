"""What the tests of quantization share: cleaned graphs, rows, and the answers of a graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.packager.models import build, value, weight

from edgepack_packager.graphs.clean import clean_passes
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import open_folder, run_rows, save_model
from edgepack_packager.quantize.making import Prepared, make, prepare
from edgepack_packager.quantize.plan import Plan

STATIC = Plan(name="static", precision="int8-static", activations="uint8")
DYNAMIC = Plan(name="dynamic", precision="int8-dynamic")


def clean(model):
    return run_passes(model, clean_passes())[0]


def ready(model, feeds=None) -> Prepared:
    return prepare(clean(model), feeds)


def made(model, plan, feeds=None):
    return make(ready(model, feeds), plan)


def outputs(model, folder, feeds, *, chunk=64):
    save_model(model, folder)
    return run_rows(open_folder(folder), feeds, chunk=chunk)


def gap(one, two, folder, feeds):
    """The largest difference of the first outputs, as a share of the spread of the first's."""
    left, right = outputs(one, folder / "one", feeds), outputs(two, folder / "two", feeds)
    assert left.keys() == right.keys()
    name = next(iter(left))
    return float(np.abs(left[name] - right[name]).max() / np.ptp(left[name]))


def kinds(model):
    return [node.op_type for node in model.graph.node]


def weights_of(model, kind):
    return [
        numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == kind and tensor.dims
    ]


def image_rows(n=32, size=12, channels=3):
    return np.random.default_rng(3).standard_normal((n, channels, size, size)).astype(np.float32)


def branching(*, constant: bool) -> onnx.ModelProto:
    """A choice between two products; ``constant``: by a constant, else by the input."""
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", name], [f"{name}-out"])],
            name,
            [],
            [value(f"{name}-out", ["n", 64])],
            initializer=[weight(name, (8, 64), seed)],
        )
        for seed, name in enumerate(("then", "else"), 1)
    ]
    chosen = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
    ]
    if constant:
        chosen = [helper.make_node("Equal", ["rate", "wanted"], ["c"])]
    made_of = [numpy_helper.from_array(np.int64(8000), name) for name in ("rate", "wanted")]
    return build(
        [
            *chosen,
            helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1]),
        ],
        [value("x", ["n", 8])],
        [value("y", ["n", 64])],
        made_of if constant else [],
    )


def recurrent(kind: str, features=4, hidden=16) -> onnx.ModelProto:
    """One recurrent layer over [steps, batch, features]."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    return build(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            helper.make_node(kind, ["t", "w", "r"], ["", "h"], hidden_size=hidden),
            helper.make_node("Squeeze", ["h", "first"], ["y"]),
        ],
        [value("x", ["n", "steps", features])],
        [value("y", ["n", hidden])],
        [
            weight("w", (1, gates * hidden, features), 1),
            weight("r", (1, gates * hidden, hidden), 2),
            numpy_helper.from_array(np.array([0]), "first"),
        ],
    )

"""Which nodes join int8: those with weights, and what only int8 feeds."""

from onnx import TensorProto, helper
from tests.packager.models import build, value, weight
from tests.packager.quantize.made import clean

from edgepack_packager.quantize.operators import (
    GROWN_TYPES,
    STATIC_TYPES,
    quantizable,
    static_nodes,
)

EVERYTHING = (*STATIC_TYPES, *GROWN_TYPES)


def chosen(model, types=EVERYTHING):
    found = set(static_nodes(clean(model), types))
    return {node.op_type for node in clean(model).graph.node if node.name in found}


def test_quantizable_nodes_have_constant_weights():
    model = build(
        [helper.make_node("MatMul", ["x", "z"], ["y"], name="dynamic")],
        [value("x", ["n", 4]), value("z", [4, 4])],
        [value("y", ["n", 4])],
    )
    assert quantizable(model, STATIC_TYPES) == []


def test_what_int8_feeds_joins_and_nothing_else():
    model = build(
        [
            helper.make_node("Conv", ["x", "k"], ["c"], kernel_shape=[3, 3]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2]),
            helper.make_node("Mul", ["p", "two"], ["y"]),
        ],
        [value("x", ["n", 3, 8, 8])],
        [value("y", ["n", 4, 5, 5])],
        [weight("k", (4, 3, 3, 3)), weight("two", (1,))],
    )
    assert chosen(model) == {"Conv", "MaxPool", "Mul"}
    assert chosen(model, STATIC_TYPES) == {"Conv"}


def test_nothing_joins_behind_softmax_normalisation_or_a_cast():
    for before in (
        [helper.make_node("Softmax", ["h"], ["s"])],
        [helper.make_node("Cast", ["x"], ["s"], to=TensorProto.FLOAT)],
        [
            helper.make_node("ReduceMean", ["h"], ["m"], axes=[1]),
            helper.make_node("Sub", ["h", "m"], ["s"]),
        ],
    ):
        model = build(
            [
                helper.make_node("MatMul", ["x", "w"], ["h"]),
                *before,
                helper.make_node("Mul", ["s", "two"], ["t"]),
                helper.make_node("Add", ["t", "h"], ["y"]),
            ],
            [value("x", ["n", 8])],
            [value("y", ["n", 8])],
            [weight("w", (8, 8)), weight("two", (1,))],
        )
        assert chosen(model) == {"MatMul"}


def test_a_models_own_input_is_not_int8():
    model = build(
        [
            helper.make_node("Add", ["x", "b"], ["s"]),
            helper.make_node("MatMul", ["s", "w"], ["y"]),
        ],
        [value("x", ["n", 8])],
        [value("y", ["n", 8])],
        [weight("w", (8, 8)), weight("b", (8,))],
    )
    assert chosen(model) == {"MatMul"}

"""Quantization: each known trap of the quantizer, with the guard that is meant to hold."""

import logging

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.packager.models import build, cnn, mlp, rows, value, weight

from edgepack_packager.graphs.clean import clean_passes, operators, serialise
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import open_folder, run_rows, save_model
from edgepack_packager.quantize import static
from edgepack_packager.quantize.operators import STATIC_TYPES, quantizable
from edgepack_packager.quantize.static import (
    StaticPlan,
    prepare,
    quantize_dynamically,
    quantize_static,
    sensitivity,
)
from edgepack_packager.search.candidates import Workshop, first_plans
from edgepack_packager.targets import load_target

U8 = StaticPlan("uint8")


def clean(model):
    return run_passes(model, clean_passes())[0]


def outputs(model, folder, feeds):
    save_model(model, folder)
    return run_rows(open_folder(folder), feeds)


def weights_of(model, kind):
    return [
        numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == kind and tensor.dims
    ]


def image_rows(n=32):
    return np.random.default_rng(3).standard_normal((n, 3, 12, 12)).astype(np.float32)


@pytest.mark.parametrize("plan", [
    U8,
    StaticPlan("uint8", per_channel=True),
    StaticPlan("uint8", reduce_range=True),
    StaticPlan("int8", per_channel=True),
])  # fmt: skip
@pytest.mark.parametrize(("model", "feeds"), [(mlp(), rows()), (cnn(), image_rows())])
def test_static_int8_stays_close_to_float(tmp_path, plan, model, feeds):
    cleaned = clean(model)
    prepared = prepare(cleaned, {"x": feeds})
    quantized = quantize_static(prepared, plan)
    one = outputs(cleaned, tmp_path / "a", {"x": feeds})
    two = outputs(quantized, tmp_path / "b", {"x": feeds})
    (name,) = one
    gap = np.abs(one[name] - two[name]).max() / np.ptp(one[name])
    assert 0 < gap < 0.1
    assert weights_of(quantized, TensorProto.INT8)


def test_only_the_operators_with_fast_kernels_are_quantized():
    quantized = quantize_static(prepare(clean(mlp()), {"x": rows()}), U8)
    feeding = {name: node for node in quantized.graph.node for name in node.output}
    softmax = next(node for node in quantized.graph.node if node.op_type == "Softmax")
    assert feeding[softmax.input[0]].op_type in {"Gemm", "MatMul", "Add"}


def test_activations_follow_the_architecture():
    plans = {name: first_plans(load_target(name))[1] for name in ("x86-64-v4-vnni", "rpi5")}
    assert plans["x86-64-v4-vnni"].activations == "uint8"
    assert plans["rpi5"].activations == "int8"
    workshop = Workshop(clean(mlp()), {"x": rows()})
    for name, kind in (("x86-64-v4-vnni", TensorProto.UINT8), ("rpi5", TensorProto.INT8)):
        model = workshop.make(plans[name])
        zeros = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        used = {zeros[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"}
        assert used == {kind}


def test_seven_bit_weights_where_eight_saturate():
    prepared = prepare(clean(mlp()), {"x": rows()})
    full = weights_of(quantize_static(prepared, U8), TensorProto.INT8)
    reduced = weights_of(
        quantize_static(prepared, StaticPlan("uint8", reduce_range=True)), TensorProto.INT8
    )
    assert max(np.abs(w.astype(int)).max() for w in full) > 64
    assert max(np.abs(w.astype(int)).max() for w in reduced) <= 64


def test_a_bias_with_two_dimensions_does_not_break_per_channel():
    model = build(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        [value("x", ["n", 8])],
        [value("y", ["n", 4])],
        [weight("w", (8, 4), 1), weight("b", (1, 4), 2)],
    )
    prepared = prepare(clean(model), {"x": rows()})
    assert quantize_static(prepared, StaticPlan("uint8", per_channel=True)).graph.node


def test_batch_normalisation_is_folded_before_it_is_quantized():
    prepared = prepare(clean(cnn()), {"x": image_rows()})
    assert not any("BatchNormalization" in name for name in operators(prepared.model))


def test_ranges_hold_every_value_and_hide_the_last_bits():
    feeds = rows()
    prepared = prepare(clean(mlp()), {"x": feeds})
    low, high = prepared.ranges["x"]
    assert low <= feeds.min() < feeds.max() <= high
    nudged = prepare(clean(mlp()), {"x": feeds * np.float32(1 + 1e-7)})
    assert nudged.ranges == prepared.ranges


def test_calibration_ignores_what_is_not_finite():
    feeds = rows()
    feeds[3, 2] = np.nan
    feeds[4, 1] = np.inf
    low, high = prepare(clean(mlp()), {"x": feeds}).ranges["x"]
    assert np.isfinite([low, high]).all()


def test_dynamic_int8_leaves_convolutions_alone():
    assert "ai.onnx:ConvInteger" not in operators(
        quantize_dynamically(clean(cnn()), reduce_range=False)
    )
    only = build(
        [helper.make_node("Conv", ["x", "k"], ["y"], kernel_shape=[3, 3])],
        [value("x", ["n", 3, 8, 8])],
        [value("y", ["n", 4, 6, 6])],
        [weight("k", (4, 3, 3, 3))],
    )
    assert quantize_dynamically(clean(only), reduce_range=False) is None


def test_dynamic_int8_handles_gemm(tmp_path):
    model = clean(mlp())
    quantized = quantize_dynamically(model, reduce_range=False)
    assert "ai.onnx:MatMulInteger" in operators(quantized)
    one, two = (
        outputs(m, tmp_path / str(i), {"x": rows()}) for i, m in enumerate((model, quantized))
    )
    assert np.abs(one["probabilities"] - two["probabilities"]).max() < 0.1


def test_weights_inside_branches_are_left_alone():
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "wt"], ["a"])], "t", [], [value("a", ["n", 4])],
        initializer=[weight("wt", (8, 4))],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "we"], ["b"])], "e", [], [value("b", ["n", 4])],
        initializer=[weight("we", (8, 4))],
    )  # fmt: skip
    model = build(
        [
            helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
            helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
            helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
        ],
        [value("x", ["n", 8])],
        [value("y", ["n", 4])],
    )
    assert prepare(clean(model), {"x": rows()}) is None


def test_a_graph_without_weights_has_no_int8_form():
    model = build(
        [helper.make_node("Relu", ["x"], ["y"])], [value("x", ["n", 4])], [value("y", ["n", 4])]
    )
    workshop = Workshop(clean(model), {"x": rows(4)})
    made = [workshop.make(plan) for plan in first_plans(load_target("generic-amd64"))]
    assert [item is not None for item in made] == [True, False, False]


def test_the_same_rows_give_the_same_bytes():
    made = [serialise(quantize_static(prepare(clean(mlp()), {"x": rows()}), U8)) for _ in range(2)]
    assert made[0] == made[1]


def test_every_node_excluded_is_not_int8():
    prepared = prepare(clean(mlp()), {"x": rows()})
    with pytest.raises(ValueError, match="excluded"):
        quantize_static(prepared, StaticPlan("uint8", excluded=prepared.nodes))


def test_the_most_harmful_node_is_handed_back_first(tmp_path):
    model = mlp()
    spiky = numpy_helper.to_array(model.graph.initializer[0]).copy()
    spiky[:, 0] *= 400  # one outlier column ruins the scale of the whole first weight
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(spiky, "w1"))
    prepared = prepare(clean(model), {"x": rows()})
    ranked = sensitivity(prepared, U8, {"x": rows()}, tmp_path)
    assert set(ranked) == set(prepared.nodes)
    first = next(node for node in prepared.model.graph.node if node.name == ranked[0])
    assert "w1" in first.input


def test_refinements_go_from_finer_scales_to_more_float(tmp_path):
    workshop = Workshop(clean(mlp()), {"x": rows()})
    plan = first_plans(load_target("generic-amd64"))[1]
    finer = list(workshop.refinements(plan, tmp_path))
    assert [item.per_channel for item in finer] == [True] * len(finer)
    assert [len(item.excluded) for item in finer] == [0, 1]
    assert len({item.name for item in finer}) == len(finer)


def test_the_quantizers_advice_is_not_printed(caplog):
    with caplog.at_level(logging.WARNING):
        quantize_static(prepare(clean(mlp()), {"x": rows()}), U8)
        quantize_dynamically(clean(mlp()), reduce_range=False)
    assert caplog.records == []


def test_a_failure_of_the_quantizer_has_a_name(monkeypatch):
    prepared = prepare(clean(mlp()), {"x": rows()})
    broken = static.Prepared(prepared.model, {}, prepared.nodes)
    with pytest.raises(static.QuantizerError, match="quantizer fails"):
        quantize_static(broken, U8)


def test_quantizable_nodes_have_constant_weights():
    model = build(
        [helper.make_node("MatMul", ["x", "z"], ["y"], name="dynamic")],
        [value("x", ["n", 4]), value("z", [4, 4])],
        [value("y", ["n", 4])],
    )
    assert quantizable(model, STATIC_TYPES) == []

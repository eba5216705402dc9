"""Static int8: each known trap of the quantizer, with the guard that is meant to hold."""

import logging

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.packager.models import build, cnn, mlp, rows, value, weight
from tests.packager.quantize.made import (
    DYNAMIC,
    STATIC,
    branching,
    gap,
    image_rows,
    kinds,
    made,
    ready,
    weights_of,
)

from edgepack_packager.graphs.clean import operators, serialise
from edgepack_packager.quantize.library import QuantizerError
from edgepack_packager.quantize.making import make
from edgepack_packager.quantize.static import quantize_static

VARIED = [
    {},
    {"per_channel": True},
    {"reduce_range": True},
    {"activations": "int8", "per_channel": True},
    {"weights": "uint8"},
    {"calibration": "percentile-99.999"},
    {"calibration": "entropy"},
]


@pytest.mark.parametrize("changes", VARIED)
@pytest.mark.parametrize(("model", "feeds"), [(mlp(), rows()), (cnn(), image_rows())])
def test_static_int8_stays_close_to_float(tmp_path, changes, model, feeds):
    prepared = ready(model, {"x": feeds})
    quantized = make(prepared, msgspec.structs.replace(STATIC, **changes))
    assert 0 < gap(prepared.model, quantized, tmp_path, {"x": feeds}) < 0.2
    kind = TensorProto.UINT8 if changes.get("weights") else TensorProto.INT8
    assert weights_of(quantized, kind)


def test_only_the_operators_with_fast_kernels_are_quantized():
    quantized = made(mlp(), STATIC, {"x": rows()})
    feeding = {name: node for node in quantized.graph.node for name in node.output}
    softmax = next(node for node in quantized.graph.node if node.op_type == "Softmax")
    assert feeding[softmax.input[0]].op_type in {"Gemm", "MatMul", "Add"}


@pytest.mark.parametrize(("name", "kind"), [("uint8", "UINT8"), ("int8", "INT8")])
def test_activations_are_of_the_type_that_the_kernels_take(name, kind):
    model = made(mlp(), msgspec.structs.replace(STATIC, activations=name), {"x": rows()})
    zeros = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    used = {zeros[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert used == {getattr(TensorProto, kind)}


def test_seven_bit_weights_where_eight_saturate():
    prepared = ready(mlp(), {"x": rows()})
    full, reduced = (
        max(
            np.abs(w.astype(int)).max()
            for w in weights_of(
                make(prepared, msgspec.structs.replace(STATIC, reduce_range=reduce)),
                TensorProto.INT8,
            )
        )
        for reduce in (False, True)
    )
    assert reduced <= 64 < full


def test_a_bias_with_two_dimensions_does_not_break_per_channel():
    model = build(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        [value("x", ["n", 8])],
        [value("y", ["n", 4])],
        [weight("w", (8, 4), 1), weight("b", (1, 4), 2)],
    )
    assert made(model, msgspec.structs.replace(STATIC, per_channel=True), {"x": rows()})


def test_batch_normalisation_is_folded_before_it_is_quantized():
    prepared = ready(cnn(), {"x": image_rows()})
    assert not any("BatchNormalization" in name for name in operators(prepared.fused))


def test_growing_takes_more_operators_into_int8():
    prepared = ready(cnn(), {"x": image_rows()})
    assert prepared.grown == ("GlobalAveragePool",)
    grown = msgspec.structs.replace(STATIC, operators=("Conv", "Gemm", "GlobalAveragePool"))
    few, more = make(prepared, STATIC), make(prepared, grown)
    assert kinds(more).count("QuantizeLinear") > kinds(few).count("QuantizeLinear") - 1
    assert serialise(more) != serialise(few)


def test_weights_inside_branches_are_left_alone():
    prepared = ready(branching(constant=False), {"x": rows()})
    assert prepared.nodes == ()
    assert make(prepared, STATIC) is None


def test_the_same_rows_give_the_same_bytes():
    graphs = [serialise(made(cnn(), STATIC, {"x": image_rows()})) for _ in range(2)]
    assert graphs[0] == graphs[1]


def test_every_node_excluded_is_no_candidate():
    prepared = ready(mlp(), {"x": rows()})
    assert make(prepared, msgspec.structs.replace(STATIC, excluded=prepared.nodes)) is None


def test_an_excluded_node_stays_in_float():
    prepared = ready(mlp(), {"x": rows()})
    one = make(prepared, msgspec.structs.replace(STATIC, excluded=prepared.nodes[:1]))
    assert len(weights_of(one, TensorProto.INT8)) == len(prepared.nodes) - 1


def test_the_quantizers_advice_is_not_printed(caplog):
    with caplog.at_level(logging.WARNING):
        made(mlp(), STATIC, {"x": rows()})
        made(mlp(), DYNAMIC)
    assert caplog.records == []


def test_a_failure_of_the_quantizer_has_a_name():
    prepared = ready(mlp(), {"x": rows()})
    with pytest.raises(QuantizerError, match="quantizer fails"):
        quantize_static(prepared.fused, {}, STATIC)

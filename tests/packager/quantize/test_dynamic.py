"""Dynamic int8: matrix products, LSTM and tables; convolutions only as matrix products."""

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.packager.models import build, cnn, mlp, rows, value, weight
from tests.packager.quantize.made import (
    DYNAMIC,
    gap,
    image_rows,
    kinds,
    made,
    ready,
    recurrent,
    weights_of,
)

from edgepack_packager.graphs.clean import serialise
from edgepack_packager.quantize.making import make, remarks
from edgepack_packager.quantize.operators import UNFOLDED_TYPES

UNFOLDED = msgspec.structs.replace(DYNAMIC, operators=UNFOLDED_TYPES, per_channel=True)


def convolution(**attributes):
    axes = attributes.pop("axes", 2)
    channels = attributes.pop("channels", 8)
    return build(
        [helper.make_node("Conv", ["x", "k", "b"], ["y"], **attributes)],
        [value("x", ["n", channels, *[None] * axes])],
        [value("y", ["n", 16, *[None] * axes])],
        [
            weight("k", (16, channels // attributes.get("group", 1), *[3] * axes), 1),
            weight("b", (16,), 2),
        ],
    )


def test_dynamic_int8_leaves_convolutions_alone():
    assert "ConvInteger" not in kinds(made(cnn(), DYNAMIC))
    assert made(convolution(), DYNAMIC) is None


@pytest.mark.parametrize("changes", [{}, {"per_channel": True}, {"weights": "uint8"}])
def test_dynamic_int8_handles_gemm(tmp_path, changes):
    prepared = ready(mlp())
    quantized = make(prepared, msgspec.structs.replace(DYNAMIC, **changes))
    assert "MatMulInteger" in kinds(quantized)
    assert 0 < gap(prepared.model, quantized, tmp_path, {"x": rows()}) < 0.1


def test_dynamic_int8_handles_lstm(tmp_path):
    prepared = ready(recurrent("LSTM"))
    quantized = make(prepared, DYNAMIC)
    assert "DynamicQuantizeLSTM" in kinds(quantized)
    feeds = {"x": np.random.default_rng(1).standard_normal((8, 5, 4)).astype(np.float32)}
    assert 0 < gap(prepared.model, quantized, tmp_path, feeds) < 0.1


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_other_recurrent_layers_are_said_to_have_no_int8_form(kind):
    prepared = ready(recurrent(kind))
    assert make(prepared, DYNAMIC) is None
    assert [words for words in remarks(prepared) if kind in words and "no int8 form" in words]
    assert remarks(ready(recurrent("LSTM"))) == ()


@pytest.mark.parametrize("attributes", [
    {},
    {"pads": [1, 1, 1, 1]},
    {"pads": [0, 2, 1, 0], "strides": [2, 3]},
    {"dilations": [2, 1], "strides": [1, 2]},
    {"axes": 1, "channels": 24, "pads": [1, 0]},
    {"axes": 3, "channels": 8, "strides": [2, 1, 1]},
])  # fmt: skip
def test_convolutions_become_products_with_the_same_result(tmp_path, attributes):
    axes, channels = attributes.get("axes", 2), attributes.get("channels", 8)
    prepared = ready(convolution(**attributes))
    quantized = make(prepared, UNFOLDED)
    assert "ConvInteger" not in kinds(quantized)
    assert "Conv" not in kinds(quantized)
    shape = (4, channels, *[9] * axes)
    feeds = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    assert 0 < gap(prepared.model, quantized, tmp_path, feeds) < 0.02


def test_values_are_rounded_before_they_are_unfolded():
    quantized = made(convolution(pads=[1, 1, 1, 1]), UNFOLDED)
    makers = {name: node for node in quantized.graph.node for name in node.output}
    taps = [node for node in quantized.graph.node if node.op_type == "Slice"]
    assert len(taps) == 9
    assert {makers[tap.input[0]].op_type for tap in taps} == {"DynamicQuantizeLinear"}


@pytest.mark.parametrize("attributes", [
    {"group": 8}, {"auto_pad": "SAME_UPPER"}, {"axes": 1, "channels": 4}
])  # fmt: skip
def test_convolutions_that_do_not_gain_stay(attributes):
    assert made(convolution(**attributes), UNFOLDED) is None


def test_an_excluded_convolution_stays_in_float():
    prepared = ready(cnn(channels=32))
    conv = next(node.name for node in prepared.fused.graph.node if node.op_type == "Conv")
    assert make(prepared, msgspec.structs.replace(UNFOLDED, excluded=(conv,))) is not None
    assert "Conv" in kinds(make(prepared, msgspec.structs.replace(UNFOLDED, excluded=(conv,))))


def test_a_small_network_with_unfolded_convolutions_answers_alike(tmp_path):
    model = build(
        [
            helper.make_node("Conv", ["x", "k"], ["c"], kernel_shape=[3, 3]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Conv", ["r", "l"], ["d"], kernel_shape=[1, 1]),
            helper.make_node("GlobalAveragePool", ["d"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "w"], ["y"]),
        ],
        [value("x", ["n", 8, 12, 12])],
        [value("y", ["n", 32])],
        [weight("k", (64, 8, 3, 3), 1), weight("l", (32, 64, 1, 1), 2), weight("w", (32, 32), 3)],
    )
    prepared = ready(model)
    quantized = make(prepared, UNFOLDED)
    assert kinds(quantized).count("MatMulInteger") == 3
    assert gap(prepared.model, quantized, tmp_path, {"x": image_rows(channels=8)}) < 0.05
    assert weights_of(quantized, TensorProto.INT8)
    assert serialise(make(prepared, UNFOLDED)) == serialise(quantized)

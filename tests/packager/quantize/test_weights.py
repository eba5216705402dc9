"""Weight-only forms: in blocks for matrix products, and stored small for everything else."""

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.packager.models import build, cnn, mlp, rows, value, weight
from tests.packager.quantize.made import (
    branching,
    clean,
    gap,
    image_rows,
    kinds,
    made,
    outputs,
    ready,
    recurrent,
    weights_of,
)

from edgepack_packager.graphs.clean import opsets, serialise
from edgepack_packager.graphs.running import model_size, save_model
from edgepack_packager.quantize.making import make
from edgepack_packager.quantize.plan import Plan
from edgepack_packager.quantize.share import quantized_share

EIGHT = Plan(name="w8", precision="int8-weights", block=32)
FOUR = Plan(name="w4", precision="int4-weights", block=32)
STORED = Plan(name="stored", precision="int8-weights")
HALF = Plan(name="half", precision="fp16")


def wide():
    return mlp(features=128, hidden=96, classes=32)


def wide_rows(n=32):
    return {"x": rows(128, n)}


@pytest.mark.parametrize(("plan", "share", "lost"), [(EIGHT, 0.35, 0.05), (FOUR, 0.25, 0.6)])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_products_in_blocks_are_small_and_close(tmp_path, plan, share, lost, block):
    prepared = ready(wide())
    packed = make(prepared, msgspec.structs.replace(plan, block=block))
    assert kinds(packed).count("MatMulNBits") == 2
    assert opsets(packed)["com.microsoft"] == 1
    assert 0 < gap(prepared.model, packed, tmp_path, wide_rows()) < lost
    save_model(prepared.model, tmp_path / "float")
    assert model_size(tmp_path / "two") < share * model_size(tmp_path / "float")


def test_a_product_in_blocks_computes_in_int8():
    packed = made(wide(), FOUR)
    levels = [
        item.i for n in packed.graph.node for item in n.attribute if item.name == "accuracy_level"
    ]
    assert levels == [4, 4]


def test_gemm_is_packed_too(tmp_path):
    model = build(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        [value("x", ["n", 64])],
        [value("y", ["n", 48])],
        [weight("w", (48, 64), 1), weight("b", (48,), 2)],
    )
    prepared = ready(model)
    packed = make(prepared, EIGHT)
    assert "MatMulNBits" in kinds(packed)
    assert 0 < gap(prepared.model, packed, tmp_path, {"x": rows(64)}) < 0.05


@pytest.mark.parametrize("plan", [EIGHT, FOUR])
def test_only_where_products_hold_the_bytes(plan):
    assert made(cnn(channels=64), plan) is None
    assert made(mlp(), plan) is None


def test_an_excluded_product_stays_whole():
    prepared = ready(wide())
    first = next(n.name for n in prepared.model.graph.node if n.op_type == "MatMul")
    plan = msgspec.structs.replace(EIGHT, excluded=(first,))
    assert make(prepared, plan) is None  # the other holds less than half
    second = [n.name for n in prepared.model.graph.node if n.op_type == "MatMul"][1]
    packed = make(prepared, msgspec.structs.replace(EIGHT, excluded=(second,)))
    assert kinds(packed).count("MatMulNBits") == 1


@pytest.mark.parametrize(("plan", "lost"), [(STORED, 0.05), (HALF, 0.005)])
def test_stored_weights_of_any_operator_are_unpacked_while_loading(tmp_path, plan, lost):
    random = np.random.default_rng(1)
    steps = random.standard_normal((8, 5, 4)).astype(np.float32)
    for model, feeds in [
        (wide(), wide_rows()),
        (cnn(channels=64), {"x": image_rows()}),
        (recurrent("GRU"), {"x": steps}),
        (recurrent("LSTM"), {"x": steps}),
        (branching(constant=False), {"x": rows()}),
    ]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        prepared = ready(model)
        stored = make(prepared, plan)
        assert quantized_share(prepared.model, stored) > 0.7
        assert 0 < gap(prepared.model, stored, folder, feeds) < lost


def test_stored_weights_shrink_the_file(tmp_path):
    model = mlp(features=400, hidden=300, classes=100)
    for name, plan, share in (("int8", STORED, 0.27), ("half", HALF, 0.51)):
        save_model(clean(model), tmp_path / f"float-{name}")
        save_model(made(model, plan), tmp_path / name)
        ratio = model_size(tmp_path / name) / model_size(tmp_path / f"float-{name}")
        assert ratio < share


def test_each_output_channel_has_its_scale(tmp_path):
    model = wide()
    uneven = numpy_helper.to_array(model.graph.initializer[0]) * np.logspace(-4, 3, 96)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(uneven.astype(np.float32), "w1"))
    prepared = ready(model)
    scales = [w for w in weights_of(make(prepared, STORED), TensorProto.FLOAT) if w.size == 96]
    assert any(np.ptp(np.log10(w)) > 6 for w in scales)


def test_what_float16_cannot_hold_stays():
    model = mlp(features=32, hidden=64)
    large = np.full((32, 64), 1e6, np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(large, "w1"))
    assert made(model, HALF) is None


def test_small_constants_and_given_outputs_stay():
    assert made(mlp(hidden=4), HALF) is None
    assert made(mlp(hidden=4), STORED) is None


def test_an_embedding_is_stored_row_by_row(tmp_path):
    model = build(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [value("x", ["n"], TensorProto.INT64)],
        [value("y", ["n", 16])],
        [weight("table", (100, 16), 1)],
    )
    prepared = ready(model)
    stored = make(prepared, STORED)
    assert any(w.shape == (100, 1) for w in weights_of(stored, TensorProto.FLOAT))
    feeds = {"x": np.arange(100)}
    one, two = (outputs(m, tmp_path / n, feeds) for n, m in (("a", prepared.model), ("b", stored)))
    assert np.abs(one["y"] - two["y"]).max() < 0.02


@pytest.mark.parametrize("plan", [EIGHT, FOUR, STORED, HALF])
def test_the_same_graph_gives_the_same_bytes(plan):
    assert serialise(made(wide(), plan)) == serialise(made(wide(), plan))


def test_the_share_counts_what_is_not_float_any_more():
    prepared = ready(wide())
    assert quantized_share(prepared.model, prepared.model) == 0
    assert quantized_share(prepared.model, make(prepared, EIGHT)) > 0.9

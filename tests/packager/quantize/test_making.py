"""One door for all plans, what a bundle says of them, and what keeps candidates away."""

import msgspec
import numpy as np
import pytest
from onnx import helper, numpy_helper
from tests.packager.models import build, mlp, rows, value
from tests.packager.quantize.made import DYNAMIC, STATIC, branching, clean, ready

from edgepack_packager.graphs.clean import serialise
from edgepack_packager.graphs.running import save_model
from edgepack_packager.quantize import making
from edgepack_packager.quantize.library import QuantizerError
from edgepack_packager.quantize.making import make, ranked, remarks
from edgepack_packager.quantize.plan import FP32, Plan
from edgepack_packager.quantize.sensitivity import SILENT_DB, decibels

EIGHT = Plan(name="w8", precision="int8-weights", block=32)
STORED = Plan(name="stored", precision="int8-weights")


def spiky(columns=1):
    """One outlier column ruins the scale of the whole first weight."""
    model = mlp()
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values[:, :columns] *= 400
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w1"))
    return model


def broad(layers):
    """The sum of many small layers, one of which has outliers."""
    random = np.random.default_rng(0)
    weights = [random.standard_normal((8, 8)).astype(np.float32) for _ in range(layers)]
    weights[layers // 2][:, 0] *= 60
    return build(
        [
            *(
                helper.make_node("MatMul", ["x", f"w{i}"], [f"h{i}"], name=f"layer{i}")
                for i in range(layers)
            ),
            helper.make_node("Sum", [f"h{i}" for i in range(layers)], ["y"]),
        ],
        [value("x", ["n", 8])],
        [value("y", ["n", 8])],
        [numpy_helper.from_array(values, f"w{i}") for i, values in enumerate(weights)],
    )


def test_float_is_the_graph_itself():
    prepared = ready(mlp())
    assert make(prepared, FP32) is prepared.model


def test_without_rows_there_is_no_static_form():
    assert make(ready(mlp()), STATIC) is None


def test_a_graph_without_weights_has_only_a_form_in_float():
    model = build(
        [helper.make_node("Relu", ["x"], ["y"])], [value("x", ["n", 4])], [value("y", ["n", 4])]
    )
    prepared = ready(model, {"x": rows(4)})
    half = Plan(name="half", precision="fp16")
    for plan in (STATIC, DYNAMIC, EIGHT, STORED, half):
        assert make(prepared, plan) is None


def test_weights_in_branches_are_said():
    (words,) = remarks(ready(branching(constant=False)))
    assert words.startswith("100% of the weights lie inside of branches")
    assert remarks(ready(mlp())) == ()


def test_what_protobuf_cannot_hold_is_not_quantized(monkeypatch):
    monkeypatch.setattr(making, "PROTOBUF_BYTES", 100)
    prepared = ready(mlp(features=32, hidden=64), {"x": rows(32)})
    for plan in (STATIC, DYNAMIC, EIGHT):
        with pytest.raises(QuantizerError, match="more than 2 GB") as caught:
            make(prepared, plan)
        assert caught.value.code == "too-large-to-quantize"
    assert make(prepared, STORED) is not None
    assert any("2 GB" in words for words in remarks(prepared))


def test_all_calibrations_share_the_graph_and_differ(tmp_path):
    feeds = rows(n=512)
    feeds[0, 0] = 300
    prepared = ready(mlp(), {"x": feeds})
    graphs = {
        serialise(make(prepared, msgspec.structs.replace(STATIC, calibration=name)))
        for name in ("min-max", "percentile-99.9", "entropy")
    }
    assert len(graphs) == 3
    for graph in graphs:
        assert len(graph) > 0
    save_model(prepared.fused, tmp_path)


@pytest.mark.parametrize(("plan", "said"), [
    (STATIC, {"weights": "int8", "activations": "uint8", "calibration": "min-max"}),
    (DYNAMIC, {"weights": "int8", "calibration": "none"}),
    (EIGHT, {"weights": "int8", "activations": "float32", "block": 32}),
    (STORED, {"weights": "int8", "activations": "float32"}),
    (Plan(name="half", precision="fp16"), {"weights": "float16"}),
    (msgspec.structs.replace(DYNAMIC, weights="uint8"), {"weights": "uint8"}),
])  # fmt: skip
def test_a_bundle_says_what_was_done(plan, said):
    assert said.items() <= (plan.quantization or {}).items()
    assert FP32.quantization is None


def test_the_most_harmful_node_comes_first(tmp_path):
    prepared = ready(spiky(), {"x": rows()})
    found = ranked(prepared, STATIC, {"x": rows()}, tmp_path)
    assert {item.node for item in found} == set(prepared.nodes)
    assert found[0].sqnr_db < found[-1].sqnr_db
    first = next(node for node in prepared.fused.graph.node if node.name == found[0].node)
    assert "w1" in first.input
    assert found[0].weight_bytes >= 4 * 8 * 16


def test_many_nodes_are_ranked_in_one_comparison(tmp_path):
    prepared = ready(broad(40), {"x": rows()})
    found = ranked(prepared, STATIC, {"x": rows()}, tmp_path)
    assert len(found) == 40
    assert len(list(tmp_path.iterdir())) == 2
    assert {item.operator for item in found} == {"MatMul"}
    assert found[0].node == "layer20" or "w20" in found[0].node
    assert found[0].sqnr_db < found[1].sqnr_db


def test_excluded_nodes_are_ranked_too(tmp_path):
    prepared = ready(mlp(), {"x": rows()})
    plan = msgspec.structs.replace(STATIC, excluded=prepared.nodes[:1])
    assert len(ranked(prepared, plan, {"x": rows()}, tmp_path)) == len(prepared.nodes)


def test_decibels():
    assert decibels(0.01) == pytest.approx(20)
    assert decibels(0.0) == SILENT_DB


def test_the_cleaned_graph_is_left_alone():
    model = clean(mlp())
    before = serialise(model)
    prepared = making.prepare(model, {"x": rows()})
    for plan in (STATIC, DYNAMIC, STORED):
        make(prepared, plan)
    assert serialise(model) == before

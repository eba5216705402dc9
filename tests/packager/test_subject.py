"""Load and clean: several inputs, rules of a recipe, dimensions, and graphs left alone."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.packager import hostile
from tests.packager.models import build, mlp, rows, value, weight

from edgepack_contract.description import DimensionRange
from edgepack_packager import ConversionError, DataError, Recipe, RecipeError
from edgepack_packager.recipe import InputRule
from edgepack_packager.search.workshop import Workshop
from edgepack_packager.subject import load_subject


def joined(*, extra=("n", 2)):
    """Two inputs side by side."""
    nodes = [
        helper.make_node("Concat", ["main", "extra"], ["c"], axis=1),
        helper.make_node("MatMul", ["c", "w"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
    ]
    inputs = [value("main", ["n", 3]), value("extra", list(extra))]
    return build(nodes, inputs, [value("p", ["n", 2])], [weight("w", (5, 2))])


@pytest.fixture
def load(tmp_path):
    """Load a subject out of a model and named arrays."""

    def make(model, arrays, **changes):
        onnx.save(model, tmp_path / "m.onnx")
        np.savez(tmp_path / "rows.npz", **arrays)
        recipe = Recipe(
            model=tmp_path / "m.onnx", name="m", version="1.0.0", data=tmp_path / "rows.npz"
        )
        (tmp_path / "work").mkdir()
        return load_subject(replace(recipe, **changes), tmp_path / "work")

    return make


COLUMNS = {name: rows(1, n=40, seed=place)[:, 0] for place, name in enumerate("abcde")}
RULES = {"main": InputRule(columns=("c", "a", "b")), "extra": InputRule(columns=("e", "d"))}


def test_columns_go_to_the_inputs_that_the_recipe_names(load):
    subject = load(joined(), COLUMNS, inputs=RULES)
    assert [(spec.name, spec.features) for spec in subject.inputs] == [
        ("main", ["c", "a", "b"]), ("extra", ["e", "d"]),
    ]  # fmt: skip
    feeds = subject.exam.feeds
    place = int(np.flatnonzero(COLUMNS["c"] == feeds["main"][0, 0])[0])
    assert feeds["main"][0].tolist() == [COLUMNS[name][place] for name in "cab"]
    assert feeds["extra"][0].tolist() == [COLUMNS[name][place] for name in "ed"]


def test_arrays_go_to_the_inputs_of_their_names(load):
    subject = load(joined(), {"extra": rows(2, n=40), "main": rows(3, n=40)})
    assert subject.exam.feeds["main"].shape == (24, 3)


@pytest.mark.parametrize(
    ("inputs", "error", "code", "words"),
    [
        ({}, DataError, "missing-input", "no column or array main, extra"),
        ({"main": RULES["main"]}, DataError, "missing-input", "no column or array extra"),
        ({**RULES, "z": InputRule()}, RecipeError, "no-input", "it has main, extra"),
        (
            {**RULES, "extra": InputRule(columns=("e",))}, DataError, "bad-shape",
            r"'extra' takes rows of shape \[2\]",
        ),
        ({**RULES, "extra": InputRule(columns=("e", "q"))}, DataError, "no-column", "column q"),
    ],
)  # fmt: skip
def test_inputs_that_are_not_fed_are_said(load, inputs, error, code, words):
    with pytest.raises(error, match=words) as caught:
        load(joined(), COLUMNS, inputs=inputs)
    assert caught.value.code == code


def test_weights_that_are_no_numbers_end_the_build(load):
    with pytest.raises(ConversionError, match="'w1': 2 of 128") as caught:
        load(hostile.nonfinite("w1", np.nan, 2), {"x": rows()})
    assert caught.value.code == "nonfinite-weights"


def test_dimensions_are_described(load):
    model = build(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)],
        [value("x", ["n", "time", 4])], [value("y", ["n", 4])],
    )  # fmt: skip
    subject = load(model, {"x": rows(4, n=120).reshape(20, 6, 4)})
    assert subject.dimensions == {"time": DimensionRange(minimum=1, maximum=12)}
    assert subject.inputs[0].shape == ["batch", "time", 4]


def test_a_graph_in_integers_is_left_as_it_is(load, tmp_path):
    scale = onnx.numpy_helper.from_array(np.float32(0.1), "step")
    model = mlp()
    model.graph.initializer.append(scale)
    model.graph.node[0].input[0] = "d"
    model.graph.node.insert(0, hostile.node("DequantizeLinear", "q step", "d"))
    model.graph.node.insert(0, hostile.node("QuantizeLinear", "x step", "q"))
    subject = load(model, {"x": rows()})
    assert any("quantized already" in text for text in subject.warnings)
    workshop = Workshop(subject.model, subject.calibration, tmp_path / "candidates")
    assert not workshop.material(judged=True).judged


def test_pre_and_postprocessing_are_named_by_their_digests(load, tmp_path):
    steps = tmp_path / "scale.toml"
    steps.write_text('[[steps]]\nop = "scale"\nfactor = 2\n')
    subject = load(mlp(), {"x": rows()}, preprocess=steps)
    assert subject.data["preprocess"].startswith("sha256:")
    assert "fold-preprocess" in subject.passes
    assert set(subject.data) >= {"data", "split", "preprocess"}

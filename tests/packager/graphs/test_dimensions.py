"""Named dimensions: tried at other lengths, fixed where they only work at one."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.packager.models import build, value

from edgepack_contract.description import DimensionRange
from edgepack_packager.graphs.clean import clean_passes, name_lengths
from edgepack_packager.graphs.cleaning import clean, open_original
from edgepack_packager.graphs.dimensions import widened
from edgepack_packager.graphs.passes import run_passes

ROWS = np.random.default_rng(0).standard_normal((16, 6, 4)).astype(np.float32)


def pooled(*, length="time", reshape=None, nearest=None):
    """The mean over time; with ``reshape`` through a shape that an exporter has baked in."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=0)]
    weights = []
    if reshape is not None:
        nodes.insert(0, helper.make_node("Reshape", ["x", "s"], ["r"]))
        nodes[1].input[0] = "r"
        weights.append(numpy_helper.from_array(np.array(reshape), "s"))
    nodes.append(helper.make_node("Relu", ["m"], ["y"]))
    return build(nodes, [value("x", ["n", length, 4])], [value("y", ["n", 4])], weights)


@pytest.fixture
def cleaned(tmp_path):
    def make(model, rows=ROWS):
        original = open_original(model, tmp_path / "original")
        return clean(model, original, {"x": rows}, tmp_path)

    return make


def test_a_dimension_that_works_has_the_range_that_was_tried(cleaned):
    found = cleaned(pooled())
    assert found.dimensions == {"time": DimensionRange(minimum=1, maximum=12)}
    assert found.warnings == ()
    assert found.session.inputs[0].shape == ("batch", "time", 4)


def test_a_baked_length_is_fixed_and_said(cleaned):
    found = cleaned(pooled(reshape=[-1, 6, 4]))
    assert found.dimensions == {}
    assert found.session.inputs[0].shape == ("batch", 6, 4)
    assert any("time at 6" in text for text in found.warnings)
    assert "fix-lengths" in found.passes


def test_a_baked_batch_is_found_too(cleaned):
    found = cleaned(pooled(reshape=[1, -1, 4]))
    assert found.session.inputs[0].shape == (1, "time", 4)
    assert found.dimensions == {"time": DimensionRange(minimum=1, maximum=12)}


def test_only_a_length_that_fails_is_left_out(cleaned):
    """Two steps at a time: one alone is too short."""
    model = pooled(reshape=[0, -1, 2, 4])
    model.graph.node[1].input[0] = "f"
    model.graph.node.insert(1, helper.make_node("ReduceMean", ["r"], ["f"], axes=[2], keepdims=0))
    found = cleaned(model, ROWS[:, :4])
    assert found.dimensions == {"time": DimensionRange(minimum=2, maximum=8)}


def test_nameless_and_odd_names_become_names(cleaned):
    found = cleaned(pooled(length=None))
    assert found.dimensions == {"x-1": DimensionRange(minimum=1, maximum=12)}
    model = pooled(length="floor(time / 2) " + "x" * 70)
    assert name_lengths(model)
    name = model.graph.input[0].type.tensor_type.shape.dim[1].dim_param
    assert name == ("floor(time_/_2)_" + "x" * 70)[:64]
    again, passes = run_passes(model, clean_passes())
    assert "name-lengths" not in passes
    onnx.checker.check_model(again)


def test_rows_of_other_lengths_widen_the_range(cleaned):
    found = cleaned(pooled())
    parts = [{"x": ROWS}, {"x": np.zeros((2, 40, 4), np.float32)}]
    wide = widened(found.dimensions, found.session.inputs, parts)
    assert wide == {"time": DimensionRange(minimum=1, maximum=40)}

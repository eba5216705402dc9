"""Another opset is only taken when the answers stay what they were."""

import numpy as np
import pytest
from onnx import helper, numpy_helper
from tests.packager.models import build, rows, value

from edgepack_packager.graphs import cleaning
from edgepack_packager.graphs.clean import opsets, raise_opset
from edgepack_packager.graphs.cleaning import clean, open_original


def old():
    """A graph of opset 9, from before quantization."""
    return build(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        [value("x", ["n", 4])],
        [value("y", ["n", 4])],
        [numpy_helper.from_array(np.full(1, 2, np.float32), "two")],
        opsets={"": 9},
        ir=4,
    )


def wrong(model):
    raised = raise_opset(model)
    raised.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full(1, 3, np.float32), "two"))
    return raised


def unloadable(model):
    raised = raise_opset(model)
    raised.graph.node[0].op_type = "Unheard"
    return raised


def cleaned(folder):
    model, sample = old(), {"x": rows(4, 8)}
    return clean(model, open_original(model, folder / "original"), sample, folder)


def test_a_raised_opset_with_the_same_answers_is_taken(tmp_path):
    found = cleaned(tmp_path)
    assert "raise-opset" in found.passes
    assert opsets(found.model)["ai.onnx"] >= 13


@pytest.mark.parametrize("broken", [wrong, unloadable, lambda model: None])
def test_a_raised_opset_with_other_answers_is_not(tmp_path, monkeypatch, broken):
    monkeypatch.setattr(cleaning, "raise_opset", broken)
    found = cleaned(tmp_path)
    assert "raise-opset" not in found.passes
    assert opsets(found.model)["ai.onnx"] < 13
    assert np.array_equal(found.outputs["y"], 2 * rows(4, 8))

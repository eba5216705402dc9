"""A variant for graphs that must not be."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgepack_runtime.inference.golden import GoldenRows, golden_bytes, load_golden
from edgepack_runtime.inference.variant import read_description


@pytest.fixture(scope="module")
def variant(make_variant):
    """A variant that says of itself what most of the hostile graphs are."""
    folder = make_variant("v")
    description = read_description(folder)
    output = msgspec.structs.replace(
        description.outputs[1], name="y", shape=["batch", 4], labels=None, kind="values"
    )
    operators = ["Add", "Concat", "Constant", "ConstantOfShape", "Identity", "If", "Loop", "Split"]
    changed = msgspec.structs.replace(
        description,
        outputs=[output],
        operators=["ai.onnx.ml:TreeEnsembleRegressor", *(f"ai.onnx:{one}" for one in operators)],
    )
    (folder / "edgepack.json").write_bytes(changed.to_bytes())
    rows = load_golden(folder / "golden.safetensors").inputs
    answers = {"y": rows["x"] + np.float32(1)}
    (folder / "golden.safetensors").write_bytes(golden_bytes(GoldenRows(rows, answers)))
    return folder

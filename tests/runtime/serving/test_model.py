from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgepack_contract.description import Budgets, Golden
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.reference import parse_reference
from edgepack_runtime.inference.errors import (
    GoldenError,
    ModelLoadError,
    ModelRunError,
    ShapeError,
)
from edgepack_runtime.inference.variant import read_description
from edgepack_runtime.serving.model import ServingModel

DIGEST = "sha256:" + "0" * 64


def rewrite(folder, **changes):
    description = msgspec.structs.replace(read_description(folder), **changes)
    (folder / "edgepack.json").write_bytes(description.to_bytes())
    return folder


def test_a_model_loads_warm(make_variant):
    model = ServingModel.load(make_variant("v", version="3.0.0"), DIGEST)
    assert (model.version, model.digest) == ("3.0.0", DIGEST)
    assert model.reference.rows == 8
    assert model.reader.labels == ["ok", "worn", "broken"]
    assert model.check_golden().ok
    one, many = ({"x": np.zeros((n, 4), np.float32)} for n in (1, 100))
    assert 0 < model.estimated_seconds(one) < model.estimated_seconds(many)


def test_a_model_without_reference_serves(make_variant):
    assert ServingModel.load(make_variant("v", reference=False), DIGEST).reference is None


def test_a_model_that_computes_something_else_here_is_refused(make_variant):
    folder, other = make_variant("v", seed=1), make_variant("other", seed=2)
    (folder / "model.onnx").write_bytes((other / "model.onnx").read_bytes())
    with pytest.raises(ModelLoadError, match="golden rows differ") as caught:
        ServingModel.load(folder, DIGEST)
    assert caught.value.code == "golden-mismatch"


def test_a_reference_that_does_not_fit_is_refused_at_once(make_variant):
    folder = make_variant("v")
    path = folder / "reference.json"
    reference = parse_reference(path.read_bytes())
    lost = msgspec.structs.replace(reference.inputs[0], index=400)
    changed = msgspec.structs.replace(reference, inputs=[lost, *reference.inputs[1:]])
    path.write_bytes(changed.to_bytes())
    with pytest.raises(ModelLoadError, match="do not fit its reference") as caught:
        ServingModel.load(folder, DIGEST)
    assert caught.value.code == "bad-reference"


def test_a_damaged_reference_is_malformed(make_variant):
    folder = make_variant("v")
    (folder / "reference.json").write_bytes(b"{}")
    with pytest.raises(MalformedBundleError):
        ServingModel.load(folder, DIGEST)


def test_golden_rows_that_are_too_few(make_variant):
    golden = Golden(rows=9, atol=0.1, rtol=0.1, top1_agreement=1.0, derived="test")
    with pytest.raises(GoldenError, match="does not hold 9 rows"):
        ServingModel.load(rewrite(make_variant("v"), golden=golden), DIGEST)


@pytest.mark.parametrize(
    ("budget", "seconds", "rows", "over"),
    [
        (None, 99.0, 1, False),
        (10.0, 0.010, 1, False),
        (10.0, 0.011, 1, True),
        (10.0, 0.011, 2, False),
        (10.0, 0.021, 2, True),
        (10.0, 0.011, 0, True),
    ],
)
def test_the_budget_is_for_a_row(make_variant, budget, seconds, rows, over):
    folder = make_variant("v", budgets=Budgets(latency_ms=budget))
    assert ServingModel.load(folder, DIGEST).over_budget(seconds, rows) is over


def test_a_released_model_cannot_check_itself(make_variant):
    model = ServingModel.load(make_variant("v"), DIGEST)
    model.release()
    with pytest.raises(ModelRunError):
        model.check_golden()


def test_finiteness_and_bits_look_at_floats(make_variant):
    model = ServingModel.load(make_variant("v"), DIGEST)
    outputs = model.run({"x": np.ones((2, 4), np.float32)})
    assert model.is_finite(outputs)
    assert model.float_bytes(outputs) == outputs["probabilities"].tobytes()
    outputs["probabilities"] = outputs["probabilities"] * np.float32(np.inf)
    assert not model.is_finite(outputs)


def test_a_model_that_takes_nothing_empty_is_not_to_blame(load, monkeypatch):
    model = load("v1")

    def fail(_feeds):
        raise ModelRunError("a reduction over nothing")

    monkeypatch.setattr(model._session, "run", fail)
    with pytest.raises(ShapeError, match="input 'x' is empty"):
        model.run({"x": np.empty((0, 4), np.float32)})
    with pytest.raises(ModelRunError, match="over nothing"):
        model.run({"x": np.empty((1, 4), np.float32)})

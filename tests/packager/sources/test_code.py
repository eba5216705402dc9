"""``module:function``: what it may return, and what is said when it fails."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgepack_packager.errors import ModelSourceError, RecipeError
from edgepack_packager.sources import LoadContext, load_source

CODE = """
import numpy as np
from sklearn.linear_model import LinearRegression
from tests.packager.models import mlp

def graph():
    return mlp()

def estimator():
    return LinearRegression().fit(np.arange(4.0)[:, None], np.arange(4.0))

def fails():
    raise RuntimeError("the weights are gone")

def nothing():
    return None

def four():
    return 1, 2, 3, 4

def axes():
    return mlp(), None, {"x": "length"}

def outside():
    model = mlp()
    model.graph.initializer[0].data_location = 1
    return model

number = 3
"""


@pytest.fixture
def code(tmp_path, monkeypatch, request):
    # a name of its own for each test: modules are imported once
    name = f"code_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return lambda function: load_source(Path(f"{name}:{function}"), LoadContext(tmp_path))


@pytest.fixture(autouse=True)
def own_path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_graph_is_its_own_source(code):
    source = code("graph")
    assert isinstance(source.graph, onnx.ModelProto)
    assert source.answer is None
    assert source.digest == code("graph").digest


def test_an_estimator_answers(code):
    source = code("estimator")
    assert source.task == "regression"
    assert source.digest.startswith("sha256:")
    assert source.answer({"input": np.array([[2.0]])})["variable"].tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("function", "refusal", "words"),
    [
        ("fails", "code-failed", r"fails: code_\d+\.py:13: RuntimeError: the weights are gone"),
        ("nothing", "no-model-inside", "builtins.NoneType"),
        ("four", "bad-return", "returns 4 things"),
        ("axes", "bad-return", "open axes are written as"),
        ("outside", "unsafe-weights", "onnx.load"),
    ],
)
def test_what_goes_wrong_is_said(code, function, refusal, words):
    with pytest.raises(ModelSourceError, match=words) as caught:
        code(function)
    assert caught.value.code == refusal


@pytest.mark.parametrize("function", ["number", "absent"])
def test_what_is_no_function_is_said(code, function):
    with pytest.raises(RecipeError, match=f"has no function {function}") as caught:
        code(function)
    assert caught.value.code == "no-function"


def test_a_module_that_cannot_be_imported_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "halfway.py").write_text("x = 1\nimport absent_module\n")
    with pytest.raises(RecipeError, match=r"halfway\.py:2: ModuleNotFoundError") as caught:
        load_source(Path("halfway:make"), LoadContext(tmp_path))
    assert caught.value.code == "code-failed"

"""Classical operators are told, and nothing is tried on them (pitfall B5)."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPRegressor
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeRegressor
from tests.packager.models import cnn

from edgepack_packager.quantize.operators import classical_operators
from edgepack_packager.search.workshop import Workshop
from edgepack_packager.sources import LoadContext
from edgepack_packager.sources.from_sklearn import convert_estimator

X = np.random.default_rng(0).normal(size=(40, 3))


@pytest.mark.parametrize(
    ("model", "truth", "operators", "words"),
    [
        (DecisionTreeRegressor(), X[:, 0], ("TreeEnsembleRegressor",), "compression"),
        (LogisticRegression(), X[:, 0] > 0, ("LinearClassifier",), "LinearClassifier has no int8"),
        (SVC(), X[:, 0] > 0, ("SVMClassifier",), "SVMClassifier has no int8 form"),
    ],
)
def test_classical_models_stay_in_float_and_it_is_said(model, truth, operators, words, tmp_path):
    context = LoadContext(tmp_path)
    source = convert_estimator(model.fit(X, truth), context, digest="sha256:0", passes=())
    assert classical_operators(source.graph) == operators
    workshop = Workshop(source.graph, {"input": X.astype(np.float32)}, tmp_path)
    assert words in workshop.remarks[0]
    assert not workshop.material(judged=True).judged


def test_networks_are_none(tmp_path):
    model = MLPRegressor(hidden_layer_sizes=(4,), max_iter=2000, solver="lbfgs")
    source = convert_estimator(
        model.fit(X, X[:, 0]), LoadContext(tmp_path), digest="sha256:0", passes=()
    )
    assert classical_operators(source.graph) == ()
    assert classical_operators(cnn()) == ()

"""Metrics against scikit-learn, and their influences against leaving rows out."""

import numpy as np
import pytest
from sklearn import metrics as known

from edgepack_packager.evidence.metrics import (
    Answers,
    is_metric,
    measure_labels,
    measure_values,
)


@pytest.fixture
def rows():
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, 300)
    scores = random.dirichlet(np.ones(4), 300) + 0.5 * np.eye(4)[truth]
    scores = scores / scores.sum(axis=1, keepdims=True)
    return np.array([2, 5, 7, 11])[truth], scores


def answers(scores, *, shares=True):
    classes = np.array([2, 5, 7, 11])
    return Answers(classes[scores.argmax(axis=1)], scores, classes, shares)


def test_classifiers_are_measured_as_scikit_learn_does(rows):
    truth, scores = rows
    found = measure_labels(truth, answers(scores), ("top-2", "accuracy"))
    said = answers(scores).values
    assert {name: item.value for name, item in found.items()} == pytest.approx({
        "accuracy": known.accuracy_score(truth, said),
        "f1": known.f1_score(truth, said, average="macro"),
        "auc": known.roc_auc_score(truth, scores, multi_class="ovr"),
        "log-loss": known.log_loss(truth, scores),
        "top-2": known.top_k_accuracy_score(truth, scores, k=2),
    })  # fmt: skip


def test_two_classes_have_one_curve_ties_counting_half():
    truth, scores = np.array([0, 0, 1, 1, 1]), np.array([0.1, 0.5, 0.5, 0.9, 0.3])
    pair = Answers(truth, np.stack([1 - scores, scores], axis=1), np.array([0, 1]))
    found = measure_labels(truth, pair, ())
    assert found["auc"].value == pytest.approx(known.roc_auc_score(truth, scores))
    assert "log-loss" not in found


def test_numbers_are_measured_as_scikit_learn_does():
    random = np.random.default_rng(0)
    truth = random.standard_normal((200, 1))
    values = truth + 0.3 * random.standard_normal((200, 1))
    found = measure_values(truth, values)
    assert {name: item.value for name, item in found.items()} == pytest.approx({
        "rmse": known.root_mean_squared_error(truth, values),
        "mae": known.mean_absolute_error(truth, values),
        "r2": known.r2_score(truth, values),
    })  # fmt: skip


@pytest.mark.parametrize("name", ["accuracy", "f1", "auc", "log-loss", "top-2"])
def test_an_influence_is_what_leaving_the_row_out_shows(rows, name):
    truth, scores = rows
    whole = measure_labels(truth, answers(scores), ("top-2",))[name]
    assert np.mean(whole.influence) == pytest.approx(0, abs=1e-9)
    for row in range(0, 300, 60):
        rest = np.delete(np.arange(300), row)
        left = measure_labels(truth[rest], answers(scores[rest]), ("top-2",))[name].value
        assert (whole.value - left) * 299 == pytest.approx(whole.influence[row], abs=0.02)


@pytest.mark.parametrize("name", ["rmse", "mae", "r2"])
def test_an_influence_on_numbers_is_what_leaving_the_row_out_shows(name):
    random = np.random.default_rng(0)
    truth = random.standard_normal((300, 1))
    values = truth + 0.3 * random.standard_normal((300, 1))
    whole = measure_values(truth, values)[name]
    for row in range(0, 300, 60):
        rest = np.delete(np.arange(300), row)
        left = measure_values(truth[rest], values[rest])[name].value
        assert (whole.value - left) * 299 == pytest.approx(whole.influence[row], abs=0.02)


def test_a_class_that_the_model_has_not_is_never_right(rows):
    truth, scores = rows
    found = measure_labels(np.full(len(truth), 99), answers(scores), ("top-3",))
    assert found["accuracy"].value == found["top-3"].value == 0.0
    assert "auc" not in found


def test_an_unknown_class_was_given_nothing(rows):
    truth, scores = rows
    found = measure_labels(np.full(len(truth), 99), answers(scores), ())
    assert found["log-loss"].value == pytest.approx(23 * np.log(2))


def test_what_needs_scores_is_left_out_without_them(rows):
    truth, scores = rows
    found = measure_labels(truth, Answers(answers(scores).values), ("top-2",))
    assert found.keys() == {"accuracy", "f1"}


@pytest.mark.parametrize(
    ("name", "task", "wanted"),
    [
        ("top-3", "classification", True),
        ("top-0", "classification", False),
        ("top-3", "regression", False),
        ("mae", "regression", True),
        ("accuracy", "regression", False),
    ],
)
def test_metrics_are_known_by_task(name, task, wanted):
    assert is_metric(name, task) is wanted

"""Exams that are set from recipes: the truth, the user's metric, the incumbent, and refusals."""

import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.packager.models import build as build_graph
from tests.packager.models import mlp, rows, value, weight

from edgepack_packager import InputError, Recipe, RecipeError, build
from edgepack_packager.errors import DataError
from edgepack_packager.evidence.evaluate import examine
from edgepack_packager.evidence.judging import judge_accuracy
from edgepack_packager.subject import load_subject

N = 300


def numbers():
    return build_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", ["n", 8])], [value("y", ["n", 1])], [weight("w", (8, 1))],
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small models, rows for them, a metric, and a bundle of the first."""
    folder = tmp_path_factory.mktemp("setting")
    onnx.save(mlp(), folder / "net.onnx")
    onnx.save(numbers(), folder / "numbers.onnx")
    x, who = rows(n=N), np.arange(N) % 30
    label = np.random.default_rng(0).integers(0, 3, N)
    np.savez(folder / "rows.npz", x=x, label=label, who=who, when=np.arange(N))
    np.savez(folder / "columns.npz", z=x, label=label)
    np.savez(folder / "odd.npz", x=x, label=np.where(np.arange(N) % 10, label, 99))
    np.savez(folder / "text.npz", x=x, label=np.array(["a", "b", "c"])[label])
    np.savez(folder / "wide.npz", x=x, label=np.zeros((N, 2)))
    np.savez(
        folder / "holes.npz", x=np.where(np.arange(N)[:, None] % 9 == 7, np.nan, x), label=x[:, 0]
    )
    (folder / "setting_metrics.py").write_text(
        "def first(outputs, truth):\n    return outputs['probabilities'][:, 0]\n"
        "def seen(outputs, truth):\n    return truth[:, 0] * 0 + 1\n"
    )
    build(Recipe(
        model=folder / "net.onnx", name="net", version="1.0.0", output=folder / "old.edgepack",
        data=folder / "rows.npz", label="label", max_drop="50pt",
    ))  # fmt: skip
    return folder


@pytest.fixture
def subject(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])

    def load(**changes):
        values = {
            "model": folder / "net.onnx", "name": "net", "version": "1.1.0",
            "data": folder / "rows.npz", "label": "label",
        }  # fmt: skip
        for name in ("model", "data", "not_worse_than"):
            if name in changes:
                values[name] = folder / changes.pop(name)
        recipe = Recipe(**{**values, **changes})
        return recipe, load_subject(recipe, tmp_path)

    yield load
    sys.modules.pop("setting_metrics", None)


def test_time_sequence_and_slices_reach_the_exam(subject):
    _, found = subject(time_column="when", sequence_column="who", slices=("who",))
    exam = found.exam
    assert len(np.unique(exam.units)) == len(np.unique(exam.slices["who"]))
    assert (exam.numbers % 30 == exam.slices["who"]).all()
    assert found.inputs[0].shape == ["batch", 8]
    assert found.data["split"].startswith("seed 0, by when, by who: calibration ")
    assert exam.feeds["x"].shape == (exam.n, 8)


def test_a_model_is_not_worse_than_itself(subject):
    recipe, found = subject(not_worse_than="old.edgepack", margin="5pt")
    incumbent = found.exam.incumbent
    assert incumbent.name.startswith("net 1.0.0 (")
    assert np.mean(incumbent.answers == found.exam.source) > 0.95
    assert found.data["not-worse-than"].startswith("sha256:")

    verdicts = judge_accuracy(recipe, found.exam, examine(found.exam, found.exam.source_outputs))
    assert verdicts[-1].gate.name == "not-worse-than"
    assert verdicts[-1].outcome == "pass"


@pytest.mark.parametrize(
    ("changes", "kind", "code", "words"),
    [
        ({"not_worse_than": "rows.npz"}, InputError, "bad-incumbent", "rows.npz"),
        ({"not_worse_than": "old.edgepack", "model": "numbers.onnx"}, InputError, "bad-incumbent",
         "is for classification, the new model for regression"),
        ({"data": "text.npz"}, DataError, "bad-label", "none of the model's classes"),
        ({"data": "wide.npz"}, DataError, "bad-label", "2 values a row; a classifier's is one"),
        ({"data": "wide.npz", "model": "numbers.onnx"}, DataError, "bad-label", "2 columns"),
        ({"data": "text.npz", "model": "numbers.onnx"}, DataError, "bad-label", "holds text"),
        ({"data": "holes.npz", "model": "numbers.onnx"}, DataError, "source-nonfinite",
         r"in \d+ of \d+ evaluation rows, the first is row"),
        ({"min_metric": {"speed": 1.0}}, RecipeError, "unknown-metric",
         "has accuracy, f1, auc, log-loss, top-K"),
        ({"min_metric": {"log-loss": 1.0}}, RecipeError, "wrong-side", "less of it is better"),
        ({"max_metric": {"f1": 1.0}}, RecipeError, "wrong-side", "more of it is better"),
        ({"metric": "setting_metrics:none"}, RecipeError, "no-function", "no function none"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused(subject, changes, kind, code, words):
    with pytest.raises(kind, match=words) as caught:
        subject(**changes)
    assert caught.value.code == code


def test_columns_that_the_incumbent_takes_and_the_rows_have_not_are_named(folder, subject):
    graph = mlp()
    for node in graph.graph.node:
        node.input[:] = ["z" if name == "x" else name for name in node.input]
    graph.graph.input[0].name = "z"
    onnx.save(graph, folder / "renamed.onnx")
    wide = dict(np.load(folder / "columns.npz"))
    np.savez(folder / "two.npz", **wide, more=np.zeros((N, 3)))
    with pytest.raises(DataError, match=r"do not fit old\.edgepack") as caught:
        subject(model="renamed.onnx", data="two.npz", not_worse_than="old.edgepack")
    assert caught.value.code == "bad-shape"


def test_a_metric_reads_whatever_truth_there_is(subject):
    recipe, found = subject(data="wide.npz", metric="setting_metrics:seen")
    assert (found.exam.metric, found.exam.truth) == ("seen", None)
    assert found.exam.source_scores.tolist() == [1.0] * found.exam.n
    assert found.data["metric"].startswith("setting_metrics:seen sha256:")
    assert replace(recipe, min_metric={"seen": 0.5}).min_metric


def test_a_metric_beside_labels_leaves_the_other_figures(subject):
    recipe, found = subject(metric="setting_metrics:first", min_metric={"first": 0.01, "f1": 0.01})
    assert found.exam.truth is not None

    figures = examine(found.exam, found.exam.source_outputs)
    assert {"first", "f1", "accuracy"} <= figures.estimates.keys()
    verdicts = judge_accuracy(recipe, found.exam, figures)
    assert [(item.gate.name, item.gate.metric) for item in verdicts] == [
        ("max-drop", "first"), ("min-metric", "f1"), ("min-metric", "first"),
    ]  # fmt: skip


def test_labels_that_are_no_classes_are_counted(subject):
    _, found = subject(data="odd.npz")
    assert any("labels are none of the model's classes" in text for text in found.warnings)


@pytest.mark.parametrize("classes", [2, 3])
def test_shares_of_one_class_are_said_to_be_judged_as_numbers(subject, folder, classes):
    share = build_graph(
        [helper.make_node("MatMul", ["x", "w"], ["s"]), helper.make_node("Sigmoid", ["s"], ["y"])],
        [value("x", ["n", 8])], [value("y", ["n", 1])], [weight("w", (8, 1))],
    )  # fmt: skip
    onnx.save(share, folder / "share.onnx")
    np.savez(folder / "classes.npz", x=rows(n=N), label=np.arange(N) % classes)
    _, found = subject(model="share.onnx", data="classes.npz")
    assert any("threshold, at 0.5" in text for text in found.warnings) == (classes == 2)


def test_not_worse_than_needs_a_truth(folder):
    with pytest.raises(RecipeError, match="name the label, or a metric"):
        Recipe(model=folder, name="n", version="1.0.0", data=folder, not_worse_than=folder)

"""What outputs mean, and the figures of an exam against hand-made truths."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.packager.models import build, mlp, rows, value, weight

from edgepack_contract.description import TensorSpec
from edgepack_packager.data.rows import Rows
from edgepack_packager.errors import ConversionError, DataError
from edgepack_packager.evidence.decisions import Decisions, read_decisions
from edgepack_packager.evidence.evaluate import examine
from edgepack_packager.evidence.exam import Exam, check_truth
from edgepack_packager.evidence.judging import allowed_loss
from edgepack_packager.graphs.clean import clean_passes
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import open_folder, save_model
from edgepack_packager.quantities import Drop


def spec(name):
    return TensorSpec(name=name, shape=["batch", 2], dtype="float32")


def classifier(classes=None):
    return Decisions("classification", (spec("p"),), "p", "p", classes)


def exam(decisions, source, truth=None):
    return Exam(decisions, {}, truth, np.asarray(source), "sha256:" + "0" * 64)


def one_hot(labels):
    return {"p": np.eye(3, dtype=np.float32)[labels]}


def test_accuracy_is_paired_with_the_source_model():
    truth = np.array([0, 1, 2, 0, 1, 2] * 50)
    source, candidate = truth.copy(), truth.copy()
    source[:10] = (truth[:10] + 1) % 3
    candidate[5:12] = (truth[5:12] + 1) % 3
    found = examine(exam(classifier(np.arange(3)), source, truth), one_hot(candidate))
    assert found.estimates["accuracy"].value == pytest.approx(293 / 300)
    assert (found.losses, found.gains) == (2, 5)
    assert found.loss.value == pytest.approx(-3 / 300)
    assert found.relative["agreement"].value == pytest.approx(293 / 300)
    assert "n=300" in found.text()
    names = [(metric.name, metric.reference, metric.n) for metric in found.metrics("d")]
    assert names == [
        ("accuracy", None, 300), ("auc", None, 300), ("f1", None, 300),
        ("accuracy-drop", "source", 300), ("agreement", "source", 300), ("f1-drop", "source", 300),
    ]  # fmt: skip


def test_without_labels_agreement_is_judged_and_accuracy_said_to_be_unknown():
    source = np.array([0, 1] * 100)
    candidate = source.copy()
    candidate[0] = 2
    found = examine(exam(classifier(np.arange(3)), source), one_hot(candidate))
    assert found.estimates == {}
    assert found.loss_metric == "agreement"
    assert found.loss.value == pytest.approx(0.005)
    assert found.text().startswith("accuracy: not measured; agreement 0.9950")


def test_numbers_are_judged_by_the_growth_of_their_error():
    random = np.random.default_rng(0)
    truth = random.standard_normal((400, 1))
    source = truth + 0.1 * random.standard_normal((400, 1))
    decisions = Decisions("regression", (spec("y"),), "y", None, None)
    same = examine(exam(decisions, source, truth), {"y": source})
    worse = examine(exam(decisions, source, truth), {"y": source + 0.1})
    assert same.loss.value == pytest.approx(0.0)
    assert worse.loss.value == pytest.approx(2**0.5 - 1, abs=0.1)
    assert same.estimates["r2"].value > 0.98


def test_numbers_without_truth_are_judged_by_their_relative_difference():
    source = np.random.default_rng(0).standard_normal((400, 2))
    decisions = Decisions("other", (spec("y"),), "y", None, None)
    found = examine(exam(decisions, source), {"y": source + 0.01})
    assert found.loss.value == pytest.approx(0.01, rel=0.1)
    assert examine(exam(decisions, source), {"y": source}).loss.high == 0.0


def test_per_cent_are_of_the_source_models_accuracy():
    judged = exam(classifier(), [0, 0, 1, 1], np.array([0, 0, 0, 0]))
    assert allowed_loss(Drop(0.01, relative=True), judged) == pytest.approx(0.005)
    assert allowed_loss(Drop(0.01, relative=False), judged) == pytest.approx(0.01)


@pytest.mark.parametrize("truth", [np.array(["a", "b"]), np.array([7, 8])])
def test_labels_of_another_model_are_refused(truth):
    with pytest.raises(DataError, match="none of the model's classes"):
        check_truth(exam(classifier(np.arange(3)), [0, 1], truth))


def read(model, folder, *, task=None, classes=None, labels=False, feeds=None):
    model, _ = run_passes(model, clean_passes())
    save_model(model, folder)
    session = open_folder(folder)
    sample = session.run(feeds or {"x": rows()})
    return read_decisions(
        model.graph, session, sample, task=task, classes=classes, has_class_labels=labels
    ), sample


def shares_model():
    """Shares of one that no softmax gives."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"]),
        helper.make_node("Exp", ["s"], ["e"]),
        helper.make_node("ReduceSum", ["e", "axis"], ["t"], keepdims=1),
        helper.make_node("Div", ["e", "t"], ["y"]),
    ]
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    outputs = [value("y", ["n", 4])]
    return build(nodes, [value("x", ["n", 8])], outputs, [weight("w", (8, 4)), axis])


def scores_model(width, *, softmax=False):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["s"])]
    if softmax:
        nodes += [
            helper.make_node("Softmax", ["s"], ["q"]), helper.make_node("Identity", ["q"], ["y"])
        ]  # fmt: skip
    else:
        nodes.append(helper.make_node("Neg", ["s"], ["y"]))
    return build(
        nodes, [value("x", ["n", 8])], [value("y", ["n", width])], [weight("w", (8, width))]
    )


@pytest.mark.parametrize(
    ("model", "options", "task", "kind"),
    [
        (mlp(), {}, "classification", "probabilities"),
        (scores_model(4, softmax=True), {}, "classification", "probabilities"),
        (shares_model(), {}, "classification", "probabilities"),
        (scores_model(4), {}, "other", "data"),
        (scores_model(4), {"labels": True}, "classification", "scores"),
        (scores_model(4), {"task": "classification"}, "classification", "scores"),
        (scores_model(4), {"task": "regression"}, "regression", "values"),
        (scores_model(1), {}, "regression", "values"),
    ],
)
def test_the_task_is_read_off_the_outputs(tmp_path, model, options, task, kind):
    found, _ = read(model, tmp_path, **options)
    assert found.task == task
    assert [item.kind for item in found.outputs] == [kind]
    assert found.outputs[0].shape[0] == "batch"


def test_a_share_of_one_class_and_a_label_from_it_classify_where_labels_do(tmp_path):
    model = scores_model(1)
    model.graph.node.append(helper.make_node("Cast", ["y"], ["label"], to=TensorProto.INT64))
    model.graph.output.append(value("label", ["n", 1], TensorProto.INT64))
    found, _ = read(model, tmp_path, labels=True)
    assert (found.task, found.answer) == ("classification", "label")
    assert read(model, tmp_path)[0].task == "regression"


def test_a_label_output_answers_and_scores_give_the_margin(tmp_path):
    model = mlp()
    model.graph.node.append(
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0)
    )
    model.graph.output.append(value("label", ["n"], TensorProto.INT64))
    found, sample = read(model, tmp_path, classes=("3", "5", "7"))
    assert (found.answer, found.scores) == ("label", "probabilities")
    assert found.answers(sample).dtype == np.int64
    assert found.margins(sample).shape == (64,)
    assert found.outputs[0].labels == ["3", "5", "7"]


def test_classes_name_the_scores(tmp_path):
    found, sample = read(mlp(), tmp_path, classes=("cat", "dog", "emu"))
    assert set(found.answers(sample)) <= {"cat", "dog", "emu"}


def test_outputs_that_cannot_decide_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="label or a row of scores"):
        read(scores_model(1), tmp_path, task="classification")


def test_rows_know_their_number():
    assert Rows({"x": np.zeros((5, 2))}, None, "").n == 5

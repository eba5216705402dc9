"""What an exam says of a candidate: every figure, slices, worst rows, masks, and failures."""

from dataclasses import replace

import numpy as np
import pytest

from edgepack_contract.description import TensorSpec
from edgepack_packager.errors import DataError
from edgepack_packager.evidence.decisions import Decisions
from edgepack_packager.evidence.evaluate import examine
from edgepack_packager.evidence.exam import Exam, Incumbent
from edgepack_packager.evidence.figures import Confusion
from edgepack_packager.evidence.judging import allowed_loss, judge_accuracy
from edgepack_packager.evidence.scores import call_scorer
from edgepack_packager.evidence.slices import cut, slice_warning
from edgepack_packager.quantities import Drop
from edgepack_packager.recipe import Recipe

DIGEST = "sha256:" + "0" * 64
N = 400


def classifier():
    spec = TensorSpec(name="p", shape=["batch", 3], dtype="float32", kind="probabilities")
    return Decisions("classification", (spec,), "p", "p", np.arange(3))


def scores(labels, sure=0.8):
    return {"p": np.where(np.eye(3)[labels] > 0, sure, (1 - sure) / 2).astype(np.float32)}


@pytest.fixture
def truth():
    return np.random.default_rng(0).integers(0, 3, N)


@pytest.fixture
def exam(truth):
    source = truth.copy()
    source[:20] = (truth[:20] + 1) % 3
    return Exam(classifier(), {}, truth, source, DIGEST, source_outputs=scores(source))


def recipe(tmp_path, **options):
    return Recipe(
        model=tmp_path, name="m", version="1.0.0", data=tmp_path, label="y", **options
    )  # fmt: skip


def test_every_metric_has_an_interval_and_is_paired_with_the_source(exam, truth):
    found = examine(replace(exam, wanted=("top-2",)), scores(truth))
    assert found.estimates.keys() == {"accuracy", "f1", "auc", "log-loss", "top-2"}
    assert found.relative.keys() == {
        "agreement", "accuracy-drop", "f1-drop", "auc-drop", "log-loss-growth", "top-2-drop",
    }  # fmt: skip
    every = [*found.estimates.values(), *found.relative.values()]
    assert all(item.n == N and item.low <= item.value <= item.high for item in every)
    assert found.relative["f1-drop"].high < 0 < found.estimates["f1"].low


def test_worst_rows_lost_most_of_their_lead_and_confusions_are_counted(exam, truth):
    outputs = scores(exam.source, sure=0.7)
    outputs["p"][33] = scores(np.array([(exam.source[33] + 1) % 3]), sure=0.9)["p"]
    found = examine(exam, outputs)
    assert len(found.worst) == 20
    worst = found.worst[0]
    assert (worst.row, worst.source) == (33, str(exam.source[33]))
    assert worst.truth == str(truth[33])
    assert worst.distance == pytest.approx(0.7 + 0.85)
    assert found.confusions == (Confusion(worst.source, worst.candidate, 1),)


def test_rows_are_named_by_their_place_in_the_data(exam):
    outputs = scores(exam.source, sure=0.7)
    outputs["p"][33] = scores(np.array([(exam.source[33] + 1) % 3]), sure=0.9)["p"]
    numbered = replace(exam, numbers=np.arange(exam.n)[::-1] * 2)
    assert examine(numbered, outputs).worst[0].row == 2 * (exam.n - 34)
    few = {name: values[30:40] for name, values in outputs.items()}
    assert examine(numbered.take(range(30, 40)), few).worst[0].row == 2 * (exam.n - 34)
    few["p"][4] = np.nan
    found = examine(exam.take(range(30, 40)), few)
    assert found.failure == "output 'p' is not a number in 1 of 10 rows, the first is row 34"


def test_answers_that_are_no_numbers_fail_every_gate_in_words(exam, truth, tmp_path):
    outputs = scores(truth)
    outputs["p"][[7, 9], 1] = np.nan
    found = examine(exam, outputs)
    assert found.failure == "output 'p' is not a number in 2 of 400 rows, the first is row 7"
    wanted = recipe(tmp_path, min_metric={"f1": 0.1}, max_metric={"log-loss": 9.0})
    verdicts = judge_accuracy(wanted, exam, found)
    assert [verdict.outcome for verdict in verdicts] == ["fail"] * 3
    assert "row 7" in verdicts[0].words
    assert found.text().startswith("failed: output 'p'")
    assert found.metrics("d") == []


def test_rows_that_the_source_model_cannot_answer_either_are_no_failure(exam, truth):
    outputs = scores(truth)
    outputs["p"][5] = np.nan
    both = replace(exam, source_outputs={"p": outputs["p"].copy()})
    assert examine(both, outputs).failure is None
    outputs["p"][6] = np.nan
    assert "in 1 of 400 rows, the first is row 6" in examine(both, outputs).failure


def test_a_users_metric_decides_and_gets_outputs_and_labels(exam, truth, tmp_path):
    def given(outputs, labels):
        return outputs["p"][np.arange(N), labels]

    exam = replace(
        exam, metric="given", scorer=given, labels=truth, source_scores=given(scores(truth), truth)
    )
    found = examine(exam, scores(truth, sure=0.75))
    assert found.loss_metric == "given"
    assert found.loss.value == pytest.approx(0.05)
    assert found.estimates["given"].n == N
    assert "accuracy" in found.estimates
    assert allowed_loss(Drop(0.1, relative=True), exam) == pytest.approx(0.08)
    judged = judge_accuracy(recipe(tmp_path, max_drop="6pt", metric="m:given"), exam, found)
    assert judged[0].outcome == "pass"


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        (lambda _o, _t: np.zeros(3), r"shape \(3,\); one number for each of the 4 rows"),
        (lambda _o, _t: np.array(["a"] * 4), "one number for each"),
        (lambda _o, _t: np.array([0, 1, np.nan, 1]), "in 1 of 4 rows, the first is row 2"),
        (lambda _o, _t: {}["boxes"], "failed: KeyError: 'boxes'"),
    ],
)
def test_a_users_metric_that_gives_no_scores_is_refused(scorer, words):
    with pytest.raises(DataError, match=words):
        call_scorer(scorer, "mine", {}, None, 4)


def test_a_bundle_that_it_must_not_be_worse_than(exam, truth, tmp_path):
    wanted = recipe(tmp_path, not_worse_than=tmp_path, margin="2pt", max_drop="9pt")
    old = replace(exam, incumbent=Incumbent("m 0.9.0", truth))
    worse = examine(old, scores(exam.source))
    verdict = judge_accuracy(wanted, old, worse)[-1]
    assert (verdict.gate.name, verdict.outcome) == ("not-worse-than", "fail")
    assert "against m 0.9.0 loss 0.0500" in verdict.words
    assert judge_accuracy(wanted, old, examine(old, scores(truth)))[-1].outcome == "pass"
    unproven = judge_accuracy(replace(wanted, margin="6pt"), old, worse)[-1]
    half = replace(old, incumbent=Incumbent("m 0.9.0", np.where(np.arange(N) % 2, truth, -1)))
    gate = judge_accuracy(replace(wanted, margin="6%"), half, examine(half, scores(truth)))[-1].gate
    assert gate.threshold == pytest.approx(0.03)
    assert unproven.outcome == "inconclusive"
    assert "rows would prove it" in unproven.words


def test_limits_are_judged_by_the_end_of_the_interval(exam, tmp_path):
    figures = examine(exam, scores(exam.source))
    outcomes = {}
    for least in (0.9, 0.94, 0.96):
        wanted = recipe(tmp_path, min_metric={"accuracy": least})
        outcomes[least] = judge_accuracy(wanted, exam, figures)[1]
    assert [item.outcome for item in outcomes.values()] == ["pass", "inconclusive", "fail"]
    assert "about" in outcomes[0.94].words
    loose, tight = (
        judge_accuracy(recipe(tmp_path, max_metric={"log-loss": most}), exam, figures)[1]
        for most in (0.5, 0.1)
    )
    assert (loose.outcome, tight.outcome) == ("pass", "fail")


def test_slices_find_where_a_model_is_bad(exam, truth):
    site = np.where(np.arange(N) < 360, "here", "there")
    labels = exam.source.copy()
    labels[370:376] = (labels[370:376] + 1) % 3
    found = examine(replace(exam, slices={"site": site}), scores(labels))
    by_value = {item.value: item for item in found.slices}
    assert (by_value["here"].n, by_value["there"].n) == (360, 40)
    assert by_value["there"].loss.value == pytest.approx(6 / 40)
    assert by_value["here"].loss.value == 0.0
    assert by_value["there"].estimate.value == pytest.approx(34 / 40)
    warning = slice_warning(found, 0.05)
    assert warning.startswith("where site is there, the accuracy loss is 0.1500")
    assert slice_warning(found, 0.001) is None  # the whole fails already


def test_slices_of_errors_show_the_error_itself():
    truth = np.random.default_rng(0).standard_normal((90, 1))
    spec = TensorSpec(name="y", shape=["batch", 1], dtype="float32", kind="values")
    numbers = Decisions("regression", (spec,), "y", None, None)
    exam = Exam(numbers, {}, truth, truth + 2, DIGEST, slices={"s": np.arange(90) % 2})
    found = examine(exam, {"y": truth + 3})
    assert [item.estimate.value for item in found.slices] == pytest.approx([3.0, 3.0])
    assert [item.loss.value for item in found.slices] == pytest.approx([0.5, 0.5])


def test_perfect_shares_need_rows_in_proportion(tmp_path, truth):
    exam = Exam(classifier(), {}, truth, truth, DIGEST, source_outputs=scores(truth))
    wanted = recipe(tmp_path, min_metric={"accuracy": 0.999})
    verdict = judge_accuracy(wanted, exam, examine(exam, scores(truth)))[1]
    # the interval of n successes of n ends at 0.025 ** (1 / n), which is 0.999 at 3687
    rows = int(verdict.words.split("about ")[1].split(" rows")[0])
    assert 3600 < rows < 3700


def test_columns_are_cut_into_values_quartiles_and_the_rest():
    few = {name: len(rows) for name, rows in cut(np.array([1.0, 2.0, np.nan, 2.0]))}
    assert few == {"1": 1, "2": 2, "missing": 1}
    many = dict(cut(np.arange(100)))
    assert [*many] == ["<= 24", "24 < x <= 49", "49 < x <= 74", "> 74"]
    assert [len(rows) for rows in many.values()] == [25, 25, 25, 25]
    texts = np.array([f"v{i}" for i in range(80)] * 2 + ["v3"], dtype=object)
    names = dict(cut(texts))
    assert len(names) == 51
    assert len(names["other"]) == 60
    assert len(names["v3"]) == 3


def test_units_widen_every_interval(exam, truth):
    alone = examine(exam, scores(truth))
    apart = examine(replace(exam, units=np.arange(N) // 20), scores(truth))
    for name, figure in apart.estimates.items():
        assert figure.units == 20
        assert figure.value == alone.estimates[name].value
    assert apart.loss.high - apart.loss.low > alone.loss.high - alone.loss.low


def test_a_first_look_takes_everything_along(exam, truth):
    exam = replace(
        exam, slices={"s": truth}, units=np.arange(N) // 2, labels=truth,
        source_scores=truth.astype(float), incumbent=Incumbent("old", truth),
    )  # fmt: skip
    part = exam.take([3, 8, 9])
    assert part.n == 3
    assert part.units.tolist() == [0, 1, 1]
    assert part.incumbent.answers.tolist() == truth[[3, 8, 9]].tolist()
    assert part.slices["s"].tolist() == part.labels.tolist() == truth[[3, 8, 9]].tolist()
    assert examine(replace(part, units=None), scores(truth[[3, 8, 9]])).loss.n == 3


def other(*names, answer="y"):
    specs = tuple(TensorSpec(name=name, shape=["batch", 2], dtype="float32") for name in names)
    return Decisions("other", specs, answer, None, None)


def masks(n=50, seed=0):
    maps = np.random.default_rng(seed).random((n, 2, 8, 8))
    return (maps / maps.sum(axis=1, keepdims=True)).astype(np.float32)


def test_masks_are_judged_by_the_mean_agreement_of_images():
    theirs = masks()
    ours = theirs.copy()
    ours[0] = ours[0][::-1]
    source = theirs.reshape(50, -1).astype(float)
    found = examine(Exam(other("y"), {}, None, source, DIGEST, {"y": theirs}), {"y": ours})
    assert found.loss_metric == "agreement"
    assert found.loss.value == pytest.approx(1 / 50)
    assert found.worst[0].row == 0


def test_masks_are_judged_by_the_truth_when_it_is_a_mask():
    theirs = masks()
    truth = theirs.argmax(axis=1)
    truth[:, 0, 0] = 1 - truth[:, 0, 0]
    source = theirs.reshape(50, -1).astype(float)
    # logits are no shares: that they are classes is known by the truth
    exam = Exam(other("y"), {}, truth, source, DIGEST, {"y": np.log(theirs)})
    ours = np.log(theirs)
    ours[:25] = ours[:25, ::-1]
    found = examine(exam, {"y": ours})
    assert found.loss_metric == "pixel-accuracy"
    assert found.estimates["pixel-accuracy"].value == pytest.approx(0.5)
    assert found.loss.value == pytest.approx(0.5 * 62 / 64)


def test_the_output_that_is_furthest_off_is_judged_and_named():
    random = np.random.default_rng(0)
    theirs = {"y": random.standard_normal((90, 2)), "count": random.integers(0, 5, (90, 1))}
    ours = {"y": theirs["y"] + 0.01, "count": theirs["count"].copy()}
    ours["count"][:9] += 1
    exam = Exam(other("y", "count"), {}, None, theirs["y"], DIGEST, theirs)
    found = examine(exam, ours)
    assert found.relative.keys() == {"difference of y", "agreement of count"}
    assert found.loss_metric == "agreement of count"
    assert found.loss.value == pytest.approx(0.1)
    carried = replace(exam, decisions=replace(exam.decisions, carried=("count",)))
    assert examine(carried, ours).loss_metric == "difference"


def test_numbers_that_are_infinite_fail():
    theirs = np.random.default_rng(0).standard_normal((20, 2))
    ours = theirs.copy()
    ours[4, 1] = np.inf
    found = examine(Exam(other("y"), {}, None, theirs, DIGEST, {"y": theirs}), {"y": ours})
    assert "infinite in 1 of 20 rows, the first is row 4" in found.failure

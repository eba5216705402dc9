"""Judging in stages: every row once, the same answers, and an early end for what is hopeless."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from tests.packager.models import mlp, rows

from edgepack_packager.evidence.decisions import read_decisions
from edgepack_packager.evidence.evaluate import examine
from edgepack_packager.evidence.exam import Exam
from edgepack_packager.graphs.running import open_folder, run_rows, save_model
from edgepack_packager.quantize.plan import FP32
from edgepack_packager.search.examining import FIRST_ROWS, Reading, answers, is_hopeless, stages


def nothing():
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    save_model(mlp(), place)
    return place


@pytest.fixture(scope="module")
def exam(folder):
    session = open_folder(folder)
    feeds = {"x": rows(n=1000)}
    outputs = run_rows(session, feeds)
    decisions = read_decisions(
        mlp().graph, session, outputs, task="classification", classes=None, has_class_labels=False
    )
    return Exam(
        decisions=decisions, feeds=feeds, truth=None, source=decisions.answers(outputs),
        dataset="sha256:0", source_outputs=outputs,
    )  # fmt: skip


@pytest.mark.parametrize("n", [1, 100, 511, 512, 700, 1000])
def test_the_stages_hold_every_row_once_and_are_spread(exam, n):
    found = stages(exam.take(range(n)))
    assert sorted(np.concatenate(found)) == list(range(n))
    assert len(found) == 1 or len(found[0]) == FIRST_ROWS[0]
    assert all(len(part) < 5 or part[-1] > n * 0.9 for part in found)


def test_sequences_are_not_taken_apart(exam):
    assert len(stages(dataclasses.replace(exam, units=np.arange(exam.n) // 7))) == 1


def test_answers_in_stages_are_the_answers_to_all_rows(exam, folder):
    reading = Reading(exam, stages(exam))
    seen = []
    while not reading.is_whole:
        reading.read_on(folder, FP32, nothing)
        part, outputs = reading.result()
        seen.append(part.n)
        assert examine(part, outputs).losses == 0
    assert seen == [256, 1000]
    whole = answers(folder, FP32, exam, nothing)
    np.testing.assert_array_equal(outputs["probabilities"], whole["probabilities"])


def wrong(exam, count):
    """The figures of a candidate that answers ``count`` rows of an exam otherwise."""
    outputs = {name: values.copy() for name, values in exam.source_outputs.items()}
    outputs["probabilities"][:count] = np.roll(outputs["probabilities"][:count], 1, axis=1)
    return examine(exam, outputs)


@pytest.mark.parametrize(
    ("rows_seen", "lost", "hopeless"),
    [
        (256, 0, False),
        (256, 3, False),  # 1.2 % of these, and the others may all be right
        (256, 4, True),  # 4 of 1,000 are already too many to prove 1 %
        (256, 40, True),
        (1000, 3, False),
        (1000, 4, True),
    ],
)
def test_what_can_no_more_be_proven_is_hopeless(exam, rows_seen, lost, hopeless):
    figures = wrong(exam.take(range(rows_seen)), lost)
    assert figures.losses == lost
    assert is_hopeless(exam, figures, 0.01) is hopeless


def test_too_few_rows_to_prove_anything_are_judged_all_the_same(exam):
    assert not is_hopeless(exam, wrong(exam.take(range(256)), 0), 0.0001)


def test_with_labels_lost_rows_may_be_made_good_by_others(exam):
    judged = dataclasses.replace(exam, truth=exam.source)
    figures = wrong(judged.take(range(256)), 5)
    assert not is_hopeless(judged, figures, 0.02)


def test_answers_that_are_none_are_hopeless(exam):
    figures = dataclasses.replace(wrong(exam, 0), failure="NaN in 3 rows")
    assert is_hopeless(exam, figures, 0.5)


def test_a_run_can_be_ended_between_blocks(exam, folder):
    turns = iter([None, KeyError("over")])

    def check():
        error = next(turns)
        if error:
            raise error

    with pytest.raises(KeyError):
        answers(folder, FP32, exam, partial(check))

"""The rows that candidates are judged on, and what they are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.errors import DataError
from edgepack_packager.evidence.decisions import Decisions
from edgepack_packager.evidence.metrics import Answers
from edgepack_packager.evidence.statistic import Units, number
from edgepack_packager.graphs.steps import Steps

Scorer = Callable[[Feeds, Array | None], Array]
"""From all outputs and the truth to one score per row; more is better."""


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The answers of the bundle that a candidate must not be worse than, to the same rows.

    ``scores`` are those of the user's metric; ``name`` says which bundle it is.
    """

    name: str
    answers: Array
    scores: Array | None = None


@dataclass(frozen=True, slots=True)
class Exam:
    """The rows that candidates are judged on.

    Attributes:
        decisions: How to read the outputs.
        feeds: The rows, cast to the types that the model takes.
        truth: Labels (rows,), values (rows, columns), or masks (rows, height, width); None when
            there is none, or none that built-in metrics can read.
        source: The source model's own answers to the same rows.
        dataset: The digest of the rows' file.
        source_outputs: All its outputs to them, by name.
        slices: By column, the value of each row.
        units: The number of the sequence that each row belongs to; None when each is its own.
        metric: The name of the user's metric.
        scorer: That metric.
        source_scores: What it says of the source model, shape (rows,).
        incumbent: What candidates are held against besides.
        wanted: Metrics that gates name.
        labels: The truth as it was given, which the user's metric gets.
        numbers: The places that the rows have in the data, counted from 0; None for their order.
        steps: What is carried from row to row, so that answers come from ``run_steps``; None for
            a model without states.
    """

    decisions: Decisions
    feeds: Feeds
    truth: Array | None
    source: Array
    dataset: str
    source_outputs: Feeds = field(default_factory=dict)
    slices: Mapping[str, Array] = field(default_factory=dict)
    units: Units | None = None
    metric: str | None = None
    scorer: Scorer | None = None
    source_scores: Array | None = None
    incumbent: Incumbent | None = None
    wanted: tuple[str, ...] = ()
    labels: Array | None = None
    numbers: Array | None = None
    steps: Steps | None = None

    @property
    def n(self) -> int:
        """The number of rows."""
        return len(self.source)

    def take(self, rows: Sequence[int]) -> Exam:
        """The same exam on some of its rows, for a first look."""
        index = np.asarray(rows, dtype=np.intp)

        def cut(array: Array | None) -> Array | None:
            return None if array is None else array[index]

        def cut_all(arrays: Mapping[str, Array]) -> Feeds:
            return {name: array[index] for name, array in arrays.items()}

        old = self.incumbent
        return replace(
            self,
            feeds=cut_all(self.feeds),
            truth=cut(self.truth),
            source=self.source[index],
            source_outputs=cut_all(self.source_outputs),
            slices=cut_all(self.slices),
            # numbered anew, since a cut may leave sequences out
            units=None if self.units is None else number(self.units[index]),
            source_scores=cut(self.source_scores),
            labels=cut(self.labels),
            numbers=np.arange(self.n)[index] if self.numbers is None else self.numbers[index],
            incumbent=old and replace(old, answers=old.answers[index], scores=cut(old.scores)),
        )

    def row_number(self, place: int) -> int:
        """Where the row at ``place`` is in the data, counted from 0."""
        return place if self.numbers is None else int(self.numbers[place])

    def read(self, outputs: Feeds) -> Answers:
        """A candidate's answers."""
        return read_answers(self.decisions, self.decisions.answers(outputs), outputs)

    @property
    def source_answers(self) -> Answers:
        """The source model's answers."""
        return read_answers(self.decisions, self.source, self.source_outputs)


def read_answers(decisions: Decisions, values: Array, outputs: Feeds) -> Answers:
    """Labels or values, and the scores behind them where the outputs have them."""
    scores = None if decisions.scores is None else outputs.get(decisions.scores)
    kinds = {spec.name: spec.kind for spec in decisions.outputs}
    return Answers(
        values=values,
        scores=None if scores is None else scores.reshape(len(scores), -1),
        classes=decisions.classes,
        shares=kinds.get(decisions.scores or "") == "probabilities",
    )


def check_truth(exam: Exam) -> None:
    """Refuse a truth that cannot be this model's: every figure against it would be noise.

    Raises:
        DataError: No label is one of the model's answers, or numbers of another width.
    """
    truth, decisions = exam.truth, exam.decisions
    if truth is None or truth.ndim > 2:
        return
    if decisions.task != "classification":
        if truth.shape != exam.source.shape:
            raise DataError(
                f"the truth has {truth.shape[1]} columns, the model gives {exam.source.shape[1]}",
                code="bad-label",
            )
        return
    known = exam.source if decisions.classes is None else decisions.classes
    if truth.dtype.kind != known.dtype.kind or not np.isin(truth, known).any():
        raise DataError(
            f"labels such as {truth[0]} are none of the model's classes, such as {known[0]}; name "
            "the column that the model learned, with the values it learned",
            code="bad-label",
        )


def unknown_labels(exam: Exam) -> int:
    """Rows whose label is none of the model's classes, so that no answer can be right."""
    classes = exam.decisions.classes
    if exam.decisions.task != "classification" or exam.truth is None or classes is None:
        return 0
    return int(np.count_nonzero(~np.isin(exam.truth, classes)))

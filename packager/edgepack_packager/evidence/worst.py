"""Single rows on which a candidate and the source model part."""

from __future__ import annotations

import numpy as np

from edgepack_packager.data.rows import Array
from edgepack_packager.evidence.exam import Exam
from edgepack_packager.evidence.figures import Confusion, WorstRow
from edgepack_packager.evidence.metrics import Answers

WORST_ROWS = 20
MOST_CONFUSIONS = 200
SHOWN = 4
"""Numbers of an answer that are shown; the rest is dots."""


def confusions(ours: Array, theirs: Array) -> tuple[Confusion, ...]:
    """Pairs of different labels, the most frequent first."""
    differ = np.flatnonzero(ours != theirs)
    if not len(differ):
        return ()
    pairs = np.stack([theirs[differ].astype(str), ours[differ].astype(str)], axis=1)
    different, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_CONFUSIONS]
    return tuple(
        Confusion(str(different[place, 0]), str(different[place, 1]), int(counts[place]))
        for place in order
    )


def worst_labels(exam: Exam, ours: Answers, theirs: Answers) -> tuple[WorstRow, ...]:
    """The rows that lost most of the lead of the source model's label.

    Without scores of the source model it is the lead that another label has now; without any
    scores, each row that is answered otherwise counts as one.
    """
    leads = _leads(ours, theirs.values)
    before = _leads(theirs, theirs.values)
    if leads is None:
        distance = (ours.values != theirs.values).astype(np.float64)
    elif before is None:
        distance = np.maximum(-leads, 0.0)
    else:
        distance = before - leads
    return _worst(exam, distance, theirs.values, ours.values)


def worst_values(exam: Exam, ours: Array, theirs: Array) -> tuple[WorstRow, ...]:
    """The rows whose numbers are furthest apart, by the length of the difference."""
    wide = (ours.astype(np.float64) - theirs).reshape(len(ours), -1)
    return _worst(exam, np.sqrt(np.sum(np.square(wide), axis=1)), theirs, ours)


def _leads(answers: Answers, labels: Array) -> Array | None:
    """By how much the score of ``labels`` leads the best other one, shape (rows,)."""
    if answers.scores is None or answers.classes is None or answers.scores.shape[1] < 2:
        return None
    own = np.asarray(answers.classes) == labels[:, None]
    scores = answers.scores.astype(np.float64)
    best = np.max(np.where(own, -np.inf, scores), axis=1)
    mine = np.max(np.where(own, scores, -np.inf), axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nan_to_num(mine - best, nan=0.0, posinf=0.0, neginf=0.0))


def _worst(exam: Exam, distance: Array, theirs: Array, ours: Array) -> tuple[WorstRow, ...]:
    order = np.argsort(-distance, kind="stable")[:WORST_ROWS]
    return tuple(
        WorstRow(
            row=exam.row_number(int(row)),
            truth=None if exam.truth is None else _spell(exam.truth[row]),
            source=_spell(theirs[row]),
            candidate=_spell(ours[row]),
            distance=float(distance[row]),
        )
        for row in order
        if distance[row] > 0
    )


def _spell(answer: object) -> str:
    values = np.asarray(answer).reshape(-1)
    shown = ", ".join(
        f"{value:.6g}" if values.dtype.kind == "f" else str(value) for value in values[:SHOWN]
    )
    return f"{shown}, …" if len(values) > SHOWN else shown

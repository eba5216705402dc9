"""The user's own metric: one score per row, of candidates, source model and incumbent alike."""

from __future__ import annotations

import numpy as np

from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.errors import DataError
from edgepack_packager.evidence.exam import Exam, Scorer


def score_rows(exam: Exam, outputs: Feeds) -> Array:
    """What the exam's metric says of a candidate's outputs, shape (rows,)."""
    if exam.scorer is None:
        raise ValueError("this exam has no metric of the user's")
    return call_scorer(exam.scorer, exam.metric or "metric", outputs, exam.labels, exam.n)


def call_scorer(scorer: Scorer, name: str, outputs: Feeds, truth: Array | None, n: int) -> Array:
    """Call a metric and check what it gives.

    Args:
        scorer: The metric.
        name: Its name.
        outputs: All outputs of a model, by name.
        truth: What is true of each row, if that is known.
        n: The number of rows.

    Raises:
        DataError: It raises, gives another number of scores, or what is no number.
    """
    try:
        found = scorer(outputs, truth)
    except Exception as error:  # the user's code may raise anything
        raise DataError(
            f"metric {name} failed: {type(error).__name__}: {error}", code="metric-failed"
        ) from error
    scores = np.asarray(found)
    if scores.shape != (n,) or scores.dtype.kind not in "biuf":
        raise DataError(
            f"metric {name} gave {scores.dtype} of shape {scores.shape}; one number for each of "
            f"the {n} rows is needed, of shape ({n},)",
            code="bad-metric",
        )
    scores = scores.astype(np.float64)
    bad = ~np.isfinite(scores)
    if bad.any():
        raise DataError(
            f"metric {name} is not a number or infinite in {np.count_nonzero(bad)} of {n} rows, "
            f"the first is row {int(np.argmax(bad))}; give each row a score, 0 for instance",
            code="bad-metric",
        )
    return scores

"""Metrics by name: how good answers are against the truth, each with what every row adds to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edgepack_contract.description import Task
from edgepack_packager.data.rows import Array
from edgepack_packager.evidence.statistic import Statistic, mean_of, share_of

LOWER_IS_BETTER = frozenset({"log-loss", "mae", "rmse"})
METRICS_BY_TASK: Mapping[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "auc", "log-loss"),
    "regression": ("rmse", "mae", "r2"),
    "other": ("rmse", "mae", "r2", "pixel-accuracy"),
}
"""The metrics that each task has against the truth, the first is the one that a loss is of."""

TOP = re.compile(r"\Atop-([1-9]\d{0,2})\Z")
SMALLEST_SHARE = 2.0**-23
"""Of a class in the log loss: float32 can hold no smaller difference from 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a model says of each row.

    Attributes:
        values: Labels (rows,), or numbers (rows, columns).
        scores: One number per class, shape (rows, classes); None where only labels are known.
        classes: The classes in the order of the scores.
        shares: Whether the scores of a row are shares of one.
    """

    values: Array
    scores: Array | None = None
    classes: Array | None = None
    shares: bool = False


def known_metrics(task: Task) -> str:
    """The names of a task's metrics, for people."""
    tops = ("top-K",) if task == "classification" else ()
    return ", ".join((*METRICS_BY_TASK[task], *tops))


def is_metric(name: str, task: Task) -> bool:
    """Whether a task has a metric of that name."""
    top = task == "classification" and TOP.match(name) is not None
    return top or name in METRICS_BY_TASK[task]


def measure_labels(truth: Array, answers: Answers, wanted: Iterable[str]) -> dict[str, Statistic]:
    """The metrics of a classifier; ``wanted`` names those of the best K classes.

    What needs scores is left out where there are none.
    """
    found = {"accuracy": share_of(answers.values == truth), "f1": macro_f1(truth, answers.values)}
    if answers.scores is None or answers.classes is None:
        return found
    places = _places(truth, answers.classes)
    found |= {"auc": curve} if (curve := macro_auc(places, answers.scores)) is not None else {}
    if answers.shares:
        found["log-loss"] = log_loss(places, answers.scores)
    for name in wanted:
        if top := TOP.match(name):
            found[name] = share_of(_among_best(places, answers.scores, int(top[1])))
    return found


def measure_values(truth: Array, values: Array) -> dict[str, Statistic]:
    """The metrics of numbers; ``r2`` is left out where the truth does not vary."""
    squares = mean_of(squared_errors(truth, values))
    root = squares.value**0.5
    scale = 2 * root if root > 0 else 1.0
    found = {
        "rmse": Statistic(root, squares.influence / scale),
        "mae": mean_of(np.mean(np.abs(truth - values), axis=1)),
    }
    spread = mean_of(squared_errors(truth, np.mean(truth, axis=0)))
    if spread.value > 0:
        share = squares.value / spread.value
        influence = (share * spread.influence - squares.influence) / spread.value
        found["r2"] = Statistic(1 - share, influence)
    return found


def squared_errors(truth: Array, values: Array) -> Array:
    """The squared length of the error of each row, shape (rows,)."""
    wide = np.square(truth - values).reshape(len(truth), -1)
    return np.asarray(np.sum(wide, axis=1))


def macro_f1(truth: Array, labels: Array) -> Statistic:
    """The mean of the F1 of every class that is there, in truth or answers.

    The intervals that follow are those of Takahashi, Yamamoto, Kuchiba and Koyama (Applied
    Intelligence 52, 2022), whose delta method is the same.
    """
    names, codes = np.unique(np.concatenate([truth, labels]), return_inverse=True)
    true, said = codes[: len(truth)], codes[len(truth) :]
    n, k = len(truth), len(names)
    hit = true == said
    both = (np.bincount(true, minlength=k) + np.bincount(said, minlength=k)) / n
    each = 2 * np.bincount(true[hit], minlength=k) / n / both
    influence = (2 * hit / both[true] - (each / both)[true] - (each / both)[said]) / k
    reach = 2 / (k * float(both.min()))
    return Statistic(float(np.mean(each)), influence, reach, share=True)


def macro_auc(places: Array, scores: Array) -> Statistic | None:
    """The area under the ROC curve; with over two classes the mean of each against the rest.

    Args:
        places: The place of the true class among the scores; -1 for a class that has none.
        scores: Shape (rows, classes).

    Returns:
        None where no class has rows of both kinds.
    """
    columns = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    present = set(np.unique(places).tolist())
    curves = [
        _auc(places == column, scores[:, column])
        for column in columns
        if column in present and not np.all(places == column)
    ]
    if not curves:
        return None
    influence = np.mean([curve.influence for curve in curves], axis=0)
    reach = max(curve.reach for curve in curves) / len(curves)
    value = float(np.mean([curve.value for curve in curves]))
    return Statistic(value, influence, max(reach, 1.0), share=True)


def _auc(positive: Array, scores: Array) -> Statistic:
    """Shares of the other kind that each row is ranked on the right side of, ties by half."""
    n, wins = len(positive), np.empty(len(positive))
    ups, downs = np.sort(scores[positive]), np.sort(scores[~positive])
    wins[positive] = _below(downs, scores[positive])
    wins[~positive] = 1 - _below(ups, scores[~positive])
    area = float(np.mean(wins[positive]))
    weight = np.where(positive, n / len(ups), n / len(downs))
    return Statistic(area, (wins - area) * weight, float(weight.max()), share=True)


def _below(ordered: Array, values: Array) -> Array:
    """The share of ``ordered`` that is below each value."""
    sides = [np.searchsorted(ordered, values, side=side) for side in ("left", "right")]
    return np.asarray((sides[0] + sides[1]) / (2 * len(ordered)))


def log_loss(places: Array, scores: Array) -> Statistic:
    """The mean of minus the logarithm of what the true class was given."""
    given = np.where(places < 0, 0.0, scores[np.arange(len(places)), places].astype(np.float64))
    return mean_of(-np.log(np.clip(given, SMALLEST_SHARE, 1.0)))


def _among_best(places: Array, scores: Array, count: int) -> Array:
    """Whether the true class is among the best; the earlier of two equal ones is the better."""
    best = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :count]
    return np.asarray(np.any(best == places[:, None], axis=1))


def _places(truth: Array, classes: Array) -> Array:
    order = np.argsort(classes, kind="stable")
    found = np.searchsorted(classes, truth, sorter=order).clip(max=len(classes) - 1)
    places = order[found]
    return np.asarray(np.where(classes[places] == truth, places, -1))

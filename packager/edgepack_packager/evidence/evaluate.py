"""How good a candidate is: its figures on the evaluation rows, against the truth and the source."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.evidence.agreement import Likeness, compare_outputs, mask_scores
from edgepack_packager.evidence.exam import Exam
from edgepack_packager.evidence.figures import Figures
from edgepack_packager.evidence.intervals import Estimate
from edgepack_packager.evidence.losses import Losses
from edgepack_packager.evidence.metrics import (
    LOWER_IS_BETTER,
    measure_labels,
    measure_values,
    squared_errors,
)
from edgepack_packager.evidence.scores import score_rows
from edgepack_packager.evidence.slices import slice_figures
from edgepack_packager.evidence.statistic import (
    Proof,
    Statistic,
    Units,
    difference,
    estimate,
    growth,
    mean_of,
    share_of,
)
from edgepack_packager.evidence.worst import confusions, worst_labels, worst_values


def examine(exam: Exam, outputs: Feeds) -> Figures:
    """Compare a candidate's outputs with the truth and with the source model's answers.

    Raises:
        DataError: The user's metric fails on them.
    """
    failure = _failure(exam, outputs)
    if failure is not None:
        return Figures(failure=failure)
    figures, losses = _figures(exam, outputs)
    if exam.scorer is not None:
        figures, losses = _with_scores(figures, exam, score_rows(exam, outputs))
    if exam.incumbent is not None:
        figures = _with_incumbent(figures, exam, outputs)
    return replace(figures, slices=slice_figures(exam, figures.loss_metric, losses))


def _figures(exam: Exam, outputs: Feeds) -> tuple[Figures, Losses]:
    if exam.decisions.task == "classification":
        return _classification(exam, outputs)
    if exam.truth is not None and exam.truth.shape == exam.source.shape:
        return _values(exam, outputs)
    return _likeness(exam, outputs)


def _failure(exam: Exam, outputs: Feeds) -> str | None:
    """Why answers are none: where the source model gives numbers, the candidate must too."""
    classifies = exam.decisions.task == "classification"
    names = (exam.decisions.scores,) if classifies else tuple(outputs)
    for name in names:
        values = None if name is None else outputs.get(name)
        if name is None or values is None or values.dtype.kind != "f":
            continue
        # a score may be infinite and still decide; a value may not
        bad = _any_per_row(np.isnan(values) if classifies else ~np.isfinite(values))
        theirs = exam.source_outputs.get(name)
        if theirs is not None and theirs.dtype.kind == "f" and len(theirs) == len(values):
            bad &= ~_any_per_row(np.isnan(theirs) if classifies else ~np.isfinite(theirs))
        if bad.any():
            kind = "not a number" if classifies else "not a number or infinite"
            return (
                f"output {name!r} is {kind} in {np.count_nonzero(bad)} of {len(bad)} rows, "
                f"the first is row {exam.row_number(int(np.argmax(bad)))}"
            )
    return None


def _any_per_row(flags: Array) -> Array:
    return np.asarray(flags.reshape(len(flags), -1).any(axis=1))


def _classification(exam: Exam, outputs: Feeds) -> tuple[Figures, Losses]:
    ours, theirs, units = exam.read(outputs), exam.source_answers, exam.units
    same = share_of(ours.values == theirs.values)
    everything = Statistic(1.0, np.zeros(exam.n), share=True, hits=np.ones(exam.n, np.bool_))
    common = Figures(
        relative={"agreement": estimate(same, units)},
        worst=worst_labels(exam, ours, theirs),
        confusions=confusions(ours.values, theirs.values),
    )
    if exam.truth is None or exam.truth.ndim != 1:
        loss, proof = _unlike(same, units)
        return _judged(common, "agreement", loss, proof), Losses(same, everything)
    found = measure_labels(exam.truth, ours, exam.wanted)
    against = measure_labels(exam.truth, theirs, exam.wanted)
    losses = Losses(found["accuracy"], against["accuracy"])
    relative = {**common.relative, **_against_source(found, against, units)}
    estimates = {name: estimate(value, units) for name, value in found.items()}
    figures = replace(common, estimates=estimates, relative=relative)
    return _judged(figures, "accuracy", *losses.loss(units)), losses


def _unlike(same: Statistic, units: Units | None) -> tuple[Estimate, Proof]:
    """The share of rows that are answered otherwise; no row can gain."""
    alike = estimate(same, units)
    n, differ = alike.n, round(alike.n * (1 - alike.value))
    spread = alike.value * (1 - alike.value)
    proof = Proof(1 - alike.value, n, alike.units or n, spread**0.5, 1.0, counts=(differ, 0))
    return Estimate(1 - alike.value, 1 - alike.high, 1 - alike.low, n, alike.units), proof


def _judged(figures: Figures, metric: str, loss: Estimate, proof: Proof) -> Figures:
    losses, gains = proof.counts or (0, 0)
    return replace(figures, loss_metric=metric, loss=loss, losses=losses, gains=gains, proof=proof)


def _against_source(
    ours: dict[str, Statistic], theirs: dict[str, Statistic], units: Units | None
) -> dict[str, Estimate]:
    """What was lost of each metric that both have; of errors, by what share they grew."""
    found = {}
    for name in ours.keys() & theirs.keys():
        if name in LOWER_IS_BETTER:
            found[f"{name}-growth"] = growth(ours[name], theirs[name], units)[0]
        else:
            found[f"{name}-drop"] = difference(theirs[name], ours[name], units)[0]
    return dict(sorted(found.items()))


def _values(exam: Exam, outputs: Feeds) -> tuple[Figures, Losses]:
    values, truth = exam.decisions.answers(outputs), np.asarray(exam.truth)
    found = measure_values(truth, values)
    against = measure_values(truth, exam.source)
    losses = _errors(truth, values, exam.source)
    loss, proof = losses.loss(exam.units)
    figures = Figures(
        estimates={name: estimate(value, exam.units) for name, value in found.items()},
        relative={
            "rmse-growth": loss,
            "mae-growth": growth(found["mae"], against["mae"], exam.units)[0],
        },
        worst=worst_values(exam, values, exam.source),
    )
    return _judged(figures, "rmse", loss, proof), losses


def _errors(truth: Array, ours: Array, theirs: Array) -> Losses:
    squares = [mean_of(squared_errors(truth, values)) for values in (ours, theirs)]
    return Losses(squares[0], squares[1], "growth")


def _likeness(exam: Exam, outputs: Feeds) -> tuple[Figures, Losses]:
    """Output by output; the one that is furthest from proven is the one that is judged."""
    found = compare_outputs(exam, outputs)
    worst = max(found, key=lambda item: (item.loss.high, item.name))
    several = len(found) > 1
    figures = Figures(
        relative={item.label(several=several): item.figure for item in found},
        worst=worst_values(exam, worst.ours, worst.theirs),
    )
    figures = _judged(figures, worst.label(several=several), worst.loss, worst.proof)
    return _with_masks(figures, exam, outputs, worst)


def _with_masks(
    figures: Figures, exam: Exam, outputs: Feeds, worst: Likeness
) -> tuple[Figures, Losses]:
    """Against masks that came with the rows, when they are some."""
    pair = mask_scores(exam, outputs)
    if pair is None:
        return figures, worst.losses
    ours, theirs = (mean_of(values, share=True) for values in pair)
    losses = Losses(ours, theirs)
    loss, proof = losses.loss(exam.units)
    figures = replace(
        figures,
        estimates={"pixel-accuracy": estimate(ours, exam.units)},
        relative={**figures.relative, "pixel-accuracy-drop": loss},
    )
    return _judged(figures, "pixel-accuracy", loss, proof), losses


def _with_scores(figures: Figures, exam: Exam, scores: Array) -> tuple[Figures, Losses]:
    """The user's metric decides, beside whatever else is known."""
    name, against = exam.metric or "score", exam.source_scores
    ours, theirs = score_pair(scores, np.asarray(against))
    losses = Losses(ours, theirs)
    loss, proof = losses.loss(exam.units)
    figures = replace(
        figures,
        # its name wins over a built-in metric's
        estimates={name: estimate(ours, exam.units)} | _without(figures.estimates, name),
        relative={f"{name}-drop": loss} | _without(figures.relative, f"{name}-drop"),
    )
    return _judged(figures, name, loss, proof), losses


def _without(figures: dict[str, Estimate], name: str) -> dict[str, Estimate]:
    return {other: figure for other, figure in figures.items() if other != name}


def score_pair(ours: Array, theirs: Array) -> tuple[Statistic, Statistic]:
    """The means of two sets of scores, which are shares when all lie between 0 and 1."""
    both = np.concatenate([ours, theirs])
    share = bool(np.all((both >= 0) & (both <= 1)))
    reach = 1.0 if share else float(np.ptp(both))
    return mean_of(ours, reach=reach, share=share), mean_of(theirs, reach=reach, share=share)


def _with_incumbent(figures: Figures, exam: Exam, outputs: Feeds) -> Figures:
    old = exam.incumbent
    if old is None:
        return figures
    if old.scores is not None:
        losses = Losses(*score_pair(score_rows(exam, outputs), old.scores))
    elif exam.decisions.task == "classification":
        truth = np.asarray(exam.truth)
        right = share_of(exam.decisions.answers(outputs) == truth)
        losses = Losses(right, share_of(old.answers == truth))
    else:
        truth, values = np.asarray(exam.truth), exam.decisions.answers(outputs)
        losses = _errors(truth, values, old.answers)
    loss, proof = losses.loss(exam.units)
    return replace(figures, incumbent=loss, incumbent_proof=proof)

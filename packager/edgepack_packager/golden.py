"""Golden rows: which rows a bundle carries, their answers, and how far answers may be off."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from edgepack_contract.description import Golden, SessionOptions
from edgepack_contract.limits import MIB
from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.graphs.running import open_folder, take_rows
from edgepack_packager.subject import Subject, synthetic_rows
from edgepack_runtime.inference.golden import GoldenRows, run_rows
from edgepack_runtime.inference.session import Optimisation

GOLDEN_ROWS = 64
GOLDEN_CLOSE_ROWS = 16
GOLDEN_BYTES = 4 * MIB

FLOOR = 1e-5
"""Sums of floats in another order differ by about this share."""

_OTHER_WAYS: tuple[tuple[Optimisation, int], ...] = (("off", 1), ("basic", 1), ("all", 2))
"""Optimisation levels and threads that stand for other versions and processors."""


def make_golden(
    subject: Subject, folder: Path, margins: Array | None, *, fp32: Path | None, seed: int
) -> tuple[GoldenRows, Golden]:
    """Rows with the answers of a candidate, and how they are judged.

    Args:
        subject: What the candidate was made of.
        folder: Where its files are.
        margins: By how much the best class leads in each evaluation row, in float.
        fp32: Where the files in float are; None when the candidate is these.
        seed: Decides rows that are made up because none were given.
    """
    inputs = _inputs(subject, margins, seed=seed)
    n = len(next(iter(inputs.values())))
    expected = run_rows(open_folder(folder), inputs, n)
    others = [_run_otherwise(folder, inputs, n, *way) for way in _OTHER_WAYS]
    spread = max(_furthest(expected, other) for other in others)
    # another processor may round an int8 sum to the next step, which is an error of this size
    step = 0.0 if fp32 is None else _furthest(expected, run_rows(open_folder(fp32), inputs, n))
    atol = _round_up(max(4 * spread, step, FLOOR * max(1.0, _largest(expected))))
    golden = Golden(
        rows=n,
        atol=atol,
        rtol=FLOOR,
        top1_agreement=_agreement_floor(subject, expected, others, atol),
        derived=(
            f"atol covers 4 times the spread over optimisation levels and threads "
            f"({_round_up(spread):g}), the distance from fp32 ({_round_up(step):g}) and rounding; "
            "top-1 allows for the rows whose margin is under twice atol"
        ),
    )
    return GoldenRows(inputs=inputs, outputs=expected), golden


def _run_otherwise(
    folder: Path, inputs: Feeds, rows: int, level: Optimisation, threads: int
) -> Feeds:
    options = SessionOptions(intra_op_threads=threads, inter_op_threads=1)
    return run_rows(open_folder(folder, options=options, optimisation=level), inputs, rows)


def _inputs(subject: Subject, margins: Array | None, *, seed: int) -> Feeds:
    """Rows spread over the evaluation rows, some of them hard to decide."""
    feeds = subject.exam.feeds if subject.exam else subject.calibration or subject.reference
    if feeds is None:
        feeds = synthetic_rows(subject.inputs, GOLDEN_ROWS, seed=seed)
    n = len(next(iter(feeds.values())))
    size = sum(array.nbytes for array in feeds.values()) / n
    count = min(n, GOLDEN_ROWS, max(1, int(GOLDEN_BYTES / max(size, 1))))
    hardest = [] if margins is None else [int(row) for row in np.argsort(margins, kind="stable")]
    close = hardest[: min(GOLDEN_CLOSE_ROWS, count // 2)]
    rest = [row for row in range(n) if row not in set(close)]
    wanted = count - len(close)
    spread = [rest[place * len(rest) // wanted] for place in range(wanted)] if wanted else []
    return {
        name: np.ascontiguousarray(array)
        for name, array in take_rows(feeds, sorted({*close, *spread})).items()
    }


def _agreement_floor(subject: Subject, expected: Feeds, others: list[Feeds], atol: float) -> float:
    """The share of decisions that must agree: those that rounding cannot turn."""
    answers = [subject.decisions.answers(outputs) for outputs in (expected, *others)]
    if subject.decisions.task != "classification":
        return 0.0
    n = len(answers[0])
    seen = min(float(np.mean(answers[0] == other)) for other in answers[1:])
    margins = subject.decisions.margins(expected)
    firm = n if margins is None else int(np.count_nonzero(margins > 2 * atol))
    return math.floor(min(seen, firm / n) * 1000) / 1000


def _furthest(one: Feeds, two: Feeds) -> float:
    """The largest difference of two floats in the same place."""
    gaps = [
        float(np.max(np.abs(one[name].astype(np.float64) - two[name]), initial=0.0))
        for name in one
        if one[name].dtype.kind == "f"
    ]
    finite = [gap for gap in gaps if math.isfinite(gap)]
    return max(finite, default=0.0)


def _largest(outputs: Feeds) -> float:
    floats = [_finite(values) for values in outputs.values() if values.dtype.kind == "f"]
    return max((float(np.max(np.abs(values), initial=0.0)) for values in floats), default=0.0)


def _finite(values: Array) -> Array:
    return values[np.isfinite(values)]


def _round_up(value: float) -> float:
    """To two significant digits, upwards: a tolerance that is readable and repeats."""
    if value <= 0:
        return 0.0
    exponent = math.floor(math.log10(value)) - 1
    return float(f"{math.ceil(value / 10**exponent)}e{exponent}")

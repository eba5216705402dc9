"""How good a candidate is: on a few rows first, on all of them when that is worth it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgepack_packager.data.rows import Feeds
from edgepack_packager.evidence.exam import Exam
from edgepack_packager.evidence.figures import Figures
from edgepack_packager.graphs.running import CHUNK_ROWS, chunks, open_folder, run_rows
from edgepack_packager.graphs.steps import run_steps
from edgepack_packager.quantize.plan import Plan

FIRST_ROWS = 256
BLOCK_ROWS = 256

Check = Callable[[], None]
"""Called between blocks of rows; raises to end a run early."""


def answers(folder: Path, plan: Plan, exam: Exam, check: Check) -> Feeds:
    """All outputs of a saved candidate to the rows of an exam, as a device computes them.

    Raises:
        ModelError: It does not load or run.
    """
    session = open_folder(folder)
    # dynamic scales depend on the batch; a device serves row by row
    chunk = 1 if plan.precision == "int8-dynamic" else CHUNK_ROWS

    def run(feeds: Feeds) -> Feeds:
        blocks = []
        for part in chunks(feeds, BLOCK_ROWS):
            check()
            blocks.append(run_rows(session, part, chunk=chunk))
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    found = run_steps(run, exam.feeds, exam.steps)
    session.release()
    return found


def first_rows(exam: Exam) -> Exam | None:
    """A few rows, spread over all; None where judging them first would save nothing.

    Sequences are carried from step to step, so that they are not taken apart.
    """
    if exam.n < 2 * FIRST_ROWS or exam.units is not None or exam.steps is not None:
        return None
    return exam.take([place * exam.n // FIRST_ROWS for place in range(FIRST_ROWS)])


def is_hopeless(figures: Figures, allowed: float) -> bool:
    """Whether even the least that is lost, by a few rows, is over what is allowed."""
    if figures.failure is not None:
        return True
    return figures.loss is not None and not figures.loss.low <= allowed

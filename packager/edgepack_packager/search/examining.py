"""How good a candidate is: on a few rows first, on all of them where that is worth it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgepack_packager.data.rows import Feeds
from edgepack_packager.evidence.exam import Exam
from edgepack_packager.evidence.figures import Figures
from edgepack_packager.evidence.intervals import proportion
from edgepack_packager.graphs.running import CHUNK_ROWS, chunks, open_folder, run_rows
from edgepack_packager.graphs.steps import run_steps
from edgepack_packager.quantize.plan import Plan

FIRST_ROWS = (256, 512)
"""Rows of the first looks at a candidate; after each it is given up when it is hopeless."""

BLOCK_ROWS = 256

Indices = npt.NDArray[np.intp]

Check = Callable[[], None]
"""Called between blocks of rows; raises to end a run early."""


def answers(
    folder: Path,
    plan: Plan,
    exam: Exam,
    check: Check,
    *,
    chunk: int = CHUNK_ROWS,
    threads: int = 1,
) -> Feeds:
    """All outputs of a saved candidate to the rows of an exam, as a device computes them.

    Args:
        folder: Where it is.
        plan: What it was made by.
        exam: The rows.
        check: Called between blocks of rows.
        chunk: Rows of one run, where they may be several.
        threads: Runs at once.

    Raises:
        ModelError: It does not load or run.
    """
    session = open_folder(folder)
    # dynamic scales depend on the batch; a device serves row by row
    size = 1 if plan.precision == "int8-dynamic" else chunk

    def run(feeds: Feeds) -> Feeds:
        blocks = []
        for part in chunks(feeds, BLOCK_ROWS):
            check()
            blocks.append(run_rows(session, part, chunk=size, threads=threads))
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    found = run_steps(run, exam.feeds, exam.steps)
    session.release()
    return found


class Reading:
    """A candidate's answers to more and more rows of an exam, ``chunk`` of them in one run."""

    def __init__(self, exam: Exam, stages: Sequence[Indices], chunk: int = CHUNK_ROWS) -> None:
        self._exam, self._stages, self._chunk = exam, stages, chunk
        self._outputs: list[Feeds] = []

    @property
    def is_whole(self) -> bool:
        """Whether all rows were answered."""
        return len(self._outputs) == len(self._stages)

    def read_on(self, folder: Path, plan: Plan, check: Check, threads: int = 1) -> None:
        """Answer the rows of the next stage.

        Raises:
            ModelError: The candidate does not load or run.
        """
        rows = self._stages[len(self._outputs)]
        part = self._exam if len(self._stages) == 1 else self._exam.take(rows.tolist())
        self._outputs.append(answers(folder, plan, part, check, chunk=self._chunk, threads=threads))

    def result(self) -> tuple[Exam, Feeds]:
        """The exam on the rows so far, and the outputs, in the order of the exam's rows."""
        if len(self._stages) == 1:
            return self._exam, self._outputs[0]
        rows = np.concatenate(self._stages[: len(self._outputs)])
        order = np.argsort(rows)
        exam = self._exam if self.is_whole else self._exam.take(rows[order].tolist())
        joined = {
            name: np.concatenate([outputs[name] for outputs in self._outputs])[order]
            for name in self._outputs[0]
        }
        return exam, joined


def stages(exam: Exam) -> list[Indices]:
    """The rows of an exam in the stages to judge candidates in, each spread over all rows.

    Sequences are carried from step to step, so that they are not taken apart.
    """
    rest = np.arange(exam.n)
    if exam.n < 2 * FIRST_ROWS[0] or exam.units is not None or exam.steps is not None:
        return [rest]
    found = []
    for count in FIRST_ROWS:
        if len(rest) < 2 * count:
            break
        places = np.arange(count) * len(rest) // count
        found.append(rest[places])
        rest = np.delete(rest, places)
    return [*found, rest]


def is_hopeless(exam: Exam, figures: Figures, allowed: float) -> bool:
    """Whether a candidate, by the figures of some rows, can no more be proven on all of them.

    Either the least that it loses is over what is allowed; or it lost so many rows that it would
    be over even if it kept all the others.
    """
    if figures.failure is not None:
        return True
    if figures.loss is None:
        return False
    if not figures.loss.low <= allowed:
        return True
    only_losses = exam.truth is None and exam.scorer is None
    if not only_losses or not figures.losses or exam.decisions.task != "classification":
        return False
    return 1 - proportion(exam.n - figures.losses, exam.n).low > allowed

"""Make and judge candidates side by side; what does not depend on the target is done once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from edgepack_contract.message_types import prepare_types
from edgepack_packager.evidence.evaluate import examine
from edgepack_packager.evidence.figures import Figures
from edgepack_packager.evidence.judging import allowed_loss
from edgepack_packager.graphs.running import CHUNK_ROWS, model_size, rows_at_once
from edgepack_packager.quantize.library import QuantizerError
from edgepack_packager.quantize.plan import FP32, Plan
from edgepack_packager.quantize.sensitivity import LayerError
from edgepack_packager.recipe import Recipe
from edgepack_packager.search.examining import Reading, is_hopeless, stages
from edgepack_packager.search.strategy import Material
from edgepack_packager.search.trials import Made
from edgepack_packager.search.workshop import Workshop
from edgepack_packager.subject import Subject
from edgepack_runtime.inference.errors import ModelError

_STARTING_TRIES, _STARTING_SECONDS = 100, 0.01
"""How often to look whether a thread has begun that was told to; one may never begin."""


class OutOfTimeError(Exception):
    """A candidate was not finished in time; it counts as not tried."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A candidate that cannot be made, and why; empty when the model has no such form."""

    words: str


class Panel:
    """Makes candidates and judges them, as many at once as there are jobs.

    Judging runs without the interpreter's lock, so that threads are enough; nothing that decides
    depends on their number. To be used as a context: whatever ends it, no thread stays behind.
    """

    def __init__(
        self,
        recipe: Recipe,
        subject: Subject,
        folder: Path,
        *,
        jobs: int,
        clock: Callable[[], float],
    ) -> None:
        self._exam = subject.exam
        self._stages = [] if subject.exam is None else stages(subject.exam)
        self._chunk = (
            CHUNK_ROWS if subject.exam is None else rows_at_once(subject.model, subject.exam.feeds)
        )
        self._readings: dict[Plan, Reading] = {}
        self._allowed = allowed_loss(recipe.drop, subject.exam)
        self._workshop = Workshop(subject.model, subject.calibration, folder)
        self._prefix = f"candidates-{id(self)}"
        self._jobs = jobs
        prepare_types()
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix=self._prefix)
        self._clock = clock
        self._stopped = threading.Event()
        self._found: dict[Plan, Made | Refused] = {}
        self._ranked: dict[Plan, tuple[LayerError, ...]] = {}
        self.until: float | None = None
        """When everything but fp32 must be done; None for no such time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
        # a thread that was being started when Ctrl-C came is unknown to the pool
        for thread in threading.enumerate():
            if thread.name.startswith(self._prefix):
                _join(thread)

    @property
    def material(self) -> Material:
        """What the model offers."""
        return self._workshop.material(judged=self._exam is not None)

    @property
    def expired(self) -> bool:
        """Whether the time is over."""
        return self.until is not None and self._clock() >= self.until

    @property
    def made(self) -> list[Made]:
        """Every candidate so far."""
        return [item for item in self._found.values() if isinstance(item, Made)]

    def look(self, plans: Sequence[Plan]) -> dict[Plan, Made | Refused]:
        """Make candidates and judge them on a few rows, or on all where there are few.

        Returns:
            By plan; one that was not done in time is missing.

        Raises:
            ModelError: fp32 itself does not load or run.
        """
        missing = [plan for plan in plans if plan not in self._found]
        # float answers all rows, which takes as long as all the others' first looks together
        first = [plan for plan in missing if plan == FP32]
        for some in (first, [plan for plan in missing if plan != FP32]):
            threads = self._threads(some)
            work = {plan: partial(self._make, plan, threads) for plan in some}
            self._found |= self._side_by_side(work)
        return {plan: self._found[plan] for plan in plans if plan in self._found}

    def judge(self, made: Sequence[Made]) -> dict[Plan, Made | Refused]:
        """Judge candidates on all rows that were only looked at, unless they are hopeless.

        Returns:
            By plan; one that was not done in time is missing.
        """
        promising = [item for item in made if not item.whole and not self._is_hopeless(item)]
        threads = self._threads(promising)
        done = self._side_by_side(
            {item.plan: partial(self._judge, item, threads) for item in promising}
        )
        self._found |= done
        late = {item.plan for item in promising} - done.keys()
        return {item.plan: self._found[item.plan] for item in made if item.plan not in late}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What of the model keeps which candidates away."""
        return self._workshop.remarks

    def ranked(self, plan: Plan) -> tuple[LayerError, ...]:
        """The nodes of static int8, the one that does most harm under ``plan`` first."""
        if plan not in self._ranked:
            self._ranked[plan] = self._workshop.ranked(plan)
        return self._ranked[plan]

    def _threads(self, work: Sequence[object]) -> int:
        """The jobs that each of so many candidates may take."""
        return max(1, self._jobs // max(len(work), 1))

    def _side_by_side(
        self, work: Mapping[Plan, Callable[[], Made | Refused]]
    ) -> dict[Plan, Made | Refused]:
        futures = {plan: self._pool.submit(do) for plan, do in work.items()}
        found: dict[Plan, Made | Refused] = {}
        for plan, future in futures.items():
            try:
                found[plan] = future.result()
            except OutOfTimeError:
                continue
            except (QuantizerError, ModelError) as error:
                if plan == FP32:
                    raise
                found[plan] = Refused(str(error))
        return found

    def _make(self, plan: Plan, threads: int) -> Made | Refused:
        check = self._check_of(plan)
        draft = self._workshop.make(plan, check)
        if draft is None:
            return Refused("")
        made = Made(
            plan=plan,
            folder=draft.folder,
            size_bytes=model_size(draft.folder),
            figures=Figures(),
            margins=None,
            quantized_share=draft.quantized_share,
        )
        if self._exam is None:
            return made
        # float is what the others are held against, so that it is always judged in full
        in_stages = [np.arange(self._exam.n)] if plan == FP32 else self._stages
        reading = Reading(self._exam, in_stages, self._chunk)
        made = self._read_on(made, reading, check, threads)
        if not made.whole:
            self._readings[plan] = reading
        return made

    def _judge(self, made: Made, threads: int) -> Made:
        reading, check = self._readings.pop(made.plan), self._check_of(made.plan)
        while not made.whole and not self._is_hopeless(made):
            made = self._read_on(made, reading, check, threads)
        return made

    def _read_on(
        self, made: Made, reading: Reading, check: Callable[[], None], threads: int
    ) -> Made:
        reading.read_on(made.folder, made.plan, check, threads)
        exam, outputs = reading.result()
        return replace(
            made,
            figures=examine(exam, outputs),
            margins=exam.decisions.margins(outputs) if made.plan == FP32 else None,
            whole=reading.is_whole,
        )

    def _is_hopeless(self, made: Made) -> bool:
        exam = self._exam
        return exam is not None and is_hopeless(exam, made.figures, self._allowed)

    def _check_of(self, plan: Plan) -> Callable[[], None]:
        def check() -> None:
            late = plan != FP32 and self.expired
            if late or self._stopped.is_set():
                raise OutOfTimeError

        return check


def _join(thread: threading.Thread) -> None:
    """Wait for a thread that may be only about to begin."""
    for _ in range(_STARTING_TRIES):
        try:
            thread.join()
        except RuntimeError:  # it has not begun
            time.sleep(_STARTING_SECONDS)
        else:
            return

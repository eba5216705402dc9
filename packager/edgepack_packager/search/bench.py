"""Evaluate the candidates of a target and choose one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx

from edgepack_contract.description import (
    SessionOptions,
)
from edgepack_packager.errors import AccuracyGateError, LockError
from edgepack_packager.evidence.evaluate import Figures, examine
from edgepack_packager.evidence.gates import judge_budget
from edgepack_packager.graphs.running import (
    CHUNK_ROWS,
    chunks,
    model_size,
    open_folder,
    run_rows,
    save_model,
    take_rows,
)
from edgepack_packager.lock import LockedTarget
from edgepack_packager.quantize.operators import is_tree_ensemble
from edgepack_packager.quantize.plan import Plan
from edgepack_packager.quantize.static import QuantizerError
from edgepack_packager.recipe import Recipe
from edgepack_packager.search.candidates import Workshop, first_plans
from edgepack_packager.search.choose import Candidate, Choice, choose
from edgepack_packager.search.judging import budgets_for, judge
from edgepack_packager.search.trials import Made, Outcome, Trial
from edgepack_packager.subject import Subject
from edgepack_packager.targets import DeviceConfig, this_hardware
from edgepack_runtime.inference.errors import ModelError
from edgepack_runtime.inference.trial import Latency, measure

TIMED_ROWS = 32

Tell = Callable[[str], None]
MeasureMemory = Callable[[Trial, Trial], int | None]
"""Peak bytes of a candidate, given that candidate and the one in float."""


class Bench:
    """Makes and examines candidates; what does not depend on the target is done once."""

    def __init__(self, recipe: Recipe, subject: Subject, folder: Path, tell: Tell) -> None:
        self._recipe = recipe
        self._subject = subject
        self._folder = folder
        self._tell = tell
        self._workshop = Workshop(subject.model, subject.calibration)
        self._made: dict[Plan, Made | None] = {}
        self.warnings: list[str] = []
        if is_tree_ensemble(subject.model):
            self.warnings.append(
                "tree ensembles have no int8 form; compression on the way makes them small"
            )

    def search(self, target: DeviceConfig, measure_memory: MeasureMemory) -> Outcome:
        """Try candidates for ``target`` and choose.

        Raises:
            AccuracyGateError: None is inside the accuracy gates.
            BudgetError: None is inside the budgets.
        """
        here = target.is_this(this_hardware())
        trials: list[Trial] = []
        for plan in first_plans(target):
            trial = self._try(plan, target, here=here)
            if trial is None:
                continue
            trials.append(trial)
            if plan.precision == "int8-static" and _may_be_refined(trial):
                trials += self._refine(plan, target, here=here)
        if self._recipe.optimize == "memory" or budgets_for(self._recipe, target).memory_bytes:
            trials = [_with_memory(trial, measure_memory(trial, trials[0])) for trial in trials]
        choice = choose(
            [_candidate(trial) for trial in trials],
            optimize=self._recipe.optimize,
            preference=target.precision,
            require_int8=self._recipe.require_int8,
        )
        return Outcome(target, here, tuple(trials), choice)

    def repeat(self, target: DeviceConfig, locked: LockedTarget) -> Outcome:
        """Make what the lock says, and examine it.

        Raises:
            LockError: The model has no such candidate any more.
            AccuracyGateError: It is outside the accuracy gates.
        """
        here = target.is_this(this_hardware())
        plans = list(dict.fromkeys((first_plans(target)[0], locked.plan)))
        found = [self._try(plan, target, here=here) for plan in plans]
        trials = [trial for trial in found if trial is not None]
        if len(trials) != len(plans):
            raise LockError(f"this model has no candidate {locked.plan.name}", code="lock-differs")
        last = trials[-1]
        failed = [v.words for v in last.verdicts if v.outcome == "fail"]
        if any(v.outcome == "fail" and v.gate.severity == "accuracy" for v in last.verdicts):
            raise AccuracyGateError(f"the locked {last.name} is outside: {'; '.join(failed)}")
        reasons = {trial.name: "not chosen by the lock" for trial in trials}
        reasons[last.name] = "chosen by the lock"
        return Outcome(target, here, tuple(trials), Choice(last.name, reasons, ()))

    def _refine(self, plan: Plan, target: DeviceConfig, *, here: bool) -> list[Trial]:
        trials: list[Trial] = []
        for finer in self._workshop.refinements(plan, self._folder / f"alone-{plan.name}"):
            trial = self._try(finer, target, here=here)
            if trial is not None:
                trials.append(trial)
                if trial.proven:
                    break
        return trials

    def _try(self, plan: Plan, target: DeviceConfig, *, here: bool) -> Trial | None:
        self._tell(f"{target.name}: {plan.name}")
        if plan not in self._made:
            self._made[plan] = self._make(plan)
        made = self._made[plan]
        if made is None:
            return None
        latency = time_rows(made.folder, self._subject, target) if here else None
        verdicts = judge(made, latency, None, self._recipe, self._subject, target)
        return Trial(made, latency, None, verdicts)

    def _make(self, plan: Plan) -> Made | None:
        folder = self._folder / f"candidate-{len(self._made)}"
        try:
            model = self._workshop.make(plan)
            if model is None:
                return None
            save_model(model, folder)
            return self._examine(plan, model, folder)
        except (QuantizerError, ModelError) as error:
            if plan.precision == "fp32":
                raise
            self.warnings.append(f"{plan.name} was not tried: {error}")
            return None

    def _examine(self, plan: Plan, model: onnx.ModelProto, folder: Path) -> Made:
        exam, size = self._subject.exam, model_size(folder)
        if exam is None:
            return Made(plan, model, folder, size, Figures(), None)
        # dynamic scales depend on the batch; a device serves row by row
        chunk = 1 if plan.precision == "int8-dynamic" else CHUNK_ROWS
        outputs = run_rows(open_folder(folder), exam.feeds, chunk=chunk)
        figures, margins = examine(exam, outputs), exam.decisions.margins(outputs)
        return Made(plan, model, folder, size, figures, margins)


def time_rows(folder: Path, subject: Subject, target: DeviceConfig) -> Latency:
    """Milliseconds of single rows, with the target's session options, on this machine."""
    options = SessionOptions(intra_op_threads=target.threads)
    session = open_folder(folder, options=options)
    feeds = subject.exam.feeds if subject.exam else subject.sample
    rows = list(chunks(take_rows(feeds, slice(0, TIMED_ROWS)), 1))
    return measure(lambda turn: session.run(rows[turn % len(rows)]))


def _may_be_refined(trial: Trial) -> bool:
    """Whether the candidate loses something that a finer one may keep."""
    loss = trial.made.figures.loss
    return not trial.proven and loss is not None and loss.value > 0


def _with_memory(trial: Trial, memory: int | None) -> Trial:
    verdicts = tuple(
        judge_budget(verdict.gate, memory) if verdict.gate.name == "max-memory" else verdict
        for verdict in trial.verdicts
    )
    return replace(trial, memory_bytes=memory, verdicts=verdicts)


def _candidate(trial: Trial) -> Candidate:
    return Candidate(
        name=trial.name,
        precision=trial.made.plan.precision,
        size_bytes=trial.made.size_bytes,
        latency_s=None if trial.latency is None else trial.latency.p50_ms / 1000,
        memory_bytes=trial.memory_bytes,
        verdicts=trial.verdicts,
    )

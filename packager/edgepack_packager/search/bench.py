"""Carry a search out: make and judge candidates, time them, and choose for each target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from edgepack_contract.description import SessionOptions
from edgepack_contract.hardware import Hardware
from edgepack_packager.data.rows import Feeds
from edgepack_packager.errors import AccuracyGateError, LockError
from edgepack_packager.graphs.running import chunks, take_rows
from edgepack_packager.lock import LockedTarget
from edgepack_packager.quantize.plan import FP32, Plan
from edgepack_packager.recipe import Recipe
from edgepack_packager.search.choose import Candidate, Choice, choose, with_alternatives
from edgepack_packager.search.judging import budgets_for, judge
from edgepack_packager.search.measured import Measured
from edgepack_packager.search.panel import Panel, Refused
from edgepack_packager.search.strategy import Known, Rank, Standing, aim_for, next_step
from edgepack_packager.search.timing import FULL, GLANCE, Pace, Times, take_turns
from edgepack_packager.search.trials import Made, Outcome, Trial
from edgepack_packager.subject import Subject
from edgepack_packager.targets import DeviceConfig, this_hardware
from edgepack_runtime.inference.trial import Latency

TIMED_ROWS = 32
FAR_SLOWER_SHARE = 0.5
FAR_SLOWER_MS = 0.15
"""A glance is noisy: what is slower by both of these is given up, the rest is measured again."""

HARDLY_SMALLER = 0.85
HARDLY_FASTER = 0.9
"""What is worse than both of these shares of float is not worth a judgement."""

BEATEN_SHARE = 0.5
BEATEN_MS = 0.05
"""What is slower by both of these than one that is proven cannot win by latency."""

Tell = Callable[[str], None]
Tried = Callable[[str, Trial], None]
MeasureMemory = Callable[[Trial, Trial], int | None]
"""Peak bytes of a candidate, given that candidate and the one in float."""


@dataclass(slots=True)
class _Search:
    """What is known so far for one target."""

    known: list[Known] = field(default_factory=list)
    trials: dict[Plan, Trial] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    ranking: tuple[str, ...] | None = None


class Bench:
    """Searches for one target after the other; the panel keeps what does not depend on it."""

    def __init__(
        self, recipe: Recipe, subject: Subject, panel: Panel, *, tell: Tell, tried: Tried
    ) -> None:
        self._recipe, self._subject, self._panel = recipe, subject, panel
        self._tell, self._tried = tell, tried
        rows = subject.exam.feeds if subject.exam else subject.sample
        self._rows: list[Feeds] = list(chunks(take_rows(rows, slice(0, TIMED_ROWS)), 1))
        self._unmade: dict[str, str] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What kept which candidates away."""
        refused = [f"{name} was not tried: {words}" for name, words in self._unmade.items()]
        return (*self._panel.remarks, *refused)

    def search(
        self, target: DeviceConfig, measured: Measured, measure_memory: MeasureMemory
    ) -> Outcome:
        """Try candidates for ``target`` and choose.

        Raises:
            AccuracyGateError: None is inside the accuracy gates.
            BudgetError: None is inside the budgets.
        """
        found = self._explore(target)
        trials, host, warnings = self._clocked(target, list(found.trials.values()), measured)
        if host == this_hardware() and self._wants_memory(target):
            trials = self._with_memory(trials, target, measure_memory)
        choice = choose(
            [_candidate(trial) for trial in trials],
            optimize=self._recipe.optimize,
            preference=target.precision,
            require_int8=self._recipe.require_int8,
        )
        if found.late:
            names = ", ".join(found.late)
            late = f"{target.name}: the time budget ended before {names} could be tried"
            warnings = (*warnings, late)
        return replace(self._outcome(target, host, trials, choice), warnings=warnings)

    def repeat(self, target: DeviceConfig, locked: LockedTarget) -> Outcome:
        """Make what the lock says, and examine it.

        Raises:
            LockError: The model has no such candidate any more.
            AccuracyGateError: One is outside the accuracy gates.
        """
        wanted = [variant.plan for variant in locked.variants]
        plans = tuple(dict.fromkeys((FP32, *wanted)))
        found = _Search()
        self._try(plans, target, found, give_up=False)
        missing = [plan.name for plan in plans if plan not in found.trials]
        if missing:
            raise LockError(f"this model has no candidate {missing[0]}", code="lock-differs")
        for plan in wanted:
            _check_locked(found.trials[plan])
        reasons = {plan.name: "not chosen by the lock" for plan in plans}
        reasons |= {plan.name: "carried, as the lock says" for plan in wanted}
        reasons[wanted[0].name] = "chosen by the lock"
        choice = Choice(tuple(plan.name for plan in wanted), reasons, ())
        host = this_hardware() if target.is_this(this_hardware()) else None
        shipped = tuple(found.trials[plan] for plan in wanted)
        return Outcome(target, host, tuple(found.trials.values()), choice, shipped)

    def _explore(self, target: DeviceConfig) -> _Search:
        """Follow the strategy until nothing is left to try, or no time."""
        aim, material = aim_for(target), self._panel.material
        found = _Search()
        while step := next_step(aim, material, found.known, found.ranking):
            if isinstance(step, Rank):
                layers = () if self._panel.expired else self._panel.ranked(step.plan)
                found.ranking = tuple(layer.node for layer in layers)
            else:
                self._try(step.plans, target, found)
            if found.late or found.ranking == ():
                break
        return found

    def _try(
        self, plans: Sequence[Plan], target: DeviceConfig, found: _Search, *, give_up: bool = True
    ) -> None:
        """Make candidates and judge them, in full where that is worth it."""
        for plan in plans:
            self._tell(f"{target.name}: {plan.name}")
        looked = self._panel.look(plans)
        made = [item for item in looked.values() if isinstance(item, Made)]
        rivals = self._rivals(found)
        known = [found.trials[FP32].made] if FP32 in found.trials else []
        fp32, *_ = together = [*known, *rivals, *made]
        times = self._glance(target, together)
        behind = dict.fromkeys((item.plan for item in made), "")
        if give_up:
            behind = {item.plan: self._far_behind(item, fp32, target, times) for item in made}
        promising = [item for item in made if not behind[item.plan]]
        by_speed = give_up and self._recipe.optimize == "latency"
        judged, beaten = self._judge(promising, rivals, target, times if by_speed else {})
        behind |= beaten
        for plan in plans:
            item = judged.get(plan) or (looked.get(plan) if behind.get(plan, "-") else None)
            if item is None:
                found.late.append(plan.name)
            elif isinstance(item, Refused):
                self._refuse(plan, item, found)
            else:
                trial = self._trial(item, target, times.get(plan.name), behind[plan])
                found.trials[plan] = trial
                found.known.append(_known(trial, is_beaten=plan in beaten))
                self._tried(target.name, trial)

    def _rivals(self, found: _Search) -> list[Made]:
        """The fastest that may ship, if any is known and speed decides."""
        fit = [trial for trial in found.trials.values() if trial.latency and _is_fit(trial)]
        if self._recipe.optimize != "latency" or not fit:
            return []
        return [min(fit, key=lambda trial: trial.latency.p50_ms if trial.latency else 0.0).made]

    def _judge(
        self, made: Sequence[Made], rivals: list[Made], target: DeviceConfig, times: Times
    ) -> tuple[dict[Plan, Made | Refused], dict[Plan, str]]:
        """Judge on all rows, the fastest first, and leave out what those that are proven beat.

        Returns:
            What was judged, and by which candidate the others are beaten.
        """
        judged: dict[Plan, Made | Refused] = {}
        beaten: dict[Plan, str] = {}
        waiting = list(made)
        while True:
            # all rows are what is to be saved: where there are few, they are answered already
            slow = {item.plan: _beaten(item, rivals, times) for item in waiting if not item.whole}
            beaten |= {plan: words for plan, words in slow.items() if words}
            waiting = [item for item in waiting if item.plan not in beaten]
            if not waiting:
                return judged, beaten
            group = _foremost(waiting, times)
            done = self._panel.judge(group)
            judged |= done
            rivals = [*rivals, *self._fit(done.values(), target, times)]
            waiting = [item for item in waiting if item not in group]

    def _fit(
        self, done: Iterable[Made | Refused], target: DeviceConfig, times: Times
    ) -> list[Made]:
        """Those that may ship, if speed decides."""
        if not times:
            return []
        made = [item for item in done if isinstance(item, Made)]
        return [
            item for item in made if _is_fit(self._trial(item, target, times.get(item.plan.name)))
        ]

    def _refuse(self, plan: Plan, refused: Refused, found: _Search) -> None:
        found.known.append(Known(plan, "none"))
        if refused.words:
            self._unmade[plan.name] = refused.words

    def _trial(
        self,
        made: Made,
        target: DeviceConfig,
        latency: Latency | None,
        dropped: str = "",
        memory: int | None = None,
    ) -> Trial:
        verdicts = judge(made, latency, memory, self._recipe, self._subject, target)
        return Trial(made, latency, memory, verdicts, dropped)

    def _glance(self, target: DeviceConfig, made: Sequence[Made]) -> Times:
        if not target.is_this(this_hardware()):
            return {}
        return self._time(target, made, GLANCE)

    def _time(self, target: DeviceConfig, made: Sequence[Made], pace: Pace) -> Times:
        """Milliseconds of single rows, with the target's session options, on this machine."""
        options = SessionOptions(intra_op_threads=target.threads)
        folders = {item.plan.name: item.folder for item in made}
        return take_turns(FP32.name, folders, self._rows, options, pace)

    def _far_behind(self, made: Made, fp32: Made, target: DeviceConfig, times: Times) -> str:
        """Why a candidate can never win against float, however good it is; empty when it may."""
        in_float = self._trial(fp32, target, times.get(FP32.name))
        if made is fp32 or any(item.outcome == "fail" for item in in_float.verdicts):
            return ""
        if made.size_bytes >= fp32.size_bytes:
            return f"not smaller than fp32 ({made.size_bytes} bytes)"
        if self._recipe.optimize != "latency" or not times:
            return ""
        ours, theirs = times[made.plan.name].p50_ms, times[FP32.name].p50_ms
        share = made.size_bytes / fp32.size_bytes
        if share > HARDLY_SMALLER and ours > HARDLY_FASTER * theirs:
            return f"neither faster than fp32 nor much smaller ({share:.2f}x)"
        if ours - theirs < max(FAR_SLOWER_MS, FAR_SLOWER_SHARE * theirs):
            return ""
        return f"slower than fp32 by far: {ours * 1000:.0f} us against {theirs * 1000:.0f} us"

    def _clocked(
        self, target: DeviceConfig, trials: Sequence[Trial], measured: Measured
    ) -> tuple[list[Trial], Hardware | None, tuple[str, ...]]:
        """Trials with the latency that decides, the machine it is of, and warnings."""
        if target.is_this(this_hardware()):
            times = self._time(target, [item.made for item in trials if _may_win(item)], FULL)
            timed = [
                self._trial(item.made, target, times.get(item.name, item.latency), item.dropped)
                for item in trials
            ]
            return timed, this_hardware(), ()
        if measured.host is None:
            return list(trials), None, ()
        if measured.latency(trials[0].made.digest) is None:
            words = (
                f"{target.name}: the device measured other models than this build's fp32, so that "
                "nothing can be compared; its figures were not used"
            )
            return list(trials), None, (words,)
        return [self._as_measured(item, target, measured) for item in trials], measured.host, ()

    def _as_measured(self, trial: Trial, target: DeviceConfig, measured: Measured) -> Trial:
        digest = trial.made.digest
        latency = measured.latency(digest)
        dropped = trial.dropped
        if latency is None and not dropped:
            dropped = measured.failed(digest) or "was not measured on the device"
        memory = measured.memory_bytes(digest)
        return self._trial(trial.made, target, latency, dropped, memory)

    def _with_memory(
        self, trials: Sequence[Trial], target: DeviceConfig, measure: MeasureMemory
    ) -> list[Trial]:
        """The same with the peak memory of those that may win."""
        return [
            self._trial(item.made, target, item.latency, "", measure(item, trials[0]))
            if _may_win(item)
            else item
            for item in trials
        ]

    def _wants_memory(self, target: DeviceConfig) -> bool:
        budgets = budgets_for(self._recipe, target)
        return self._recipe.optimize == "memory" or budgets.memory_bytes is not None

    def _outcome(
        self, target: DeviceConfig, host: Hardware | None, trials: Sequence[Trial], choice: Choice
    ) -> Outcome:
        named = {trial.name: trial for trial in trials}
        carried = choice.ranking[:1]
        if host is None:
            precisions = {name: trial.made.plan.precision for name, trial in named.items()}
            carried = with_alternatives(choice.ranking, precisions, self._recipe.alternatives)
        for name in carried[1:]:
            choice.reasons[name] += "; carried as an alternative for the device"
        shipped = tuple(self._with_layers(named[name]) for name in carried)
        kept = {trial.name: trial for trial in shipped}
        told = tuple(kept.get(trial.name, trial) for trial in trials)
        return Outcome(target, host, told, choice, shipped)

    def _with_layers(self, trial: Trial) -> Trial:
        """What int8 does to each node, for the report, when there is time to look into it."""
        if trial.made.plan.precision != "int8-static" or self._panel.expired:
            return trial
        layers = self._panel.ranked(trial.made.plan)
        return replace(trial, made=replace(trial.made, layers=layers))


def _foremost(made: Sequence[Made], times: Times) -> list[Made]:
    """Those to judge next; each of the others would be beaten by the fastest of these."""
    paces = [times[item.plan.name].p50_ms for item in made if times and not item.whole]
    if not paces:
        return list(made)
    slowest = _far_above(min(paces))
    return [item for item in made if item.whole or times[item.plan.name].p50_ms < slowest]


def _far_above(ms: float) -> float:
    return ms + max(BEATEN_MS, BEATEN_SHARE * ms)


def _beaten(made: Made, rivals: Sequence[Made], times: Times) -> str:
    """By which of ``rivals`` a candidate is beaten whatever it answers; empty when by none."""
    if not rivals or not times:
        return ""
    best = min(rivals, key=lambda item: times[item.plan.name].p50_ms)
    ours, theirs = times[made.plan.name].p50_ms, times[best.plan.name].p50_ms
    if ours < _far_above(theirs):
        return ""
    return (
        f"slower by far than {best.plan.name}, which is proven: {ours * 1000:.0f} us against "
        f"{theirs * 1000:.0f} us"
    )


def _is_fit(trial: Trial) -> bool:
    """Whether it may ship instead of float, by everything that is known without full timing."""
    passed = all(verdict.outcome == "pass" for verdict in trial.verdicts)
    return trial.made.plan != FP32 and passed and trial.made.whole and not trial.dropped


def _known(trial: Trial, *, is_beaten: bool) -> Known:
    plan, figures = trial.made.plan, trial.made.figures
    if plan == FP32:
        outcomes = {v.outcome for v in trial.verdicts if v.gate.severity == "accuracy"}
        doubt: Standing = "unsure" if "inconclusive" in outcomes else "proven"
        return Known(plan, "losing" if "fail" in outcomes else doubt)
    loss = math.inf if figures.loss is None else figures.loss.value
    standing = "beaten" if is_beaten else _standing(trial, loss)
    return Known(plan, standing, loss, trial.made.size_bytes)


def _standing(trial: Trial, loss: float) -> Standing:
    if trial.dropped:
        return "none"
    if trial.proven:
        return "proven"
    return "losing" if loss > 0 else "unsure"


def _may_win(trial: Trial) -> bool:
    return trial.made.plan == FP32 or (trial.proven and not trial.dropped)


def _candidate(trial: Trial) -> Candidate:
    return Candidate(
        name=trial.name,
        precision=trial.made.plan.precision,
        size_bytes=trial.made.size_bytes,
        latency_s=None if trial.latency is None else trial.latency.p50_ms / 1000,
        memory_bytes=trial.memory_bytes,
        verdicts=trial.verdicts,
        dropped=trial.dropped,
    )


def _check_locked(trial: Trial) -> None:
    failed = [item for item in trial.verdicts if item.outcome == "fail"]
    if any(item.gate.severity == "accuracy" for item in failed):
        words = "; ".join(item.words for item in failed)
        raise AccuracyGateError(f"the locked {trial.name} is outside: {words}")

"""What the gates of a recipe say of one candidate, and how a bundle states it."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack_contract.description import Budgets, DeclaredGate, GateVerdict
from edgepack_packager.evidence.gates import Gate, Verdict, judge_budget
from edgepack_packager.evidence.judging import judge_accuracy
from edgepack_packager.lock import LockedVariant
from edgepack_packager.recipe import Recipe
from edgepack_packager.search.trials import Made, Trial
from edgepack_packager.subject import Subject
from edgepack_packager.targets import DeviceConfig
from edgepack_runtime.inference.trial import Latency


def budgets_for(recipe: Recipe, target: DeviceConfig) -> Budgets:
    """The recipe's budgets, and the target's own where the recipe sets none."""
    return Budgets(
        latency_ms=recipe.max_latency_ms or target.budgets.latency_ms,
        size_bytes=recipe.max_size_bytes or target.budgets.size_bytes,
        memory_bytes=recipe.max_memory_bytes or target.budgets.memory_bytes,
    )


def declared_gates(trial: Trial, locked: LockedVariant | None) -> list[DeclaredGate]:
    """The gates of a chosen candidate as the bundle states them.

    What a clock decided is taken from the lock, so that a repeated build says the same.
    """
    known: dict[str, GateVerdict] = locked.verdicts if locked else {}
    return [
        DeclaredGate(
            name=verdict.gate.name,
            metric=verdict.gate.metric,
            threshold=verdict.gate.threshold,
            unit=verdict.gate.unit,
            verdict=known.get(verdict.gate.name) or _declared(verdict),
        )
        for verdict in trial.verdicts
    ]


def clocked_verdicts(trial: Trial) -> dict[str, GateVerdict]:
    """The verdicts that depend on this machine's state, which a lock must keep."""
    return {
        verdict.gate.name: _declared(verdict)
        for verdict in trial.verdicts
        if verdict.gate.name in {"max-latency", "max-memory"}
    }


def _declared(verdict: Verdict) -> GateVerdict:
    if verdict.outcome == "fail":
        raise ValueError(f"a candidate that fails {verdict.gate.name} was chosen")
    return verdict.outcome


def judge(
    made: Made,
    latency: Latency | None,
    memory: int | None,
    recipe: Recipe,
    subject: Subject,
    target: DeviceConfig,
) -> tuple[Verdict, ...]:
    """The verdict of every gate."""
    return (
        *judge_accuracy(recipe, subject.exam, made.figures),
        *_judge_budgets(made, latency, memory, budgets_for(recipe, target)),
    )


def _judge_budgets(
    made: Made, latency: Latency | None, memory: int | None, budgets: Budgets
) -> Sequence[Verdict]:
    costs: list[tuple[str, str, float | None, float | None]] = [
        ("max-latency", "ms", budgets.latency_ms, None if latency is None else latency.p95_ms),
        ("max-size", "bytes", budgets.size_bytes, made.size_bytes),
        ("max-memory", "bytes", budgets.memory_bytes, memory),
    ]
    return [
        judge_budget(Gate(name, "budget", name.removeprefix("max-"), limit, unit), value)
        for name, unit, limit, value in costs
        if limit is not None
    ]

"""Which candidate is shipped, and in words why each other one is not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepack_contract.description import Precision
from edgepack_packager.errors import AccuracyGateError, BudgetError
from edgepack_packager.evidence.gates import Verdict
from edgepack_packager.recipe import Optimize

SLOWER_SHARE = 0.05
SLOWER_SECONDS = 50e-6
"""Slower means by both: on tiny models 5 % is noise, on large ones 50 us is."""

TIED_SHARE = 0.05
TIED_SECONDS = 2e-6
"""Within either of these of the fastest a candidate counts as equally fast, and size decides."""

_INSIDE = "inside all gates"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the choice needs to know of one candidate.

    Attributes:
        name: Its name in the table.
        precision: ``fp32`` is the reference that is always among the candidates.
        size_bytes: Of the model file.
        latency_s: Median seconds of one row; None when the target is not this machine.
        memory_bytes: Peak memory; None when it was not measured.
        verdicts: Of every gate.
        dropped: Why it was given up before it was judged in full; empty when it was not.
    """

    name: str
    precision: Precision
    size_bytes: int
    latency_s: float | None
    memory_bytes: int | None
    verdicts: tuple[Verdict, ...]
    dropped: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What ships.

    Attributes:
        ranking: The names of all candidates that may ship, the best first.
        reasons: By name of every candidate, why it is chosen or is not.
        warnings: What the user should know.
    """

    ranking: tuple[str, ...]
    reasons: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def chosen(self) -> str:
        """The best."""
        return self.ranking[0]


def choose(
    candidates: Sequence[Candidate],
    *,
    optimize: Optimize,
    preference: Sequence[Precision],
    require_int8: bool,
) -> Choice:
    """Pick the best candidate that is inside all gates.

    A smaller candidate must be *proven* inside; fp32 ships, with a warning, also when there were
    too few rows to prove that the conversion lost nothing.

    Args:
        candidates: fp32 first.
        optimize: What to minimise.
        preference: Precisions in the target's order, used where latency was not measured.
        require_int8: Refuse to ship fp32.

    Raises:
        AccuracyGateError: None is inside the accuracy gates, or none in int8 where one is required.
        BudgetError: None of those inside the accuracy gates is inside the budgets.
    """
    reasons = {item.name: _outside(item) for item in candidates}
    inside = [item for item in candidates if not reasons[item.name]]
    if not inside:
        raise _nearest_miss(candidates, reasons)
    fp32 = next((item for item in inside if item.precision == "fp32"), None)
    allowed = [item for item in inside if not _worse_than_fp32(item, fp32, optimize, reasons)]
    if require_int8:
        allowed = [item for item in allowed if item.precision != "fp32"]
        if not allowed:
            raise _int8_required(candidates, reasons)
    allowed = sorted(allowed, key=lambda item: _rank(item, allowed, optimize, preference))
    best = allowed[0]
    for item in allowed:
        if item is not best:
            reasons[item.name] = f"{_standing(item)}; {_why(best, item, optimize)}"
    reasons[best.name] = _praise(best, fp32, optimize, alone=len(allowed) == 1)
    ranking = tuple(item.name for item in allowed)
    return Choice(ranking=ranking, reasons=reasons, warnings=_warnings(best, candidates))


def with_alternatives(
    ranking: Sequence[str], precisions: Mapping[str, Precision], count: int
) -> tuple[str, ...]:
    """The best, and ``count`` alternatives of which each may win where nothing could be timed.

    Float is always among them, because it alone needs no kernels that a device may lack; then
    another precision each, since two graphs of one precision run alike.

    Args:
        ranking: Names of what may ship, the best first.
        precisions: The precision of each.
        count: Alternatives at most.
    """
    best, *others = ranking
    seen = {precisions[best]}
    fp32 = [name for name in others if precisions[name] == "fp32"]
    different = []
    for name in others:
        if precisions[name] not in seen:
            seen.add(precisions[name])
            different.append(name)
    wanted = dict.fromkeys([*fp32, *different, *others])
    kept = set(list(wanted)[:count])
    return (best, *(name for name in others if name in kept))


def _outside(item: Candidate) -> str:
    """Why a candidate may not ship; empty when it may."""
    if item.dropped:
        return item.dropped
    for verdict in item.verdicts:
        if verdict.outcome == "fail":
            return verdict.words
        unproven = verdict.outcome in {"inconclusive", "not_measured"}
        if unproven and verdict.gate.severity == "accuracy" and item.precision != "fp32":
            return verdict.words
    return ""


def _worse_than_fp32(
    item: Candidate, fp32: Candidate | None, optimize: Optimize, reasons: dict[str, str]
) -> bool:
    if fp32 is None or item is fp32:
        return False
    if item.size_bytes >= fp32.size_bytes:
        reasons[item.name] = f"not smaller than fp32 ({item.size_bytes} bytes)"
    elif optimize == "latency" and is_slower(item, fp32):
        reasons[item.name] = f"slower than fp32: {_us(item)} against {_us(fp32)}"
    return bool(reasons[item.name])


def is_slower(item: Candidate, than: Candidate) -> bool:
    """Whether ``item`` is measurably slower: by over 5 % and by over 50 us."""
    if item.latency_s is None or than.latency_s is None:
        return False
    gap = item.latency_s - than.latency_s
    return gap > SLOWER_SECONDS and gap > SLOWER_SHARE * than.latency_s


def _us(item: Candidate) -> str:
    return "not measured" if item.latency_s is None else f"{item.latency_s * 1e6:.0f} us"


def _rank(
    item: Candidate,
    field: Sequence[Candidate],
    optimize: Optimize,
    preference: Sequence[Precision],
) -> tuple[float, ...]:
    if optimize == "size":
        return float(item.size_bytes), item.latency_s or 0.0
    if optimize == "memory" and all(other.memory_bytes is not None for other in field):
        return float(item.memory_bytes or 0), float(item.size_bytes)
    if optimize == "latency" and any(other.latency_s is None for other in field):
        order = preference.index(item.precision) if item.precision in preference else 99
        return float(order), float(item.size_bytes)
    if optimize == "latency":
        # the others are smaller than float, and none is here that is slower by what counts
        return float(item.precision == "fp32"), _pace(item, field), float(item.size_bytes)
    return 0.0, float(item.size_bytes)


def _pace(item: Candidate, field: Sequence[Candidate]) -> float:
    """Seconds, or 0 where they are within noise of the fastest one's."""
    seconds = item.latency_s or 0.0
    fastest = min(
        (other.latency_s or 0.0 for other in field if other.precision != "fp32"), default=0.0
    )
    within = seconds - fastest <= max(TIED_SHARE * fastest, TIED_SECONDS)
    return 0.0 if within else seconds


def _why(best: Candidate, item: Candidate, optimize: Optimize) -> str:
    if optimize == "latency" and None in {best.latency_s, item.latency_s}:
        return f"nothing was timed here, and the target prefers {best.precision}"
    if optimize == "latency" and (item.latency_s or 0.0) <= (best.latency_s or 0.0):
        return f"{best.name} is smaller, and slower by too little to count"
    return f"{best.name} is better for {optimize}"


def _standing(item: Candidate) -> str:
    unproven = any(verdict.outcome in {"inconclusive", "not_measured"} for verdict in item.verdicts)
    return "not outside any gate" if unproven else _INSIDE


def _praise(best: Candidate, fp32: Candidate | None, optimize: Optimize, *, alone: bool) -> str:
    if best is fp32:
        if alone:
            return "chosen: no other candidate may ship"
        if optimize == "latency" and best.latency_s is None:
            return "chosen: nothing was timed here, and the target prefers fp32"
        return f"chosen: best for {optimize} of those inside all gates"
    if fp32 is None:
        return f"chosen: best for {optimize}; fp32 is outside the budgets"
    share = best.size_bytes / fp32.size_bytes
    if best.latency_s is None or fp32.latency_s is None:
        pace = "latency not measured here, the target's own order of precisions decided"
    elif best.latency_s <= fp32.latency_s:
        pace = f"no slower ({_us(best)} against {_us(fp32)})"
    elif is_slower(best, fp32):
        pace = f"slower ({_us(best)} against {_us(fp32)}), which {optimize} does not mind"
    else:
        pace = f"slower by too little to count ({_us(best)} against {_us(fp32)})"
    return f"chosen: proven inside the accuracy gates, {share:.2f}x the size, {pace}"


def _warnings(best: Candidate, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    found = [
        f"{best.name}: {verdict.words}"
        for verdict in best.verdicts
        if verdict.outcome in {"inconclusive", "not_measured"}
    ]
    smaller = [item for item in candidates if item.precision != "fp32" and not _outside(item)]
    if best.precision == "fp32" and not smaller:
        found += _nearly(candidates)
    return tuple(found)


def _nearly(candidates: Sequence[Candidate]) -> list[str]:
    """What came nearest to being shipped instead of fp32, and lacked only proof."""
    lacking = [
        (verdict.excess, item.name, verdict.words)
        for item in candidates
        if item.precision != "fp32" and not item.dropped
        for verdict in item.verdicts
        if verdict.outcome == "inconclusive"
    ]
    return [
        f"fp32 ships because {name} is not proven: {words}"
        for _, name, words in sorted(lacking)[:1]
    ]


def _nearest_miss(
    candidates: Sequence[Candidate], reasons: dict[str, str]
) -> AccuracyGateError | BudgetError:
    accurate = [item for item in candidates if not _accuracy_excess(item)]
    if not accurate:
        nearest = min(candidates, key=_accuracy_excess)
        return AccuracyGateError(
            f"no candidate is inside the accuracy gates; the nearest is {nearest.name}: "
            f"{reasons[nearest.name]}"
        )
    nearest = min(accurate, key=lambda item: max(v.excess for v in item.verdicts))
    return BudgetError(
        f"no candidate is inside the budgets; the nearest is {nearest.name}: "
        f"{reasons[nearest.name]}"
    )


def _accuracy_excess(item: Candidate) -> float:
    """How far outside the accuracy gates, as a share of the limit; 0 inside."""
    outside = [
        max(verdict.excess, 1e-12)
        for verdict in item.verdicts
        if verdict.gate.severity == "accuracy"
        and verdict.outcome != "pass"
        and (verdict.outcome == "fail" or item.precision != "fp32")
    ]
    return max(outside, default=0.0)


def _int8_required(candidates: Sequence[Candidate], reasons: dict[str, str]) -> AccuracyGateError:
    tried = [f"{item.name}: {reasons[item.name]}" for item in candidates if reasons[item.name]]
    return AccuracyGateError(
        "int8 is required, but no int8 candidate is proven to be better than fp32"
        + (f" ({'; '.join(tried)})" if tried else "; the model has nothing to quantize"),
        code="int8-required",
    )

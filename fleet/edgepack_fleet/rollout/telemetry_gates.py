"""The gates that read telemetry: agreement, class mix, confidence, errors, non-finite, latency."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack_contract.drift import MATERIAL, two_sample_psi
from edgepack_fleet.rollout.arms import Arms, Cells
from edgepack_fleet.rollout.clusters import (
    FEWEST_UNITS,
    Effect,
    Unit,
    effect_of_one,
    effect_of_two,
    total,
)
from edgepack_fleet.rollout.evidence import Block
from edgepack_fleet.rollout.intervals import Proportion, difference_lower, student_penalty
from edgepack_fleet.rollout.model import GateSpec
from edgepack_fleet.rollout.options import PASS_LEVEL
from edgepack_fleet.rollout.reading import Finding, Reading, limit_percent, percent

_NORMAL = 1e9
"""Degrees of freedom from which Student's t is the normal distribution."""


def read_agreement(arms: Arms, spec: GateSpec, previous: str) -> Reading:
    """How often the new model answers like the previous one, on the same inputs."""
    units = arms.sample_pairs()
    agree, n = _hits(units)
    evidence: dict[str, float] = {"agree": agree, "pairs": n}
    words = f"agreement with {previous} is {percent(agree / n)} of {n} pairs" if n else "no pairs"
    if n < spec.minimum:
        return Reading(evidence, missing=f"{words} so far, {spec.minimum} are needed")
    effect = effect_of_one(units)
    if effect is None:
        return Reading(evidence, missing=_too_few_units(len(units)))
    share = Proportion(agree, n, effect.size, effect.freedom)

    def test(level: float) -> Finding:
        return _agreement(share, spec, words, level)

    return Reading(evidence, test=test, figures={"share": share.share, "effect": effect.size})


def _agreement(share: Proportion, spec: GateSpec, words: str, level: float) -> Finding:
    limit = limit_percent(spec.limit)
    upper, lower = share.upper(level), share.lower(PASS_LEVEL)
    numbers = {"upper": upper, "lower": lower, "limit": spec.limit}
    if upper < spec.limit:
        bound = f"{limit_percent(1.0 - spec.alpha)} upper bound {percent(upper)}"
        return Finding(
            fails=True, good=False, words=f"{words}; {bound} is below the limit {limit}",
            numbers=numbers,
        )  # fmt: skip
    side = "reaches" if lower >= spec.limit else "does not reach"
    bound = f"{limit_percent(1.0 - PASS_LEVEL)} lower bound {percent(lower)}"
    return Finding(
        fails=False, good=lower >= spec.limit, words=f"{words}; {bound} {side} the limit {limit}",
        numbers=numbers,
    )  # fmt: skip


def read_class_mix(arms: Arms, spec: GateSpec, previous: str) -> Reading:
    """How the predicted classes are distributed, against before."""
    return _read_mix(arms, spec, f"class mix against {previous}", _classes, ordered=False)


def read_confidence(arms: Arms, spec: GateSpec, previous: str) -> Reading:
    """How the top scores are distributed, against before; too sure is as telling as too unsure."""
    return _read_mix(arms, spec, f"confidence against {previous}", _scores, ordered=True)


def _read_mix(arms: Arms, spec: GateSpec, subject: str, cells: Cells, *, ordered: bool) -> Reading:
    new, old = arms.sample_both(cells)
    evidence: dict[str, float] = {"new_rows": _size(new), "old_rows": _size(old)}
    missing = _wanting(evidence, spec.minimum, "rows")
    if missing is None and len({len(unit.cells) for unit in (*new, *old)}) > 1:
        missing = "the two bundles do not count over the same classes"
    effect = None if missing else effect_of_two(new, old)
    if missing or effect is None:
        return Reading(evidence, missing=missing or _too_few_units(min(len(new), len(old))))
    known = effect

    def test(level: float) -> Finding:
        psi, p = _psi(new, old, known, spec.limit, level, ordered=ordered)
        changed = p < level and _inputs_changed(arms, spec.minimum, level)
        words = f"{subject}: PSI {psi:.2f} over {evidence['new_rows']:.0f} new and "
        words += f"{evidence['old_rows']:.0f} old rows"
        return _mix(words, psi, p, spec, level, changed=changed)

    return Reading(evidence, test=test, figures={"effect": known.size})


def _mix(
    words: str, psi: float, p: float, spec: GateSpec, level: float, *, changed: bool
) -> Finding:
    numbers = {"psi": psi, "p": p, "limit": spec.limit}
    if changed:
        words += "; the previous model's answers changed too, so the inputs did"
        return Finding(fails=False, good=False, words=words, numbers=numbers)
    if p < level:
        words += f"; significantly above the limit {spec.limit:g} (p {p:.1g})"
        return Finding(fails=True, good=False, words=words, numbers=numbers)
    words += f"; not significantly above the limit {spec.limit:g}"
    # written so that a p-value that is no number passes nothing
    return Finding(fails=False, good=p >= level, words=words, numbers=numbers)


def _inputs_changed(arms: Arms, minimum: int, level: float) -> bool:
    """Whether the previous model, on what the new one sees, answers unlike it did before.

    Its answers now come from the reverse shadow; without them nothing is claimed.
    """
    told = arms.sample_new(lambda block: block.previous_classes)
    past = arms.sample_both(_classes)[1]
    both = {unit.device for unit in told} & {unit.device for unit in past}
    now = [unit for unit in told if unit.device in both]
    before = [unit for unit in past if unit.device in both]
    if min(_size(now), _size(before)) < minimum:
        return False
    if len({len(unit.cells) for unit in (*now, *before)}) > 1:
        return False
    effect = effect_of_two(now, before)
    if effect is None:
        return False
    return _psi(now, before, effect, MATERIAL, level, ordered=False)[1] < level


def _psi(
    new: Sequence[Unit],
    old: Sequence[Unit],
    effect: Effect,
    size: float,
    level: float,
    *,
    ordered: bool,
) -> tuple[float, float]:
    """The PSI of two samples and the p-value of its being no larger than ``size``.

    The effect is a mean over the cells, each of which had its own say over the units; it is
    trusted as far as that many degrees of freedom allow.
    """
    one, two = total(new), total(old)
    cells = sum(1 for first, second in zip(one, two, strict=True) if first + second)
    freedom = effect.freedom * max(1, cells - 1)
    inflation = effect.size * student_penalty(level, _NORMAL, freedom)
    compared = two_sample_psi(one, two, inflation, adjacent=ordered)
    return compared.psi, compared.p_above(size)


def read_errors(arms: Arms, spec: GateSpec, previous: str) -> Reading:
    """The share of requests that failed, against before."""
    return _read_share(arms, spec, f"errors against {previous}", _errors)


def read_latency(arms: Arms, spec: GateSpec, previous: str) -> Reading:
    """The share of requests over the latency budget, against before."""
    return _read_share(arms, spec, f"over the latency budget against {previous}", _over_budget)


def _read_share(arms: Arms, spec: GateSpec, subject: str, cells: Cells) -> Reading:
    new, old = arms.sample_both(cells)
    (new_hits, n), (old_hits, m) = _hits(new), _hits(old)
    evidence: dict[str, float] = {
        "new_hits": new_hits, "new_rows": n, "old_hits": old_hits, "old_rows": m,
    }  # fmt: skip
    missing = _wanting(evidence, spec.minimum, "requests")
    effect = None if missing else effect_of_two(new, old)
    if missing or effect is None:
        return Reading(evidence, missing=missing or _too_few_units(min(len(new), len(old))))
    one = Proportion(new_hits, n, effect.size, effect.freedom)
    two = Proportion(old_hits, m, effect.size, effect.freedom)
    words = f"{subject}: {percent(one.share)} of {n} now, {percent(two.share)} of {m} before"

    def test(level: float) -> Finding:
        lower = difference_lower(one, two, level)
        return _difference(words, lower, spec)

    return Reading(evidence, test=test, figures={"effect": effect.size})


def _difference(words: str, lower: float, spec: GateSpec) -> Finding:
    numbers = {"lower": lower, "limit": spec.limit}
    points = f"{100.0 * spec.limit:g} points"
    if lower > spec.limit:
        words += f"; the rise is at least {100.0 * lower:.1f} points, above the limit of {points}"
        return Finding(fails=True, good=False, words=words, numbers=numbers)
    words += f"; no significant rise of more than {points}"
    return Finding(fails=False, good=lower <= spec.limit, words=words, numbers=numbers)


def read_non_finite(arms: Arms, spec: GateSpec, _previous: str) -> Reading:
    """Outputs that are NaN or infinite. One is a fact; no test is needed."""
    blocks = [block for part in arms.new.values() for block in part]
    n, bad = sum(block.n for block in blocks), sum(block.nonfinite for block in blocks)
    evidence: dict[str, float] = {"non_finite": bad, "new_rows": n}
    fails = bad > spec.limit * n
    if not fails and n < spec.minimum:
        return Reading(evidence, missing=_too_few(n, spec.minimum, "requests"))
    words = f"{bad} of {n} requests gave outputs that are not finite"
    finding = Finding(fails=fails, good=not fails, words=words)
    return Reading(evidence, test=lambda _level: finding)


def read_input_drift(arms: Arms, _spec: GateSpec, _previous: str) -> Reading:
    """Windows for which the device says that its inputs changed; ``missing`` says how many."""
    told = [
        block.drifted for part in arms.new.values() for block in part if block.drifted is not None
    ]
    evidence = {"windows": float(len(told)), "drifted": float(sum(told))}
    words = f"{sum(told)} of {len(told)} windows say that the inputs changed"
    return Reading(evidence, missing=words if told else "no window says anything about inputs")


def _classes(block: Block) -> Sequence[int]:
    return block.classes


def _scores(block: Block) -> Sequence[int]:
    return block.score


def _errors(block: Block) -> Sequence[int]:
    return (block.errors, block.n - block.errors)


def _over_budget(block: Block) -> Sequence[int]:
    answered = block.n - block.errors
    return (block.over_budget, answered - block.over_budget)


def _hits(units: Sequence[Unit]) -> tuple[int, int]:
    return sum(unit.cells[0] for unit in units), _size(units)


def _size(units: Sequence[Unit]) -> int:
    return sum(unit.n for unit in units)


def _too_few(n: int, minimum: int, what: str) -> str | None:
    return None if n >= minimum else f"{n} of {minimum} {what} so far"


def _wanting(evidence: dict[str, float], minimum: int, what: str) -> str | None:
    n, m = int(evidence["new_rows"]), int(evidence["old_rows"])
    if min(n, m) >= minimum:
        return None
    return f"{n} new and {m} old of {minimum} {what} each so far"


def _too_few_units(units: int) -> str:
    return f"{units} of {FEWEST_UNITS} telemetry windows so far"

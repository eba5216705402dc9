"""The gates that count devices: did it install, did it stay.

They count every device that the rollout offered the bundle to, in this stage and before, because a
device that falls back late tells as much as one that falls back at once. With at most five devices
any failure is one too many; with more, the share of failures must be significantly over the limit,
and devices still on their way count as not failed, so that the first to report do not decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from edgepack_contract.states import UpdateState
from edgepack_fleet.rollout.evidence import Evidence
from edgepack_fleet.rollout.intervals import Proportion
from edgepack_fleet.rollout.model import (
    FELL_BACK,
    IN_FLIGHT,
    INSTALL_FAILED,
    INSTALLED,
    NOT_OURS,
    DeviceUpdate,
    GateSpec,
    Rollout,
)
from edgepack_fleet.rollout.reading import Finding, Reading, limit_percent, percent

FEW_DEVICES = 5
SURVIVED_CRASHES = 1
"""One end without notice that a device came back from by itself may be anything: a kernel short of
memory for another process, a person. A bundle that ends the process does it again."""


def read_install(rollout: Rollout, spec: GateSpec, _evidence: Evidence) -> Reading:
    """Devices that could not install, against all that were offered the bundle."""
    offered = _offered(rollout)
    failing = INSTALL_FAILED
    if rollout.options.unreachable == "fail":
        failing = failing | {UpdateState.UNREACHABLE}
    failed = {
        device
        for device, update in offered.items()
        if update.state in failing and not update.acknowledged
    }
    return _reading(rollout, spec, offered, failed, "could not install")


def read_fallback(rollout: Rollout, spec: GateSpec, evidence: Evidence) -> Reading:
    """Devices that left the new bundle on their own, or crashed with it again and again."""
    offered = _offered(rollout)
    failed = {
        device
        for device, update in offered.items()
        if not update.acknowledged
        and (
            update.state in FELL_BACK
            or update.fallbacks
            or evidence.device(device).crashes > SURVIVED_CRASHES
        )
    }
    return _reading(rollout, spec, offered, failed, "fell back or kept crashing")


def _offered(rollout: Rollout) -> dict[str, DeviceUpdate]:
    outside = NOT_OURS | {UpdateState.PENDING}
    return {
        device: update
        for stage in rollout.stages
        if stage.opened_ms is not None
        for device in stage.devices
        if (update := rollout.updates[device]).state not in outside
    }


def _reading(
    rollout: Rollout,
    spec: GateSpec,
    offered: dict[str, DeviceUpdate],
    failed: set[str],
    verb: str,
) -> Reading:
    states = Counter(update.state for update in offered.values())
    n = len(offered)
    figures: dict[str, float] = {
        "offered": n,
        "installed": sum(states[state] for state in INSTALLED),
        "on_the_way": sum(states[state] for state in IN_FLIGHT),
        "unreachable": states[UpdateState.UNREACHABLE],
    }
    evidence = {"failed": float(len(failed))}
    if n < spec.minimum:
        return Reading(evidence, missing=f"{n} of {spec.minimum} devices were offered the bundle")
    words = f"{len(failed)} of {n} devices {verb}"
    if failed:
        words += f" ({_reasons(offered[device] for device in sorted(failed))})"

    def test(level: float) -> Finding:
        return _test(rollout, spec, len(failed), figures, words, level)

    return Reading(evidence, test=test, figures=figures)


def _test(
    rollout: Rollout,
    spec: GateSpec,
    failed: int,
    figures: dict[str, float],
    words: str,
    level: float,
) -> Finding:
    n = int(figures["offered"])
    if n <= FEW_DEVICES:
        if failed:
            return Finding(fails=True, good=False, words=f"{words}; with {n} devices none may")
        return _unfailed(rollout, figures, words, {})
    lower = Proportion(failed, n).lower(level)
    if lower > spec.limit:
        limit = limit_percent(spec.limit)
        words = f"{words}; lower bound {percent(lower)} is above the limit {limit}"
        return Finding(fails=True, good=False, words=words, numbers={"lower": lower})
    return _unfailed(rollout, figures, words, {"lower": lower})


def _unfailed(
    rollout: Rollout, figures: dict[str, float], words: str, numbers: dict[str, float]
) -> Finding:
    """Not failed; good only when all have settled and enough of them have answered."""
    wanting = _wanting(rollout, figures)
    return Finding(
        fails=False,
        good=wanting is None,
        words=words if wanting is None else f"{words}; {wanting}",
        numbers=numbers,
    )


def _wanting(rollout: Rollout, figures: dict[str, float]) -> str | None:
    n = figures["offered"]
    answered = n - figures["unreachable"]
    if figures["on_the_way"]:
        return f"{figures['on_the_way']:.0f} still on the way"
    if not figures["installed"]:
        return "none runs the bundle"
    if answered < rollout.options.min_reported * n:
        needed = limit_percent(rollout.options.min_reported)
        return f"only {answered:.0f} of {n:.0f} answered, {needed} must"
    return None


def _reasons(updates: Iterable[DeviceUpdate]) -> str:
    counted = Counter(update.code or update.state.value for update in updates)
    return ", ".join(f"{count} {reason}" for reason, count in counted.most_common(3))

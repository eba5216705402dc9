"""Taking the pulse of a new model: feeds :mod:`.guard` and turns its judgement into an outcome."""

from __future__ import annotations

from typing import Any

from edgepack_contract.errors import EdgepackError
from edgepack_contract.messages import Probation
from edgepack_runtime.activation.events import Outcome, ProbationPassed, ProbationTripped
from edgepack_runtime.activation.guard import (
    Continue,
    GuardLimits,
    Passed,
    Tripped,
    Watching,
    judge,
    observe,
)
from edgepack_runtime.activation.host import SlotHost


class ProbationWatch:
    """One probation under way.

    Args:
        host: Has the counters.
        install: The install that is watched.
        probation: How long.
        memory_bytes: The bundle's memory budget, if it declares one.
        memory_before: What the process held before it loaded the model; requests come from the
            moment of the switch on, so that later there is no quiet moment to look.
        now: Monotonic seconds.
    """

    def __init__(
        self,
        host: SlotHost,
        *,
        install: int,
        probation: Probation,
        memory_bytes: int | None,
        memory_before: int | None = None,
        now: float,
    ) -> None:
        self._host = host
        self._install = install
        self._limits = GuardLimits(
            seconds=probation.seconds,
            max_seconds=max(probation.seconds, probation.max_seconds),
            memory_bytes=memory_bytes,
        )
        self._watching = Watching(memory_base=memory_before)
        self._at = now
        self._golden_ok = False

    def tick(self, now: float) -> Outcome | None:
        """Look at the counters; an outcome as soon as there is a judgement."""
        self._watching = observe(
            self._watching,
            self._host.counters(),
            seconds=now - self._at,
            throttled=self._host.throttled(),
            limits=self._limits,
        )
        self._at = now
        judgement = judge(self._watching, self._limits)
        match judgement:
            case Continue():
                return None
            case Passed(exercised=True):
                return ProbationPassed(self._install, exercised=True)
            case Passed():
                return self._exercise()
            case Tripped():
                return ProbationTripped(self._install, judgement.code, judgement.words)

    def lost(self, error: Exception) -> Outcome:
        """The outcome when the model cannot be watched any more."""
        words = f"it cannot be watched: {type(error).__name__}: {error}"
        return ProbationTripped(self._install, "internal", words)

    def evidence(self) -> dict[str, Any]:
        """The figures behind the judgement."""
        last = self._watching.last
        return {
            "requests": last.requests,
            "errors": last.errors,
            "nonfinite": last.nonfinite,
            "identical_inputs": last.identical_inputs,
            "over_budget": last.over_budget,
            "memory_bytes": last.memory_bytes,
            "seconds": round(self._watching.elapsed, 3),
            "calm_seconds": round(self._watching.calm, 3),
        }

    def _exercise(self) -> Outcome:
        """Nobody asked the model anything, so its golden inputs do."""
        try:
            if not self._golden_ok:
                self._host.run_golden()
                self._golden_ok = True
        except EdgepackError as error:
            return ProbationTripped(self._install, "golden-mismatch", str(error))
        return ProbationPassed(self._install, exercised=False)

"""Candidates that were made, tried on a target, and chosen from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from edgepack_packager.data.rows import Array
from edgepack_packager.evidence.evaluate import Figures
from edgepack_packager.evidence.gates import Verdict
from edgepack_packager.quantize.plan import Plan
from edgepack_packager.search.choose import Choice
from edgepack_packager.targets import DeviceConfig
from edgepack_runtime.inference.trial import Latency


@dataclass(frozen=True, slots=True)
class Made:
    """A candidate's graph on disk, and how good it is: the same for every target.

    ``margins`` say by how much the best class leads in each evaluation row.
    """

    plan: Plan
    model: onnx.ModelProto
    folder: Path
    size_bytes: int
    figures: Figures
    margins: Array | None


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate for one target."""

    made: Made
    latency: Latency | None
    memory_bytes: int | None
    verdicts: tuple[Verdict, ...]

    @property
    def name(self) -> str:
        """The name of the candidate."""
        return self.made.plan.name

    @property
    def proven(self) -> bool:
        """Whether every accuracy gate passes."""
        return all(
            verdict.outcome == "pass"
            for verdict in self.verdicts
            if verdict.gate.severity == "accuracy"
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was tried for a target, and what was chosen."""

    target: DeviceConfig
    measured_here: bool
    trials: tuple[Trial, ...]
    choice: Choice

    @property
    def chosen(self) -> Trial:
        """The chosen candidate."""
        return next(trial for trial in self.trials if trial.name == self.choice.chosen)

    @property
    def fp32(self) -> Trial:
        """The candidate in float."""
        return next(trial for trial in self.trials if trial.made.plan.precision == "fp32")

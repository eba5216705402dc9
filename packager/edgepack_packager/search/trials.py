"""Candidates that were made, tried on a target, and chosen from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from edgepack_contract.benchmark import model_digest
from edgepack_contract.description import MODEL_PATH
from edgepack_contract.digest import digest_stream
from edgepack_contract.hardware import Hardware
from edgepack_packager.data.rows import Array
from edgepack_packager.evidence.figures import Figures
from edgepack_packager.evidence.gates import Verdict
from edgepack_packager.graphs.running import model_files
from edgepack_packager.quantize.plan import Plan
from edgepack_packager.quantize.sensitivity import LayerError
from edgepack_packager.search.choose import Choice
from edgepack_packager.targets import DeviceConfig, this_hardware
from edgepack_runtime.inference.trial import Latency


@dataclass(frozen=True, slots=True)
class Made:
    """A candidate's graph on disk, and how good it is: the same for every target.

    Attributes:
        plan: What decided it.
        folder: Where its files are.
        size_bytes: Of its files.
        figures: How good it is, on the rows it was judged on.
        margins: By how much the best class leads in each evaluation row.
        whole: Whether it was judged on all rows; what is hopeless on the first of them is not.
        quantized_share: The share of the bytes of the weights that is not in float.
        layers: What int8 does to each node, the most harmful first; empty where not looked into.
    """

    plan: Plan
    folder: Path
    size_bytes: int
    figures: Figures
    margins: Array | None
    whole: bool = True
    quantized_share: float | None = None
    layers: tuple[LayerError, ...] = ()

    @property
    def graph(self) -> onnx.ModelProto:
        """Its graph, read again, without weights that lie in a file of their own."""
        return onnx.load(self.folder / MODEL_PATH, load_external_data=False)

    @property
    def digest(self) -> str:
        """What tells its model from every other, as ``edgepack bench`` gives it."""
        files = model_files(self.folder)
        return model_digest({path: _digest(at) for path, at in files.items()})


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate for one target.

    Attributes:
        made: The candidate.
        latency: Milliseconds of one row; None when nothing was timed.
        memory_bytes: Peak memory of a process that serves it; None when it was not measured.
        verdicts: Of every gate.
        dropped: Why it was given up early; empty when it was not.
    """

    made: Made
    latency: Latency | None
    memory_bytes: int | None
    verdicts: tuple[Verdict, ...]
    dropped: str = ""

    @property
    def name(self) -> str:
        """The name of the candidate."""
        return self.made.plan.name

    @property
    def proven(self) -> bool:
        """Whether every accuracy gate passes."""
        return self.made.whole and all(
            verdict.outcome == "pass"
            for verdict in self.verdicts
            if verdict.gate.severity == "accuracy"
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was tried for a target, and what was chosen.

    Attributes:
        target: For which hardware.
        measured_on: The machine that latency and memory were measured on; None for none.
        trials: Every candidate, in the order they were tried.
        choice: Which one ships, and why the others do not.
        shipped: What the bundle carries: the chosen one, then alternatives, the best first.
        warnings: What the user should know of the search.
    """

    target: DeviceConfig
    measured_on: Hardware | None
    trials: tuple[Trial, ...]
    choice: Choice
    shipped: tuple[Trial, ...]
    warnings: tuple[str, ...] = ()

    @property
    def measured_here(self) -> bool:
        """Whether latency was measured on this machine."""
        return self.measured_on == this_hardware()

    @property
    def chosen(self) -> Trial:
        """The chosen candidate."""
        return self.shipped[0]

    @property
    def fp32(self) -> Trial:
        """The candidate in float."""
        return next(trial for trial in self.trials if trial.made.plan.precision == "fp32")


def variant_names(target: str, shipped: tuple[Trial, ...]) -> tuple[str, ...]:
    """The names of the variants of a target: its own for the best, ``-fp32`` for float."""
    names = [target]
    for place, trial in enumerate(shipped[1:], start=1):
        is_float = trial.made.plan.precision == "fp32"
        names.append(f"{target}-fp32" if is_float else f"{target}-alt{place}")
    return tuple(names)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return digest_stream(stream, size=path.stat().st_size, what=path.name)

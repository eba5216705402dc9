"""The candidates for a target: which to try first, and what to try when int8 loses too much."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import msgspec
import onnx

from edgepack_packager.data.rows import Feeds
from edgepack_packager.quantize.operators import is_tree_ensemble
from edgepack_packager.quantize.plan import FP32, Plan
from edgepack_packager.quantize.static import (
    Prepared,
    StaticPlan,
    prepare,
    quantize_dynamically,
    quantize_static,
    sensitivity,
)
from edgepack_packager.targets import DeviceConfig

SENSITIVITY_ROWS = 64
MOST_SENSITIVE_NODES = 32
"""Beyond this many nodes, ranking them one by one takes longer than it is worth."""


class Workshop:
    """Makes candidates out of one cleaned graph; measures its ranges at most once."""

    def __init__(self, model: onnx.ModelProto, calibration: Feeds | None) -> None:
        self.model = model
        self._calibration = calibration

    @cached_property
    def prepared(self) -> Prepared | None:
        """The graph with the ranges of its tensors; None when it has no static int8 form."""
        if self._calibration is None or is_tree_ensemble(self.model):
            return None
        return prepare(self.model, self._calibration)

    def make(self, plan: Plan) -> onnx.ModelProto | None:
        """The graph of a candidate; None when the model has no such form."""
        if plan.precision == "fp32":
            return self.model
        if plan.precision == "int8-dynamic":
            return quantize_dynamically(self.model, reduce_range=plan.reduce_range)
        if self.prepared is None:
            return None
        return quantize_static(self.prepared, _static(plan))

    def refinements(self, plan: Plan, folder: Path) -> Iterator[Plan]:
        """What may lose less than ``plan``: finer scales, then ever more nodes in float."""
        if self.prepared is None or self._calibration is None:
            return
        channels = msgspec.structs.replace(plan, name=f"{plan.name}-per-channel", per_channel=True)
        yield channels
        nodes = len(self.prepared.nodes)
        if not 1 < nodes <= MOST_SENSITIVE_NODES:
            return
        rows = {name: array[:SENSITIVITY_ROWS] for name, array in self._calibration.items()}
        ranked = sensitivity(self.prepared, _static(channels), rows, folder)
        count = 1
        while count < nodes:
            yield msgspec.structs.replace(
                channels,
                name=f"{plan.name}-{nodes - count}-of-{nodes}",
                excluded=tuple(sorted(ranked[:count])),
            )
            count *= 2


def first_plans(target: DeviceConfig) -> tuple[Plan, ...]:
    """What to try for a target, fp32 first."""
    reduced = target.needs_reduced_range
    return (
        FP32,
        Plan(
            name="int8-static",
            precision="int8-static",
            activations="uint8" if target.architecture == "amd64" else "int8",
            reduce_range=reduced,
        ),
        Plan(name="int8-dynamic", precision="int8-dynamic", reduce_range=reduced),
    )


def _static(plan: Plan) -> StaticPlan:
    return StaticPlan(
        activations=plan.activations or "uint8",
        per_channel=plan.per_channel,
        reduce_range=plan.reduce_range,
        excluded=plan.excluded,
    )

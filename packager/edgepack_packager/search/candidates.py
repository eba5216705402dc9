"""The candidates for a target: which to try first, and what to try when int8 loses too much."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import onnx

from edgepack_contract.description import Precision
from edgepack_packager.data.rows import Feeds
from edgepack_packager.quantize.static import (
    DYNAMIC_TYPES,
    STATIC_TYPES,
    Prepared,
    StaticPlan,
    is_tree_ensemble,
    prepare,
    quantize_dynamically,
    quantize_static,
    sensitivity,
)
from edgepack_packager.targets import DeviceConfig

CalibrationName = Literal["min-max", "percentile", "entropy"]

SENSITIVITY_ROWS = 64
MOST_SENSITIVE_NODES = 32
"""Beyond this many nodes, ranking them one by one takes longer than it is worth."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides the graph of a candidate; kept in the lock.

    Attributes:
        name: In the table; equal plans of two targets have equal names.
        precision: What it is stored and computed in.
        operators: The types that are quantized; empty where the precision says it.
        activations: ``uint8`` on amd64, whose kernels multiply U8 by S8; ``int8`` on arm64.
        per_channel: One scale per output channel instead of per weight tensor.
        reduce_range: 7-bit weights, for processors whose 8-bit kernels saturate.
        calibration: How ranges of activations are found; None where none are.
        block: Weights of one row that share a scale, for weight-only precisions.
        excluded: Names of nodes that stay in float.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    precision: Precision
    operators: tuple[str, ...] = ()
    activations: Literal["uint8", "int8"] | None = None
    per_channel: bool = False
    reduce_range: bool = False
    calibration: CalibrationName | None = None
    block: Annotated[int, msgspec.Meta(ge=16, le=256)] | None = None
    excluded: tuple[str, ...] = ()

    @property
    def quantization(self) -> dict[str, Any] | None:
        """How the bundle describes it; None for fp32."""
        if self.precision == "fp32":
            return None
        static = self.precision == "int8-static"
        return {
            "operators": list(STATIC_TYPES if static else DYNAMIC_TYPES),
            "activations": self.activations or "uint8",
            "weights": "int8",
            "per_channel": self.per_channel,
            "reduce_range": self.reduce_range,
            "calibration": "min-max" if static else "none",
            "excluded": list(self.excluded),
        }

    @property
    def passes(self) -> tuple[str, ...]:
        """Names of the passes for the bundle's provenance."""
        return () if self.precision == "fp32" else ("fuse", f"quantize-{self.name}")


FP32 = Plan(name="fp32", precision="fp32")


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

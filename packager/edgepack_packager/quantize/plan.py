"""What decides the graph of a candidate, and what the bundle says of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from edgepack_contract.description import Precision
from edgepack_packager.quantize.calibration import CalibrationName
from edgepack_packager.quantize.operators import DYNAMIC_TYPES, STATIC_TYPES

_WEIGHTS = {
    "fp16": "float16",
    "int8-weights": "int8",
    "int4-weights": "int4",
}


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides the graph of a candidate; kept in the lock.

    Attributes:
        name: In the table; equal plans of two targets have equal names.
        precision: What it is stored and computed in.
        operators: The types that are quantized; empty for the usual ones of the precision.
        activations: ``uint8`` on amd64, whose kernels multiply U8 by S8; ``int8`` on arm64.
        per_channel: One scale per output channel instead of per weight tensor.
        reduce_range: 7-bit weights, for processors whose kernels of U8 by S8 saturate.
        weights: ``uint8`` for kernels of U8 by U8, which never saturate and are slower.
        calibration: How ranges of activations are found; None for min-max where any are.
        block: Weights that share a scale in matrix products, for ``int4-weights`` and
            ``int8-weights``; None stores ``int8-weights`` of every operator with a scale per
            output channel, to be unpacked while loading.
        excluded: Names of nodes that stay in float.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    precision: Precision
    operators: tuple[str, ...] = ()
    activations: Literal["uint8", "int8"] | None = None
    per_channel: bool = False
    reduce_range: bool = False
    weights: Literal["int8", "uint8"] = "int8"
    calibration: CalibrationName | None = None
    block: Annotated[int, msgspec.Meta(ge=16, le=256)] | None = None
    excluded: tuple[str, ...] = ()

    @property
    def quantization(self) -> dict[str, Any] | None:
        """How the bundle describes it; None for fp32."""
        if self.precision == "fp32":
            return None
        stored = _WEIGHTS.get(self.precision, self.weights)
        told: dict[str, Any] = {"weights": stored, "excluded": list(self.excluded)}
        if self.precision == "int8-static":
            told |= {
                "operators": list(self.operators or STATIC_TYPES),
                "activations": self.activations or "uint8",
                "per_channel": self.per_channel,
                "reduce_range": self.reduce_range,
                "calibration": self.calibration or "min-max",
            }
        elif self.precision == "int8-dynamic":
            told |= {
                "operators": list(self.operators or DYNAMIC_TYPES),
                "activations": "uint8",
                "per_channel": self.per_channel,
                "reduce_range": self.reduce_range,
                "calibration": "none",
            }
        elif self.block:
            told |= {"operators": ["MatMul"], "activations": "float32", "block": self.block}
        else:
            told |= {"activations": "float32"}
        return told

    @property
    def passes(self) -> tuple[str, ...]:
        """Names of the passes for the bundle's provenance."""
        if self.precision == "fp32":
            return ()
        fused = self.precision == "int8-static" or "Conv" in self.operators
        return (*(("fuse",) if fused else ()), f"quantize-{self.name}")


FP32 = Plan(name="fp32", precision="fp32")

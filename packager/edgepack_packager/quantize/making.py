"""From a plan to the graph of a candidate."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import onnx

from edgepack_packager.data.rows import Feeds
from edgepack_packager.quantize.calibration import (
    CalibrationName,
    Histogram,
    Ranges,
    find_range,
    measure_histograms,
    measure_min_max,
)
from edgepack_packager.quantize.dynamic import quantize_dynamically
from edgepack_packager.quantize.library import QuantizerError, fused
from edgepack_packager.quantize.operators import (
    GROWN_TYPES,
    RECURRENT_TYPES,
    STATIC_TYPES,
    classical_operators,
    static_nodes,
)
from edgepack_packager.quantize.plan import Plan
from edgepack_packager.quantize.sensitivity import LayerError, rank_nodes
from edgepack_packager.quantize.share import float_weight_bytes, hidden_weight_bytes
from edgepack_packager.quantize.static import calibrated_tensors, flat_biases, quantize_static
from edgepack_packager.quantize.stored import store_half, store_int8
from edgepack_packager.quantize.weights import quantize_weights

PROTOBUF_BYTES = 2**31 - 2**20
"""A graph of more bytes cannot pass through the quantizers, which serialise it in one piece."""

HIDDEN_SHARE = 0.1


class Prepared:
    """A cleaned graph with what its candidates have in common, each found once, when asked for.

    Attributes:
        model: The graph in float.
        calibration: Rows to calibrate with, cast; None without data.
    """

    def __init__(self, model: onnx.ModelProto, calibration: Feeds | None) -> None:
        self.model = model
        self.calibration = calibration
        self._histograms: dict[str, Histogram] = {}
        self._ranges: dict[tuple[CalibrationName, tuple[str, ...]], Ranges] = {}

    @cached_property
    def fused(self) -> onnx.ModelProto:
        """The graph that static plans start from, with constants and biases folded.

        Raises:
            QuantizerError: onnxruntime refuses the graph.
        """
        return flat_biases(fused(self.model))

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes that the usual static plan quantizes; empty when it has no form."""
        if self.calibration is None or classical_operators(self.model) or self.is_huge:
            return ()
        return tuple(static_nodes(self.fused, STATIC_TYPES))

    @cached_property
    def grown(self) -> tuple[str, ...]:
        """The operators that may join the usual ones, in the order to try them."""
        joined = static_nodes(self.fused, (*STATIC_TYPES, *GROWN_TYPES)) if self.nodes else []
        kinds = (
            {node.op_type for node in self.fused.graph.node if node.name in joined}
            if joined
            else set()
        )
        return tuple(kind for kind in GROWN_TYPES if kind in kinds)

    @property
    def is_huge(self) -> bool:
        """Whether the graph is beyond what one protobuf message holds."""
        return float_weight_bytes(self.model) > PROTOBUF_BYTES

    def ranges(self, plan: Plan) -> Ranges:
        """The ranges of all values that a static plan needs, as it finds them.

        Raises:
            ModelRunError: The graph fails on the rows.
        """
        method = plan.calibration or "min-max"
        if method == "min-max":
            return self._min_max
        types = plan.operators or STATIC_TYPES
        if (method, types) not in self._ranges:
            self._ranges[method, types] = self._clipped(method, types)
        return self._ranges[method, types]

    def _clipped(self, method: CalibrationName, types: tuple[str, ...]) -> Ranges:
        tensors = calibrated_tensors(self.fused, types)
        new = [name for name in tensors if name not in self._histograms]
        if new:
            self._histograms |= measure_histograms(self.fused, new, self.calibration or {})
        found = {name: find_range(self._histograms[name], method) for name in tensors}
        return {**self._min_max, **found}

    @cached_property
    def _min_max(self) -> Ranges:
        tensors = calibrated_tensors(self.fused, (*STATIC_TYPES, *GROWN_TYPES))
        return measure_min_max(self.fused, tensors, self.calibration or {})


def prepare(model: onnx.ModelProto, calibration: Feeds | None) -> Prepared:
    """What candidates of ``model`` are made from; nothing is computed before it is needed.

    Args:
        model: A cleaned graph.
        calibration: Rows to calibrate with, cast to the types that the model takes.
    """
    return Prepared(model, calibration)


def make(prepared: Prepared, plan: Plan) -> onnx.ModelProto | None:
    """The graph of a candidate; None when the model has no such form.

    Raises:
        QuantizerError: The quantizer does not cope with this graph.
        ModelError: The graph cannot be loaded, or fails on the calibration rows.
    """
    if plan.precision == "fp32":
        return prepared.model
    if plan.precision == "fp16":
        return store_half(prepared.model, plan)
    if plan.precision == "int8-weights" and plan.block is None:
        return store_int8(prepared.model, plan)
    if prepared.is_huge:
        raise QuantizerError(
            "the weights are more than 2 GB, which the quantizer cannot hold in one piece; such a "
            "model is packed in fp32, fp16 or with weights in int8",
            code="too-large-to-quantize",
        )
    if plan.precision == "int8-static":
        if not prepared.nodes:
            return None
        return quantize_static(prepared.fused, prepared.ranges(plan), plan)
    if plan.precision == "int8-dynamic":
        unfolded = "Conv" in plan.operators
        return quantize_dynamically(prepared.fused if unfolded else prepared.model, plan)
    return quantize_weights(prepared.model, plan)


def ranked(prepared: Prepared, plan: Plan, rows: Feeds, folder: Path) -> tuple[LayerError, ...]:
    """The nodes that a static plan quantizes, the one that does most harm in int8 first.

    Args:
        prepared: The graph.
        plan: A static plan; what it excludes is ranked too.
        rows: A few rows, cast.
        folder: A place for graphs in between.

    Raises:
        QuantizerError: The quantizer does not cope with this graph.
        ModelRunError: The graph fails on the rows.
    """
    return rank_nodes(prepared.fused, prepared.ranges(plan), plan, rows, folder)


def remarks(prepared: Prepared) -> tuple[str, ...]:
    """What of a model keeps which candidates away, in words for the user."""
    found = []
    kinds = sorted({n.op_type for n in prepared.model.graph.node if n.op_type in RECURRENT_TYPES})
    if kinds:
        found.append(
            f"{' and '.join(kinds)} layers have no int8 form in onnxruntime; LSTM layers have"
        )
    hidden = hidden_weight_bytes(prepared.model)
    share = hidden / max(float_weight_bytes(prepared.model), 1)
    if share > HIDDEN_SHARE:
        found.append(
            f"{share:.0%} of the weights lie inside of branches or loops that depend on the input, "
            "where no static or dynamic int8 form reaches them"
        )
    if prepared.is_huge:
        found.append("more than 2 GB of weights: no static, dynamic or int4 form was tried")
    return tuple(found)

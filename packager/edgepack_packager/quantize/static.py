"""Static int8: scales of activations are found beforehand, on calibration rows."""

from __future__ import annotations

import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edgepack_packager.graphs.clean import all_nodes
from edgepack_packager.graphs.folding import PREFIXES
from edgepack_packager.quantize.calibration import Ranges
from edgepack_packager.quantize.library import copied, foreseen, quiet, recleaned
from edgepack_packager.quantize.operators import (
    ABSORBED_TYPES,
    FLOAT_OUTPUT_TYPES,
    STATIC_TYPES,
    static_nodes,
)
from edgepack_packager.quantize.plan import Plan


def quantize_static(model: onnx.ModelProto, ranges: Ranges, plan: Plan) -> onnx.ModelProto | None:
    """The graph with the nodes of ``plan`` in int8.

    Args:
        model: A fused graph.
        ranges: Of every float value around those nodes.
        plan: Which nodes, and how.

    Returns:
        None when no node is left to quantize.

    Raises:
        QuantizerError: The quantizer does not cope with this graph.
    """
    types = plan.operators or STATIC_TYPES
    kept = [name for name in static_nodes(model, types) if name not in plan.excluded]
    if not kept:
        return None
    absorbed = [
        node.name
        for node in model.graph.node
        if node.op_type in ABSORBED_TYPES and not node.name.startswith(PREFIXES)
    ]
    with quiet(), foreseen():
        quantizer = QDQQuantizer(
            copied(model),
            plan.per_channel,
            plan.reduce_range,
            QuantType.QUInt8 if plan.weights == "uint8" else QuantType.QInt8,
            QuantType.QInt8 if plan.activations == "int8" else QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, dict(ranges)),
            [*kept, *absorbed],
            [],
            [*types, *ABSORBED_TYPES],
            {"OpTypesToExcludeOutputQuantization": list(FLOAT_OUTPUT_TYPES)},
        )
        quantizer.quantize_model()
    return recleaned(quantizer.model.model)


def flat_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Reshape biases of [1, N] to [N]: the quantizer takes one for a matrix and fails."""
    biases = {
        node.input[2] for node in model.graph.node if node.op_type == "Gemm" and len(node.input) > 2
    }
    uses = [name for node in all_nodes(model.graph) for name in node.input]
    for tensor in model.graph.initializer:
        single = len(tensor.dims) == 2 and tensor.dims[0] == 1
        if tensor.name in biases and single and uses.count(tensor.name) == 1:
            flat = numpy_helper.to_array(tensor).reshape(-1)
            tensor.CopyFrom(numpy_helper.from_array(flat, tensor.name))
    return model


def calibrated_tensors(model: onnx.ModelProto, types: tuple[str, ...]) -> list[str]:
    """Names of the values around the nodes of ``types``, sorted: those whose range is needed."""
    weights = {tensor.name for tensor in model.graph.initializer}
    nodes = set(static_nodes(model, types))
    return sorted(
        {
            name
            for node in model.graph.node
            if node.name in nodes or node.op_type in ABSORBED_TYPES
            for name in (*node.input, *node.output)
            if name and name not in weights
        }
    )

"""Dynamic int8: weights in int8, scales of activations found anew in every run."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgepack_packager.quantize.library import copied, foreseen, quiet
from edgepack_packager.quantize.operators import DYNAMIC_TYPES, quantizable
from edgepack_packager.quantize.plan import Plan
from edgepack_packager.quantize.unfolding import quantize_before_unfolding, unfold


def quantize_dynamically(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto | None:
    """The graph with int8 weights and scales computed per run; None when nothing gains by it.

    Args:
        model: A cleaned graph; a fused one where convolutions are to take part.
        plan: Which nodes, and how; with Conv among its operators, convolutions become products.

    Raises:
        QuantizerError: The quantizer does not cope with this graph.
    """
    if "Conv" in plan.operators:
        model = unfold(model, plan.excluded) or model
    types = [kind for kind in plan.operators or DYNAMIC_TYPES if kind in DYNAMIC_TYPES]
    # the library turns Gemm into MatMul itself
    gaining = quantizable(model, [*types, "Gemm"] if "MatMul" in types else types)
    if not set(gaining) - set(plan.excluded):
        return None
    with TemporaryDirectory(prefix="edgepack-") as folder, quiet(), foreseen():
        path = Path(folder) / "dynamic.onnx"
        quantize_dynamic(
            copied(model),
            path,
            op_types_to_quantize=types,
            nodes_to_exclude=list(plan.excluded),
            weight_type=QuantType.QUInt8 if plan.weights == "uint8" else QuantType.QInt8,
            per_channel=plan.per_channel,
            reduce_range=plan.reduce_range,
        )
        return quantize_before_unfolding(onnx.load(path))

"""Dynamic int8: weights in int8, scales of activations found anew in every run."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgepack_packager.quantize.library import copied, foreseen, quiet, recleaned
from edgepack_packager.quantize.operators import DYNAMIC_TYPES, quantizable
from edgepack_packager.quantize.plan import Plan


def quantize_dynamically(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto | None:
    """The graph with int8 weights and scales computed per run; None when nothing gains by it.

    Raises:
        QuantizerError: The quantizer does not cope with this graph.
    """
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
            weight_type=QuantType.QInt8,
            per_channel=plan.per_channel,
            reduce_range=plan.reduce_range,
        )
        return recleaned(onnx.load(path))

"""Weights in few bits, activations in float: smaller where matrix products hold the bytes."""

from __future__ import annotations

import onnx
from onnxruntime.quantization.onnx_model import ONNXModel

from edgepack_packager.quantize.library import copied, foreseen, quiet, recleaned
from edgepack_packager.quantize.plan import Plan
from edgepack_packager.quantize.share import float_weight_bytes

BLOCK = 32
"""Weights that share a scale: the finest that the kernels have, and the most accurate."""

INT8_COMPUTE = 4
"""``accuracy_level`` of MatMulNBits: activations become int8 blocks on the way, the fast kernel."""

DOMINATING_SHARE = 0.5
"""Below this share of the bytes in matrix products, packing them does little for the size."""

_FEWEST_WEIGHTS = 1024


def quantize_weights(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto | None:
    """The graph with the weights of its matrix products in blocks of 8 or 4 bits.

    Args:
        model: A cleaned graph.
        plan: ``int8-weights`` or ``int4-weights``; its block, 16 to 256, a power of two.

    Returns:
        None when matrix products with constant weights do not hold most of the bytes.

    Raises:
        QuantizerError: The quantizer does not cope with this graph.
    """
    products = _as_products(model)
    names = [name for name in packable(products) if name not in plan.excluded]
    if not names or _share(products, names) < DOMINATING_SHARE:
        return None
    # imported here: it brings a computer algebra system with it
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # noqa: PLC0415

    with quiet(), foreseen():
        quantizer = MatMulNBitsQuantizer(
            products,
            bits=8 if plan.precision == "int8-weights" else 4,
            block_size=plan.block or BLOCK,
            is_symmetric=True,
            accuracy_level=INT8_COMPUTE,
            nodes_to_exclude=[n.name for n in products.graph.node if n.name not in names],
            op_types_to_quantize=("MatMul",),
        )
        quantizer.process()
        return recleaned(quantizer.model.model)


def packable(model: onnx.ModelProto) -> list[str]:
    """Names of the matrix products with a constant, two-dimensional second factor."""
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul"
        and len(sizes.get(node.input[1], ())) == 2
        and sizes[node.input[1]][0] * sizes[node.input[1]][1] >= _FEWEST_WEIGHTS
    ]


def _as_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every Gemm as MatMul and Add, which is the form that can be packed."""
    with quiet(), foreseen():
        whole = ONNXModel(copied(model))
        whole.replace_gemm_with_matmul()
    return recleaned(whole.model)


def _share(model: onnx.ModelProto, nodes: list[str]) -> float:
    """The share of the bytes of float weights that ``nodes`` hold."""
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    packed = {node.input[1] for node in model.graph.node if node.name in nodes}
    held: int = sum(4 * sizes[name][0] * sizes[name][1] for name in packed)
    return float(held / max(float_weight_bytes(model), 1))

"""Convolutions as matrix products, whose int8 kernels take scales per run and give floats.

The dynamic kernel of Conv is 4 to 10 times slower than float, and the static one rounds its result
to 8 bits, which real models do not always survive. The product of the unfolded input (every place
of the kernel side by side: K. Chellapilla et al., High Performance Convolutional Neural Networks
for Document Processing, 2006) and the kernel has neither flaw; it takes more memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgepack_packager.quantize.library import copied, recleaned

FEWEST_TERMS = 64
FEWEST_CHANNELS = 16
"""A convolution with fewer products per output, or fewer outputs, gains nothing."""

_UNFOLDED = ".unfolded"
_END = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A convolution over ``len(shape)`` axes; pads are those before all axes, then after all."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]


def unfold(model: onnx.ModelProto, excluded: Sequence[str]) -> onnx.ModelProto | None:
    """The graph with its larger convolutions as matrix products of the same names.

    Args:
        model: A graph with channels in the second place, as ONNX has them.
        excluded: Names of convolutions to leave alone.

    Returns:
        None when no convolution is large enough, or all have groups or odd padding.
    """
    made = copied(model)
    weights = {tensor.name: tensor for tensor in made.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    found = 0
    for node in made.graph.node:
        kernel = _kernel(node, weights) if node.name not in excluded else None
        found += kernel is not None
        nodes += [node] if kernel is None else _product(made.graph, node, weights, kernel)
    if not found:
        return None
    del made.graph.node[:], made.graph.value_info[:]
    made.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in made.graph.initializer if tensor.name in used]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return recleaned(made)


def quantize_before_unfolding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Find the scale of what is unfolded, and round it, before it is unfolded.

    Every value is then rounded once instead of once per place of the kernel, and the copies are
    of bytes instead of floats.

    Args:
        model: What the dynamic quantizer made of an unfolded graph.
    """
    made = copied(model)
    del made.graph.value_info[:]  # of floats that are bytes afterwards
    makers = {name: node for node in made.graph.node for name in node.output}
    for node in list(made.graph.node):
        joined = makers.get(node.input[0]) if node.op_type == "DynamicQuantizeLinear" else None
        if joined is None or not joined.output[0].endswith(_UNFOLDED):
            continue
        if sum(joined.output[0] in other.input for other in made.graph.node) != 1:
            continue  # somebody else needs the floats
        taps = [makers[name] for name in joined.input]
        whole, rounded = taps[0].input[0], f"{taps[0].input[0]}.int8"
        node.input[0], joined.output[0], node.output[0] = whole, node.output[0], rounded
        for tap in taps:
            tap.input[0] = rounded
        made.graph.node.remove(node)
        made.graph.node.insert(list(made.graph.node).index(taps[0]), node)
    return recleaned(made)


def _kernel(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> _Kernel | None:
    if node.op_type != "Conv" or node.input[1] not in weights:
        return None
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    outputs, inputs, *shape = weights[node.input[1]].dims
    small = inputs * int(np.prod(shape)) < FEWEST_TERMS or outputs < FEWEST_CHANNELS
    odd = given.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}
    if small or odd or given.get("group", 1) != 1:
        return None
    axes = len(shape)
    return _Kernel(
        shape=tuple(shape),
        strides=tuple(given.get("strides", [1] * axes)),
        dilations=tuple(given.get("dilations", [1] * axes)),
        pads=tuple(given.get("pads", [0] * 2 * axes)),
    )


def _product(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    weights: dict[str, onnx.TensorProto],
    kernel: _Kernel,
) -> list[onnx.NodeProto]:
    """The nodes that stand for one convolution."""
    axes, name = len(kernel.shape), node.name
    space = range(1, 1 + axes)
    values = numpy_helper.to_array(weights[node.input[1]])
    # from [outputs, inputs, places...] to [places... x inputs, outputs]
    flat = values.transpose(*range(2, 2 + axes), 1, 0).reshape(-1, values.shape[0])
    graph.initializer.append(_constant(np.ascontiguousarray(flat), f"{name}.weights"))
    last = f"{name}.last"
    made = [_node("Transpose", [node.input[0]], last, perm=[0, *(i + 1 for i in space), 1])]
    if any(kernel.pads):
        before, after = kernel.pads[:axes], kernel.pads[axes:]
        pads = np.array([0, *before, 0, 0, *after, 0], np.int64)
        graph.initializer.append(_constant(pads, f"{name}.pads"))
        made.append(_node("Pad", [last, f"{name}.pads"], f"{name}.padded"))
        last = f"{name}.padded"
    taps = [_tap(graph, name, last, kernel, place) for place in np.ndindex(*kernel.shape)]
    made += taps
    columns = [tap.output[0] for tap in taps]
    if len(columns) > 1:
        made.append(_node("Concat", columns, f"{name}{_UNFOLDED}", axis=-1))
        columns = [f"{name}{_UNFOLDED}"]
    result = f"{name}.product"
    product = _node("MatMul", [columns[0], f"{name}.weights"], result)
    product.name = name  # by which a plan leaves it in float
    made.append(product)
    if len(node.input) > 2 and node.input[2]:
        made.append(_node("Add", [result, node.input[2]], f"{name}.biased"))
        result = f"{name}.biased"
    return [*made, _node("Transpose", [result], node.output[0], perm=[0, 1 + axes, *space])]


def _tap(
    graph: onnx.GraphProto, name: str, source: str, kernel: _Kernel, place: tuple[int, ...]
) -> onnx.NodeProto:
    """What one place of the kernel sees of the input, channels last."""
    tap = f"{name}.tap-{'-'.join(map(str, place))}"
    ahead = zip(kernel.shape, place, kernel.dilations, strict=True)
    left = [(size - 1 - at) * step for size, at, step in ahead]
    bounds = {
        "starts": [at * step for at, step in zip(place, kernel.dilations, strict=True)],
        "ends": [-rest if rest else _END for rest in left],
        "axes": list(range(1, 1 + len(place))),
        "steps": list(kernel.strides),
    }
    names = [f"{tap}.{part}" for part in bounds]
    graph.initializer.extend(
        _constant(np.array(values, np.int64), key)
        for key, values in zip(names, bounds.values(), strict=True)
    )
    return _node("Slice", [source, *names], tap)


def _node(kind: str, given: list[str], made: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, given, [made], name=made, **attributes)


def _constant(values: np.ndarray, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)

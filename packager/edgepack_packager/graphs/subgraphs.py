"""Branches that are decided beforehand, such as one per sample rate: only the taken one stays.

Weights inside of a branch are out of reach for fusion and quantization: a published speech model
grew from 2.33 to 2.38 MB that way.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

MOST_NODES = 64
"""A condition made of more nodes is not worth evaluating."""


def inline_branches(model: onnx.ModelProto) -> bool:
    """Put the taken branch of every If with a constant condition in its place.

    Branches inside of such branches follow. Returns whether there was one.
    """
    changed = False
    while _inline_one(model):
        changed = True
    if changed:
        _drop_unused(model.graph)
        del model.graph.value_info[:]
    return changed


def _inline_one(model: onnx.ModelProto) -> bool:
    graph = model.graph
    for position, node in enumerate(graph.node):
        if node.op_type != "If" or node.domain:
            continue
        taken = _condition(model, node.input[0])
        if taken is None:
            continue
        wanted = "then_branch" if taken else "else_branch"
        branch = next(item.g for item in node.attribute if item.name == wanted)
        constants, nodes = _spliced(branch, list(node.output))
        rest = [*graph.node[:position], *nodes, *graph.node[position + 1 :]]
        graph.initializer.extend(constants)
        kept = onnx.GraphProto()
        kept.node.extend(rest)
        del graph.node[:]
        graph.node.extend(kept.node)
        return True
    return False


def _spliced(
    branch: onnx.GraphProto, outputs: list[str]
) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    """The constants and nodes of ``branch``, with names that are unique outside of it.

    Two branches of different nodes may use one name for different values.
    """
    copy = onnx.GraphProto()
    copy.CopyFrom(branch)
    own = {tensor.name for tensor in copy.initializer}
    own |= {name for node in copy.node for name in node.output if name}
    names = {name: f"{outputs[0]}/{name}" for name in own}
    made = {name for node in copy.node for name in node.output}
    passed: list[onnx.NodeProto] = []
    for item, output in zip(copy.output, outputs, strict=True):
        if item.name in made and names[item.name] not in outputs:
            names[item.name] = output
        else:  # a constant, a value from outside, or one that is given twice
            source = names.get(item.name, item.name)
            passed.append(helper.make_node("Identity", [source], [output]))
    for tensor in copy.initializer:
        tensor.name = names[tensor.name]
    _rename(copy, names)
    return list(copy.initializer), [*copy.node, *passed]


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        for field in (node.input, node.output):
            for place, name in enumerate(field):
                field[place] = names.get(name, name)
        for inner in _graphs(node):
            for item in inner.output:
                item.name = names.get(item.name, item.name)
            _rename(inner, names)


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _condition(model: onnx.ModelProto, name: str) -> bool | None:
    """The value of a condition that depends on constants only; None when it does not."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    if name in constants:
        return bool(numpy_helper.to_array(constants[name]).all())
    nodes = _constant_ancestors(model.graph, name, set(constants))
    if nodes is None:
        return None
    used = {item for node in nodes for item in node.input}
    part = helper.make_graph(
        nodes,
        "condition",
        [],
        [helper.make_tensor_value_info(name, TensorProto.BOOL, None)],
        initializer=[constants[item] for item in sorted(used & set(constants))],
    )
    # imported here: few graphs need it, and it loads every operator's own module
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

    small = helper.make_model(part, opset_imports=list(model.opset_import))
    small.ir_version = model.ir_version
    try:
        (value,) = ReferenceEvaluator(small).run(None, {})
    # what it raises for operators that it does not have, or uses that it does not know
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError):
        return None
    return bool(np.all(value))


def _constant_ancestors(
    graph: onnx.GraphProto, name: str, constants: set[str]
) -> list[onnx.NodeProto] | None:
    """The nodes that make ``name`` out of constants, in order; None when other values enter."""
    makers = {output: node for node in graph.node for output in node.output}
    found: dict[int, onnx.NodeProto] = {}
    wanted = [name]
    while wanted:
        current = wanted.pop()
        if not current or current in constants:
            continue
        node = makers.get(current)
        if node is None or node.domain or any(_graphs(node)) or len(found) > MOST_NODES:
            return None
        if node.op_type.startswith("Random"):
            return None
        if id(node) not in found:
            found[id(node)] = node
            wanted.extend(node.input)
    return [node for node in graph.node if id(node) in found]


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that nothing needs any more, such as those of the condition."""
    while True:
        used = {item.name for item in graph.output} | _used(graph)
        kept = [node for node in graph.node if used & set(node.output)]
        if len(kept) == len(graph.node):
            break
        copy = onnx.GraphProto()
        copy.node.extend(kept)
        del graph.node[:]
        graph.node.extend(copy.node)
    for tensor in [item for item in graph.initializer if item.name not in used]:
        graph.initializer.remove(tensor)


def _used(graph: onnx.GraphProto) -> set[str]:
    """Every name that a node takes, in sub-graphs too."""
    names = {name for node in graph.node for name in node.input}
    for node in graph.node:
        for inner in _graphs(node):
            names |= _used(inner) | {item.name for item in inner.output}
    return names

"""What a graph that came from anywhere must be before anything is done with it."""

from __future__ import annotations

import functools
import graphlib
from collections.abc import Collection, Iterator, Mapping

import onnx
from onnx import numpy_helper

from edgepack_packager.errors import ConversionError, ModelSourceError
from edgepack_packager.graphs.clean import all_nodes
from edgepack_packager.graphs.tensors import all_tensors
from edgepack_runtime.inference.session import known_operators

MAX_NODES = 200_000
"""Nodes of a graph, with those that its functions stand for."""

_TRAINING = frozenset({"ai.onnx.training", "ai.onnx.preview.training"})

_QUANTIZED = frozenset({
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul",
    "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QAttention", "QGemm", "QLinearAdd",
    "QLinearConv", "QLinearMatMul", "QuantizeLinear",
})  # fmt: skip

_SHOWN = 5


def check_structure(model: onnx.ModelProto) -> None:
    """Check a graph as it came, with local functions still in it.

    Raises:
        ModelSourceError: It is no complete and consistent graph.
        ConversionError: It is one, but of a kind that the runtime cannot serve.
    """
    _check_texts(model)
    _check_versions(model)
    _check_size(model)
    _check_training(model)
    _check_operators(model)
    for function in model.functions:
        _check_values(function.node, set(function.input), set(), f"function {function.name}")
    _check_ends(model.graph)
    names = {tensor.name for tensor in model.graph.initializer}
    if len(names) != len(model.graph.initializer):
        _refuse_twice([tensor.name for tensor in model.graph.initializer], "initializer")
    _check_graph(model.graph, set())


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a graph computes in integers already."""
    return any(node.op_type in _QUANTIZED for node in all_nodes(model.graph))


def sort_nodes(model: onnx.ModelProto) -> bool:
    """Put every node after those that it takes values from, where a tool left it before them."""
    return _sort(model.graph)


def _check_texts(model: onnx.ModelProto) -> None:
    """Names that are no UTF-8 come out of protobuf as bytes, and no tool copes with them."""
    names: list[object] = [entry.domain for entry in model.opset_import]
    names += [tensor.name for tensor in all_tensors(model)]
    for node in _all(model):
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
        names += [attribute.name for attribute in node.attribute]
        for graph in _graphs(node):
            names += _names_of_ends(graph)
    names += _names_of_ends(model.graph)
    if any(not isinstance(name, str) for name in names):
        raise ModelSourceError("it is damaged: a name in it is no text", code="not-onnx")


def _names_of_ends(graph: onnx.GraphProto) -> list[object]:
    ends = (*graph.input, *graph.output, *graph.value_info)
    sizes = [size.dim_param for item in ends for size in item.type.tensor_type.shape.dim]
    return [graph.name, *sizes, *(item.name for item in ends)]


def _all(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, with those of local functions."""
    yield from all_nodes(model.graph)
    for function in model.functions:
        yield from _nodes(function.node)


def _check_versions(model: onnx.ModelProto) -> None:
    if model.ir_version > onnx.IR_VERSION:
        raise ConversionError(
            f"its file format is version {model.ir_version}; versions up to {onnx.IR_VERSION} are "
            "known",
            code="ir-version",
        )
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in {"", "ai.onnx"} and not 1 <= entry.version <= newest:
            raise ConversionError(
                f"it uses opset {entry.version} of ONNX; opsets 1 to {newest} are known. Export "
                "the model with one of them",
                code="opset",
            )


def _check_size(model: onnx.ModelProto) -> None:
    """Bound the nodes, with those of functions where they are called."""
    sizes = _function_sizes(model)
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in all_nodes(model.graph))
    if total > MAX_NODES:
        raise ConversionError(
            f"it has {total} operators; graphs go up to {MAX_NODES}", code="too-many-nodes"
        )


def _function_sizes(model: onnx.ModelProto) -> dict[tuple[str, str], int]:
    """The nodes that each local function stands for.

    Raises:
        ModelSourceError: One calls itself.
    """
    calls = {
        (function.domain, function.name): [(n.domain, n.op_type) for n in _nodes(function.node)]
        for function in model.functions
    }
    order = graphlib.TopologicalSorter(
        {key: [called for called in made if called in calls] for key, made in calls.items()}
    )
    try:
        sizes: dict[tuple[str, str], int] = {}
        for key in order.static_order():
            # beyond the bound it does not matter by how much, and numbers would grow for ever
            sizes[key] = min(sum(sizes.get(called, 1) for called in calls[key]), 10 * MAX_NODES)
        return sizes
    except graphlib.CycleError as error:
        names = " -> ".join(name for _, name in error.args[1][:_SHOWN])
        raise ModelSourceError(
            f"its functions call each other in a circle: {names}", code="recursive-function"
        ) from error


def _nodes(nodes: Collection[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    holder = onnx.GraphProto()
    holder.node.extend(nodes)
    return all_nodes(holder)


def _check_training(model: onnx.ModelProto) -> None:
    domains = {node.domain for node in all_nodes(model.graph)}
    if model.training_info or domains & _TRAINING:
        _refuse_training("it holds what trains it")
    true = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.BOOL and numpy_helper.to_array(tensor).any()
    }
    for node in all_nodes(model.graph):
        mode = next((item.i for item in node.attribute if item.name == "training_mode"), 0)
        drops = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in true
        if drops or (node.op_type == "BatchNormalization" and mode):
            _refuse_training(f"{_called(node)} is in training mode")


def _refuse_training(why: str) -> None:
    raise ConversionError(
        f"{why}; export the model for inference (in PyTorch: model.eval() before the export)",
        code="training-graph",
    )


def _check_operators(model: onnx.ModelProto) -> None:
    known = known_operators() | {(item.domain, item.name) for item in model.functions}
    domains = {domain for domain, _ in known}
    versions = {_domain(entry.domain): entry.version for entry in model.opset_import}
    for node in _all(model):
        domain = _domain(node.domain)
        if (domain, node.op_type) not in known:
            _refuse_operator(node, domain, misspelt=domain in domains)
        if node.domain in versions or domain in versions:
            _check_attributes(node, domain, versions[domain])
        elif not model.functions:
            raise ModelSourceError(
                f"{_called(node)} is of domain {domain or 'ai.onnx'!r}, but the model does not say "
                "which opset of it it was made for",
                code="no-opset",
            )


def _refuse_operator(node: onnx.NodeProto, domain: str, *, misspelt: bool) -> None:
    advice = (
        "it may be misspelt, or of another release; export the model with operators of ONNX"
        if misspelt
        else "the runtime has no operators of this domain; replace the operator by ones of ONNX, "
        "or put what it does into --preprocess or --postprocess"
    )
    raise ConversionError(
        f"operator {node.op_type!r} of domain {domain or 'ai.onnx'!r} ({_called(node)}) is "
        f"unknown: {advice}",
        code="unknown-operator",
    )


def _check_attributes(node: onnx.NodeProto, domain: str, version: int) -> None:
    given = {attribute.name for attribute in node.attribute}
    missing = sorted(_required(node.op_type, domain, version) - given)
    if missing:
        raise ModelSourceError(
            f"{_called(node)} lacks {', '.join(missing)}, which it cannot do without",
            code="missing-attribute",
        )


@functools.cache
def _required(kind: str, domain: str, version: int) -> frozenset[str]:
    """Attributes that an operator must have; none where ONNX does not define it."""
    try:
        schema = onnx.defs.get_schema(kind, version, domain)
    except onnx.defs.SchemaError:
        return frozenset()
    return frozenset(name for name, item in schema.attributes.items() if item.required)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _check_ends(graph: onnx.GraphProto) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    if all(item.name in weights for item in graph.input):
        raise ModelSourceError("it has no inputs: its answer is always the same", code="no-inputs")
    if not graph.output:
        raise ModelSourceError("it has no outputs: nothing to serve", code="no-outputs")
    _refuse_twice([item.name for item in graph.input], "input")
    _refuse_twice([item.name for item in graph.output], "output")


def _check_graph(graph: onnx.GraphProto, outer: set[str]) -> None:
    given = {tensor.name for tensor in graph.initializer}
    given |= {sparse.values.name for sparse in graph.sparse_initializer}
    given |= {item.name for item in graph.input}
    made = _check_values(graph.node, given, outer, f"graph {graph.name or 'main'}")
    for item in graph.output:
        if item.name not in made | given | outer:
            raise ModelSourceError(
                f"output {item.name!r} is given by no operator", code="unknown-value"
            )


def _check_values(
    nodes: Collection[onnx.NodeProto], given: set[str], outer: set[str], where: str
) -> set[str]:
    """Check that every value is made once and from others that are there; the names made."""
    made: set[str] = set()
    for node in nodes:
        for name in filter(None, node.output):
            if name in made or name in given:
                raise ModelSourceError(
                    f"value {name!r} is given twice, the second time by {_called(node)}",
                    code="duplicate-name",
                )
            made.add(name)
    seen = made | given | outer
    for node in nodes:
        for name in filter(None, node.input):
            if name not in seen:
                raise ModelSourceError(
                    f"{_called(node)} takes {name!r}, which nothing in {where} gives",
                    code="unknown-value",
                )
        for inner in _graphs(node):
            if node.op_type == "If" and len(inner.output) != len(node.output):
                raise ModelSourceError(
                    f"{_called(node)} gives {len(node.output)} values, a branch of it "
                    f"{len(inner.output)}",
                    code="bad-branch",
                )
            _check_graph(inner, seen)
    _order(nodes)
    return made


def _order(nodes: Collection[onnx.NodeProto]) -> list[int]:
    """An order in which every node comes after those that it takes values from.

    Raises:
        ModelSourceError: There is none, since nodes wait for each other.
    """
    listed = list(nodes)
    makers = {name: place for place, node in enumerate(listed) for name in node.output if name}
    needs: Mapping[int, list[int]] = {
        place: [makers[name] for name in _taken(node) if name in makers]
        for place, node in enumerate(listed)
    }
    if all(max(before, default=-1) < place for place, before in needs.items()):
        return list(range(len(listed)))
    try:
        return list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        circle = " <- ".join(_called(listed[place]) for place in error.args[1][:_SHOWN])
        raise ModelSourceError(
            f"operators wait for each other in a circle: {circle}", code="cyclic-graph"
        ) from error


def _taken(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the values that a node takes, with those that its sub-graphs take from outside."""
    yield from node.input
    for graph in _graphs(node):
        for inner in graph.node:
            yield from _taken(inner)
        yield from (item.name for item in graph.output)


def _sort(graph: onnx.GraphProto) -> bool:
    changed = False
    for node in graph.node:
        for inner in _graphs(node):
            changed |= _sort(inner)
    order = _order(graph.node)
    if order == sorted(order):
        return changed
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes[place] for place in order)
    return True


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _refuse_twice(names: list[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ModelSourceError(
            f"{what} {', '.join(map(repr, twice[:_SHOWN]))} is there twice", code="duplicate-name"
        )


def _called(node: onnx.NodeProto) -> str:
    """A node in words: its type and name, or what it gives."""
    return f"{node.op_type} {(node.name or ' '.join(node.output))[:80]!r}"

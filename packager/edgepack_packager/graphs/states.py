"""Inputs that a recipe calls states: checked against the graph, and given rows in front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import helper

from edgepack_packager.errors import RecipeError
from edgepack_packager.graphs.clean import rename_value
from edgepack_packager.recipe import InputRule

INTERNAL = "edgepack-state/"
"""Before the names of nodes and tensors that turn a state's dimensions."""

_Size = int | str | None


@dataclass(frozen=True, slots=True)
class Turned:
    """A state whose rows were not its first dimension: the place that they had before."""

    name: str
    source: str
    axis: int


def state_sources(rules: Mapping[str, InputRule]) -> dict[str, str]:
    """The output that each state input is carried from."""
    return {name: rule.source for name, rule in rules.items() if rule.source is not None}


def check_rules(model: onnx.ModelProto, rules: Mapping[str, InputRule]) -> None:
    """Check that rules of inputs fit the graph.

    Raises:
        RecipeError: An input or a source does not exist, or a state and its source differ.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {item.name: item for item in model.graph.input if item.name not in weights}
    outputs = {item.name: item for item in model.graph.output}
    for name, rule in rules.items():
        if name not in inputs:
            raise RecipeError(
                f"inputs.{name}: the model has no such input; it has {', '.join(inputs)}",
                code="no-input",
            )
        if rule.source is not None and rule.source not in outputs:
            raise RecipeError(
                f"inputs.{name}: the model has no output {rule.source!r} to carry it from; "
                f"it has {', '.join(outputs)}",
                code="no-output",
            )
        if rule.source is not None:
            _check_pair(inputs[name], outputs[rule.source])
    if inputs and all(name in rules and rules[name].role == "state" for name in inputs):
        raise RecipeError(
            "every input is a state; at least one must be fed with data", code="no-data-input"
        )


def rows_first(
    model: onnx.ModelProto, sources: Mapping[str, str]
) -> tuple[onnx.ModelProto, tuple[Turned, ...]]:
    """Give every state and its source rows as their first dimension, as everything else has.

    Recurrent layers keep theirs as (layers, rows, width), which no request of several rows and
    no golden row could be cut from.

    Args:
        model: A graph with ``sources`` that :func:`check_rules` accepts.
        sources: The output that each state input is carried from.

    Returns:
        The graph, and the states that were turned.

    Raises:
        RecipeError: A state has no dimension for rows, or one of no fixed size besides.
    """
    rows = _rows_of_data(model, sources)
    turned = tuple(
        Turned(name, source, axis)
        for name, source in sources.items()
        if (axis := _row_axis(_input(model, name), rows)) != 0
    )
    if not turned:
        return model, ()
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for state in turned:
        _turn_input(changed.graph, state)
    for source, state in {state.source: state for state in turned}.items():
        _turn_output(changed.graph, source, state.axis, len(_sizes(_input(model, state.name))))
    return changed, turned


def _check_pair(state: onnx.ValueInfoProto, source: onnx.ValueInfoProto) -> None:
    one, two = state.type.tensor_type, source.type.tensor_type
    if one.elem_type != two.elem_type and two.elem_type:
        raise RecipeError(
            f"inputs.{state.name}: it takes {_kind(state)}, its source {source.name!r} gives "
            f"{_kind(source)}",
            code="state-shape",
        )
    if not two.HasField("shape"):
        return
    ours, theirs = _sizes(state), _sizes(source)
    fits = len(ours) == len(theirs) and all(
        a == b
        for a, b in zip(ours, theirs, strict=True)
        if isinstance(a, int) and isinstance(b, int)
    )
    if not fits:
        raise RecipeError(
            f"inputs.{state.name}: it has the shape {_spell(ours)}, its source {source.name!r} "
            f"{_spell(theirs)}; a state is fed with what its source gave",
            code="state-shape",
        )


def _rows_of_data(model: onnx.ModelProto, sources: Mapping[str, str]) -> _Size:
    """The first dimension of the first input that is no state."""
    weights = {tensor.name for tensor in model.graph.initializer}
    data = [
        _sizes(item)
        for item in model.graph.input
        if item.name not in weights and item.name not in sources
    ]
    return next((sizes[0] for sizes in data if sizes), None)


def _row_axis(state: onnx.ValueInfoProto, rows: _Size) -> int:
    sizes = _sizes(state)
    if isinstance(rows, str) and rows in sizes:
        axes = [place for place, size in enumerate(sizes) if size == rows]
    elif isinstance(rows, int):
        axes = [place for place, size in enumerate(sizes) if size == rows][:1]
    else:
        axes = [place for place, size in enumerate(sizes) if not isinstance(size, int)]
        axes = axes or [place for place, size in enumerate(sizes) if size == 1][:1]
    if len(axes) != 1:
        raise RecipeError(
            f"inputs.{state.name}: none of its dimensions {_spell(sizes)} stands for rows; "
            "name the open one as the first dimension of the data is named",
            code="state-rows",
        )
    others = [size for place, size in enumerate(sizes) if place != axes[0]]
    if any(not isinstance(size, int) for size in others):
        raise RecipeError(
            f"inputs.{state.name}: of {_spell(sizes)} more than the rows are open; a state that "
            "grows cannot be carried, only one of one size",
            code="state-open",
        )
    return axes[0]


def _turn_input(graph: onnx.GraphProto, state: Turned) -> None:
    item = next(item for item in graph.input if item.name == state.name)
    rank = len(item.type.tensor_type.shape.dim)
    inner = INTERNAL + state.name
    rename_value(graph, state.name, inner)
    back = [0 if place == state.axis else place + (place < state.axis) for place in range(rank)]
    node = helper.make_node("Transpose", [state.name], [inner], name=inner, perm=back)
    graph.node.insert(0, node)
    _move_sizes(item, state.axis)


def _turn_output(graph: onnx.GraphProto, name: str, axis: int, rank: int) -> None:
    item = next(item for item in graph.output if item.name == name)
    inner = INTERNAL + name
    rename_value(graph, name, inner)
    front = [axis, *(place for place in range(rank) if place != axis)]
    graph.node.append(helper.make_node("Transpose", [inner], [name], name=inner, perm=front))
    if item.type.tensor_type.HasField("shape"):
        _move_sizes(item, axis)


def _move_sizes(item: onnx.ValueInfoProto, axis: int) -> None:
    sizes = list(item.type.tensor_type.shape.dim)
    sizes.insert(0, sizes.pop(axis))
    copies = [
        onnx.TensorShapeProto.Dimension.FromString(size.SerializeToString()) for size in sizes
    ]
    del item.type.tensor_type.shape.dim[:]
    item.type.tensor_type.shape.dim.extend(copies)


def _input(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    found: onnx.ValueInfoProto = next(item for item in model.graph.input if item.name == name)
    return found


def _sizes(item: onnx.ValueInfoProto) -> list[_Size]:
    return [
        size.dim_value if size.HasField("dim_value") else size.dim_param or None
        for size in item.type.tensor_type.shape.dim
    ]


def _kind(item: onnx.ValueInfoProto) -> str:
    return str(onnx.TensorProto.DataType.Name(item.type.tensor_type.elem_type)).lower()


def _spell(sizes: list[_Size]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in sizes)}]"

"""Pre- and postprocessing as nodes of the graph, so that a device runs the graph and nothing else.

They are kept in float: :data:`PREFIXES` begin the names of their nodes, which quantization skips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec
import onnx
import onnx.compose
from onnx import helper

from edgepack_contract.description import DimensionName, DType, Size
from edgepack_packager.errors import ConversionError, RecipeError
from edgepack_packager.graphs.clean import (
    MIN_OPSET,
    TARGET_OPSET,
    all_nodes,
    name_nodes,
    opsets,
    rename_value,
)
from edgepack_packager.graphs.step_kinds import (
    Constant,
    Select,
    Sheet,
    Step,
    TopK,
    Value,
    numpy_name,
    tensor_type,
)

PRE, POST = "edgepack-pre/", "edgepack-post/"
PREFIXES = (PRE, POST)

Values = dict[str, Value]


class RawInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the bundle takes instead of an input of the model; rows are the first dimension."""

    dtype: DType = "float32"
    shape: Annotated[list[Size | DimensionName], msgspec.Meta(min_length=1, max_length=16)]


class StepsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of steps; only one for preprocessing may say what the bundle takes."""

    steps: Annotated[list[Step], msgspec.Meta(min_length=1, max_length=256)]
    inputs: Annotated[dict[str, RawInput], msgspec.Meta(max_length=64)] = {}


@dataclass(frozen=True, slots=True)
class Fold:
    """A graph that stands before or behind a model.

    Attributes:
        model: The graph by itself.
        wires: Before a model: the output of ``model`` that feeds each input. Behind a model: the
            output that feeds each input of ``model``.
    """

    model: onnx.ModelProto
    wires: Mapping[str, str]


def before_by_steps(model: onnx.ModelProto, file: StepsFile) -> Fold:
    """The graph that a file of steps describes, to stand before ``model``.

    Raises:
        RecipeError: The steps do not fit together, or not the model's inputs.
    """
    own = _inputs(model)
    raw = {
        name: helper.make_tensor_value_info(name, tensor_type(item.dtype), item.shape)
        for name, item in file.inputs.items()
    } or own
    sheet = Sheet(PRE)
    made = _apply(file.steps, {name: _value(item) for name, item in raw.items()}, sheet)
    feeding = _by_name_or_place(list(made), list(own), "value", "input of the model")
    for name, place in feeding.items():
        _check_type(made[name], own[place])
    # what no step has touched stays the model's own input
    feeding = {name: place for name, place in feeding.items() if made[name].tensor != place}
    wires = {place: _named(sheet, made[name], f"{PRE}{place}") for name, place in feeding.items()}
    read = {name for node in sheet.nodes for name in node.input}
    taken = [item for name, item in raw.items() if name in read]
    outputs = [_output(tensor, own[place]) for place, tensor in wires.items()]
    return Fold(_graph(sheet, taken, outputs, _opset(model)), wires)


def behind_by_steps(model: onnx.ModelProto, file: StepsFile) -> Fold:
    """The graph that a file of steps describes, to stand behind ``model``.

    Raises:
        RecipeError: The steps do not fit together, or not the model's outputs.
    """
    if file.inputs:
        raise RecipeError("only a preprocess says what the bundle takes", code="bad-steps")
    own = {item.name: item for item in _shaped(model).graph.output}
    sheet = Sheet(POST)
    begin = {name: replace(_value(item), tensor=f"{POST}in/{name}") for name, item in own.items()}
    outputs = []
    for name, value in _apply(file.steps, begin, sheet).items():
        _named(sheet, value, name)
        kind = helper.make_tensor_value_info(name, tensor_type(value.dtype), [None] * value.rank)
        outputs.append(own[name] if begin.get(name) == value else kind)
    # what is selected away is taken too, so that it does not stay an output
    wires = {value.tensor: name for name, value in begin.items()}
    inputs = [_input(tensor, own[name]) for tensor, name in wires.items()]
    return Fold(_graph(sheet, inputs, outputs, _opset(model)), wires)


def before_by_graph(model: onnx.ModelProto, other: onnx.ModelProto) -> Fold:
    """``other``, to stand before ``model``: outputs feed inputs by name, or a single one by place.

    Raises:
        RecipeError: An output of ``other`` feeds no input.
        ConversionError: The two have no opset in common.
    """
    given = [item.name for item in other.graph.output]
    feeding = _by_name_or_place(given, list(_inputs(model)), "output", "input of the model")
    other = at_opset(other, _opset(model))
    name_nodes(other)
    prefixed = onnx.compose.add_prefix(other, PRE, rename_inputs=False, inplace=False)
    return Fold(prefixed, {place: PRE + name for name, place in feeding.items()})


def behind_by_graph(model: onnx.ModelProto, other: onnx.ModelProto) -> Fold:
    """``other``, to stand behind ``model``: outputs feed its inputs by name, or a single by place.

    Raises:
        RecipeError: An input of ``other`` is fed by no output.
        ConversionError: The two have no opset in common.
    """
    own = [item.name for item in model.graph.output]
    fed = _by_name_or_place(list(_inputs(other)), own, "input", "output of the model")
    other = at_opset(other, _opset(model))
    name_nodes(other)
    prefixed = onnx.compose.add_prefix(other, POST, rename_outputs=False, inplace=False)
    return Fold(prefixed, {POST + name: source for name, source in fed.items()})


def prepend(model: onnx.ModelProto, fold: Fold) -> onnx.ModelProto:
    """``model`` with a graph before it.

    Raises:
        RecipeError: The two use one name for different things.
    """
    result = at_opset(model, _opset(model))
    for place, tensor in fold.wires.items():
        rename_value(result.graph, place, tensor)
    left = [item for item in result.graph.input if item.name not in fold.wires]
    _check_names(result, fold, shared={*fold.wires, *fold.wires.values(), *(i.name for i in left)})
    fresh = [item for item in fold.model.graph.input if item.name not in {i.name for i in left}]
    nodes = [*fold.model.graph.node, *result.graph.node]
    _join(result, fold, nodes)
    del result.graph.input[:]
    result.graph.input.extend([*fresh, *left])
    return result


def append(model: onnx.ModelProto, fold: Fold) -> onnx.ModelProto:
    """``model`` with a graph behind it.

    Raises:
        RecipeError: The two use one name for different things.
    """
    result = at_opset(model, _opset(model))
    for tensor, source in fold.wires.items():
        rename_value(result.graph, source, tensor)
    left = [item for item in result.graph.output if item.name not in fold.wires.values()]
    _check_names(result, fold, shared=set(fold.wires))
    _join(result, fold, [*result.graph.node, *fold.model.graph.node])
    del result.graph.output[:]
    result.graph.output.extend([*left, *fold.model.graph.output])
    return result


def at_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """A copy of ``model`` in an opset, where that changes nothing by itself or can be converted.

    Raises:
        ConversionError: It cannot.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    now = opsets(model).get("ai.onnx")
    if now == version:
        return result
    if now is None or all(_means_the_same(node, now, version) for node in all_nodes(model.graph)):
        others = [entry for entry in model.opset_import if entry.domain not in {"", "ai.onnx"}]
        del result.opset_import[:]
        result.opset_import.extend([helper.make_opsetid("", version), *others])
        return result
    try:
        return onnx.version_converter.convert_version(model, version)
    except (RuntimeError, ValueError) as error:
        raise ConversionError(
            f"pre- and postprocessing need opset {version}, which a graph of opset {now} cannot be "
            "turned into; export both with the same opset",
            code="fold-opset",
        ) from error


def _apply(steps: Sequence[Step], values: Values, sheet: Sheet) -> Values:
    for number, step in enumerate(steps):
        try:
            values = _step(step, values, sheet)
        except RecipeError as error:
            raise RecipeError(f"steps[{number}]: {error}", code=error.code) from error
    return values


def _step(step: Step, values: Values, sheet: Sheet) -> Values:
    if isinstance(step, Constant):
        return {**values, step.output: step.made(sheet)}
    if isinstance(step, Select):
        return {name: _known(values, name) for name in step.outputs}
    if step.input is None and len(values) != 1:
        raise RecipeError(
            f"there are {', '.join(values)}: say which with input = ...", code="bad-step"
        )
    name = step.input or next(iter(values))
    made = step.write(sheet, _known(values, name))
    values = {**values, step.output or name: made}
    if isinstance(step, TopK):
        values[step.places] = Value(f"{made.tensor}-1", "int64", made.rank)
    return values


def _check_type(value: Value, item: onnx.ValueInfoProto) -> None:
    wanted = numpy_name(item.type.tensor_type.elem_type)
    if value.dtype != wanted:
        raise RecipeError(
            f"the steps give {value.dtype} for input {item.name!r}, which takes {wanted}; end them "
            f'with op = "cast", to = "{wanted}"',
            code="fold-type",
        )


def _known(values: Values, name: str) -> Value:
    if name not in values:
        raise RecipeError(f"there is no {name!r}; there are {', '.join(values)}", code="bad-step")
    return values[name]


def _by_name_or_place(
    ours: Sequence[str], theirs: Sequence[str], what: str, other: str
) -> dict[str, str]:
    """Which of ``theirs`` each of ``ours`` goes with."""
    if len(ours) == len(theirs) == 1:
        return {ours[0]: theirs[0]}
    lost = [name for name in ours if name not in theirs]
    if lost or not ours:
        raise RecipeError(
            f"{what} {', '.join(map(repr, lost)) or 'none'} is no {other}; there are "
            f"{', '.join(theirs)}",
            code="fold-names",
        )
    return {name: name for name in ours}


def _named(sheet: Sheet, value: Value, name: str) -> str:
    """Give a value the name that it has outside of the sheet."""
    node = helper.make_node("Identity", [value.tensor], [name], name=f"{sheet.prefix}={name}")
    sheet.nodes.append(node)
    return name


def _graph(
    sheet: Sheet,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    opset: int,
) -> onnx.ModelProto:
    graph = helper.make_graph(sheet.nodes, "steps", inputs, outputs, initializer=sheet.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _check_names(model: onnx.ModelProto, fold: Fold, *, shared: set[str]) -> None:
    ours, theirs = _names(model.graph), _names(fold.model.graph)
    clash = sorted((ours & theirs) - shared)
    if clash:
        raise RecipeError(
            f"the model has {clash[0]!r} inside; call what goes in or comes out otherwise",
            code="fold-names",
        )


def _names(graph: onnx.GraphProto) -> set[str]:
    made = {name for node in graph.node for name in (*node.input, *node.output)}
    held = {tensor.name for tensor in graph.initializer}
    return (made | held | {item.name for item in graph.input}) - {""}


def _join(model: onnx.ModelProto, fold: Fold, nodes: Sequence[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    model.graph.initializer.extend(fold.model.graph.initializer)
    model.graph.value_info.extend(fold.model.graph.value_info)
    known = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(e for e in fold.model.opset_import if e.domain not in known)
    model.ir_version = max(model.ir_version, fold.model.ir_version)


def _means_the_same(node: onnx.NodeProto, one: int, two: int) -> bool:
    if node.domain not in {"", "ai.onnx"}:
        return True
    versions = [
        onnx.defs.get_schema(node.op_type, version).since_version
        if onnx.defs.has(node.op_type, version)
        else 0
        for version in (one, two)
    ]
    return versions[0] == versions[1] > 0


def _opset(model: onnx.ModelProto) -> int:
    """The opset that a model and what is folded into it are brought to."""
    return max(opsets(model).get("ai.onnx", TARGET_OPSET), MIN_OPSET)


def _inputs(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return {item.name: item for item in model.graph.input if item.name not in weights}


def _shaped(model: onnx.ModelProto) -> onnx.ModelProto:
    if all(item.type.tensor_type.HasField("shape") for item in model.graph.output):
        return model
    return onnx.shape_inference.infer_shapes(model)


def _value(item: onnx.ValueInfoProto) -> Value:
    kind = item.type.tensor_type
    if not kind.HasField("shape"):
        raise RecipeError(
            f"the model does not say which shape {item.name!r} has; export it with shapes",
            code="fold-shape",
        )
    return Value(item.name, numpy_name(kind.elem_type), len(kind.shape.dim))


def _output(tensor: str, like: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    kind = like.type.tensor_type
    return helper.make_tensor_value_info(tensor, kind.elem_type, [None] * len(kind.shape.dim))


def _input(tensor: str, like: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    made = onnx.ValueInfoProto()
    made.CopyFrom(like)
    made.name = tensor
    return made

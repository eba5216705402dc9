"""skl2onnx, told how to convert what it converts amiss by itself."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import onnx
import skl2onnx
from onnx import TensorProto, helper
from skl2onnx._supported_operators import sklearn_operator_name_map
from skl2onnx.common._registration import get_converter, register_converter
from skl2onnx.common.data_types import (
    DoubleTensorType,
    FloatTensorType,
    Int64TensorType,
    StringTensorType,
)
from skl2onnx.operator_converters.random_forest import (
    convert_sklearn_random_forest_classifier,
    convert_sklearn_random_forest_regressor_converter,
)
from sklearn import ensemble, tree
from sklearn.base import is_classifier, is_clusterer, is_regressor
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import FunctionTransformer

from edgepack_packager.errors import ConversionError
from edgepack_packager.graphs.clean import merge_opsets
from edgepack_packager.sources.boosters import register
from edgepack_packager.sources.columns import INPUT, Column, Layout
from edgepack_packager.sources.imputing import convert_imputer
from edgepack_packager.sources.steps import unconvertible
from edgepack_packager.sources.thresholds import TENSORS_SINCE, Converter, exactly

TARGET_OPSETS = {"": 17, "ai.onnx.ml": 3}
"""Given on purpose: the newest opset that the converter knows may be newer than the runtime's."""

LOCALE = "C.UTF-8"

_FLOAT_TREES = (
    tree.DecisionTreeClassifier, tree.DecisionTreeRegressor,
    tree.ExtraTreeClassifier, tree.ExtraTreeRegressor,
    ensemble.RandomForestClassifier, ensemble.RandomForestRegressor,
    ensemble.ExtraTreesClassifier, ensemble.ExtraTreesRegressor,
    ensemble.GradientBoostingClassifier, ensemble.GradientBoostingRegressor,
)  # fmt: skip
"""Trees that cast to float32 before they compare."""


def exact_converters(libraries: Sequence[str]) -> dict[type, Converter]:
    """Converters of all estimators that are trees, or made of them, by type.

    Args:
        libraries: Those of :mod:`edgepack_packager.sources.boosters` that are needed.

    Raises:
        ModelSourceError: One is not installed.
    """
    found = {
        kind: exactly(get_converter(sklearn_operator_name_map[kind]), "float32")
        for kind in _FLOAT_TREES
    }
    for kind, convert in (
        (ensemble.HistGradientBoostingClassifier, convert_sklearn_random_forest_classifier),
        (ensemble.HistGradientBoostingRegressor, convert_sklearn_random_forest_regressor_converter),
    ):
        found[kind] = exactly(partial(convert, op_version=TENSORS_SINCE), "float64")
    for library in libraries:
        found |= register(library)
    return found


def to_graph(
    model: Any, layout: Layout, exact: Mapping[type, Converter], *, double: bool
) -> onnx.ModelProto:
    """Convert a fitted model.

    Args:
        model: Fitted, and prepared by :mod:`edgepack_packager.sources.adapting`.
        layout: What it takes.
        exact: What :func:`exact_converters` gave.
        double: Whether inputs that are numbers are float64, or float32.

    Raises:
        ConversionError: A part of it has no ONNX form; the message names the step.
    """
    # zipmap would turn the scores into a sequence of maps, which no tensor protocol carries
    _allow_zipmap("SklearnLinearSVC")
    types = _input_types(layout, double=double)
    options = {id(model): {"zipmap": False}} if is_classifier(model) else None
    try:
        with warnings.catch_warnings():
            # the converters read attributes that scikit-learn is about to rename
            warnings.filterwarnings("ignore", message=r"Attribute `\w+` was deprecated")
            graph: onnx.ModelProto = skl2onnx.convert_sklearn(
                model,
                initial_types=types,
                options=options,
                target_opset=TARGET_OPSETS,
                custom_conversion_functions={**exact, SimpleImputer: convert_imputer},
            )
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError,
        TypeError, ValueError,
    ) as error:  # fmt: skip
        # what skl2onnx and the converters it calls raise for a model that they do not cope with
        raise ConversionError(_words(model, error), code="no-onnx-form") from error
    merge_opsets(graph)  # written in the order of a set, which differs from run to run
    if is_clusterer(model):
        # distances: the least of them wins, so that they must not pass for scores
        del graph.graph.output[1:]
    _set_locale(graph.graph)
    _restore_names(graph.graph, [name for name, _ in types])
    _drop_inputs(graph.graph, {item.name for item in layout.columns if item not in layout.fed})
    _settle_outputs(graph.graph, values=is_regressor(model), double=double)
    return graph


def _allow_zipmap(alias: str) -> None:
    """Let a converter be told what the parser asks of it anyhow."""
    found = get_converter(alias)
    allowed = found.get_allowed_options()
    if "zipmap" not in allowed:

        def same(scope: Any, operator: Any, container: Any) -> None:
            found(scope, operator, container)

        options = {**allowed, "zipmap": [True, False]}
        register_converter(alias, same, overwrite=True, options=options)


def _set_locale(graph: onnx.GraphProto) -> None:
    """Lower texts by the one locale that every glibc has; the default, en_US, few devices have."""
    for node in graph.node:
        if node.op_type == "StringNormalizer":
            kept = [item for item in node.attribute if item.name != "locale"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("locale", LOCALE)])


def _restore_names(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Call inputs as the columns are called: the converter makes identifiers of their names."""
    renamed = {item.name: name for item, name in zip(graph.input, names, strict=True)}
    for item in graph.input:
        item.name = renamed[item.name]
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _drop_inputs(graph: onnx.GraphProto, unused: set[str]) -> None:
    kept = [item for item in graph.input if item.name not in unused]
    del graph.input[:]
    graph.input.extend(kept)


def _settle_outputs(graph: onnx.GraphProto, *, values: bool, double: bool) -> None:
    """Give numbers as floats, and say no width that the converter only guessed."""
    for item in graph.output:
        kind = item.type.tensor_type
        if kind.elem_type in {TensorProto.FLOAT, TensorProto.DOUBLE}:
            if double:
                _cast_output(graph, item)
            if values:
                # the converter writes 1 for several values a row, too
                del kind.shape.dim[1:]
                kind.shape.dim.add()


def _cast_output(graph: onnx.GraphProto, item: onnx.ValueInfoProto) -> None:
    # a tree ensemble gives floats where the converter expects float64, so that what it says of an
    # output's type is no evidence
    inner = f"{item.name}-wide"
    for node in graph.node:
        names = [inner if name == item.name else name for name in node.output]
        node.output[:] = names
        node.input[:] = [inner if name == item.name else name for name in node.input]
    graph.node.append(helper.make_node("Cast", [inner], [item.name], to=TensorProto.FLOAT))
    item.type.tensor_type.elem_type = TensorProto.FLOAT


def _words(model: Any, error: Exception) -> str:
    found = unconvertible(model, _is_known)
    if found:
        return found
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"skl2onnx cannot convert this {type(model).__name__}: {lines[0]}"


def _is_known(part: Any) -> bool:
    if isinstance(part, FunctionTransformer) and part.func is not None:
        return False
    return type(part) in sklearn_operator_name_map


def _input_types(layout: Layout, *, double: bool) -> list[tuple[str, Any]]:
    number = DoubleTensorType if double else FloatTensorType
    if not layout.by_column:
        return [(INPUT, number([None, len(layout.columns)]))]
    # all of them, since a step may have been given columns by their places
    return [(column.name, _column_type(column, number)) for column in layout.columns]


def _column_type(column: Column, number: type) -> Any:
    kinds = {"text": StringTensorType, "category": Int64TensorType}
    return kinds.get(column.kind, number)([None, 1])

"""Fitted scikit-learn estimators and pipelines, with XGBoost's and LightGBM's, made into graphs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import skl2onnx
import sklearn
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
from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor

from edgepack_contract.description import Task
from edgepack_packager.errors import ConversionError, ModelSourceError
from edgepack_packager.sources.adapting import for_graph
from edgepack_packager.sources.answering import answer_of
from edgepack_packager.sources.boosters import describe_booster, library_of, register, tools_of
from edgepack_packager.sources.columns import INPUT, Column, Layout, read_layout
from edgepack_packager.sources.model import LoadContext, SourceModel, as_labels
from edgepack_packager.sources.probing import probe
from edgepack_packager.sources.steps import all_steps, last_step, unconvertible
from edgepack_packager.sources.thresholds import TENSORS_SINCE, Converter, exactly

TARGET_OPSETS = {"": 17, "ai.onnx.ml": 3}
"""Given on purpose: the newest opset that the converter knows may be newer than the runtime's."""

_FLOAT_TREES = (
    tree.DecisionTreeClassifier, tree.DecisionTreeRegressor,
    tree.ExtraTreeClassifier, tree.ExtraTreeRegressor,
    ensemble.RandomForestClassifier, ensemble.RandomForestRegressor,
    ensemble.ExtraTreesClassifier, ensemble.ExtraTreesRegressor,
    ensemble.GradientBoostingClassifier, ensemble.GradientBoostingRegressor,
)  # fmt: skip
"""Trees that cast to float32 before they compare."""


def convert_estimator(
    model: Any,
    context: LoadContext,
    *,
    digest: str,
    passes: Sequence[str],
    framework: str | None = None,
) -> SourceModel:
    """Convert a fitted estimator, whichever file it came from.

    Args:
        model: Fitted: an estimator of scikit-learn, XGBoost or LightGBM, or a pipeline that ends
            in one.
        context: The build's; rows of the data say which columns hold text.
        digest: Of what it came from.
        passes: What was done to get it.
        framework: What made it, with the version; None for what its type says.

    Raises:
        ModelSourceError: No estimator, not fitted, or of a library that is not installed.
        ConversionError: A part of it has no ONNX form; the message names the step.
    """
    if not hasattr(model, "get_params"):
        raise ModelSourceError(
            f"this is a {type(model).__name__}, not a fitted estimator of scikit-learn",
            code="not-an-estimator",
        )
    task = _task(model)
    libraries = sorted({name for _, part in all_steps(model) if (name := library_of(part))})
    exact = _exact_converters(libraries)
    layout = read_layout(model, context.columns)
    prepared = for_graph(model)
    graph = _convert(prepared, layout, exact, double=False)
    for (_, part), (_, changed) in zip(all_steps(model), all_steps(prepared), strict=True):
        if library_of(part):
            _check_boosted(part, changed, exact, context.folder / "probe")
    classes = _classes(model)
    return SourceModel(
        graph=graph,
        digest=digest,
        framework=framework or _framework(model),
        task=task,
        features=layout.features,
        classes=None if classes is None else tuple(str(label) for label in classes),
        answer=answer_of(model, layout, graph),
        tools=_tools(libraries),
        passes=(*passes, "skl2onnx"),
        wider=_wider(prepared, layout, exact),
    )


def _task(model: Any) -> Task:
    if is_classifier(model):
        if isinstance(getattr(model, "classes_", None), list):
            raise ConversionError(
                f"this {type(model).__name__} gives several labels a row; pack one model for each",
                code="multi-label",
            )
        return "classification"
    if is_regressor(model):
        return "regression"
    if (is_outlier_detector(model) or is_clusterer(model)) and hasattr(model, "predict"):
        return "classification"
    raise ConversionError(
        f"a {type(last_step(model)).__name__} gives neither labels nor values for new rows; "
        "classifiers, regressors, outlier detectors and clusterers with predict can be packed",
        code="unsupported-model",
    )


def _classes(model: Any) -> Sequence[Any] | None:
    if is_classifier(model):
        return [*as_labels(np.asarray(model.classes_))]
    if is_outlier_detector(model):
        return [-1, 1]
    count = getattr(last_step(model), "n_clusters", None) if is_clusterer(model) else None
    return None if count is None else range(count)


def _framework(model: Any) -> str:
    library = library_of(last_step(model))
    version = sklearn.__version__ if library is None else tools_of(library)[library]
    return f"{library or 'scikit-learn'} {version}"


def _tools(libraries: Sequence[str]) -> dict[str, str]:
    found = {
        name: importlib.metadata.version(name) for name in ("onnx", "scikit-learn", "skl2onnx")
    }
    for library in libraries:
        found |= tools_of(library)
    return found


def _exact_converters(libraries: Sequence[str]) -> dict[type, Converter]:
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


def _check_boosted(part: Any, prepared: Any, exact: Mapping[type, Converter], folder: Path) -> None:
    """Prove that what onnxmltools makes of ``part`` answers as it does: some of it does not."""
    layout = read_layout(part, {})
    graph = _convert(prepared, layout, exact, double=False)
    wrong, rows = probe(graph, answer_of(part, layout, graph), folder)
    if wrong:
        raise ConversionError(
            f"{describe_booster(part)} has no faithful ONNX form: what onnxmltools makes of it "
            f"answers otherwise on {wrong} of {rows} probing rows. Train it with another objective "
            "or booster: binary, multiclass and plain regression are known to work",
            code="not-faithful",
        )


def _wider(
    model: Any, layout: Layout, exact: Mapping[type, Converter]
) -> Callable[[], onnx.ModelProto] | None:
    """The same with numbers in float64, for models with trees."""
    if not any(type(part) in exact for _, part in all_steps(model)):
        return None
    return lambda: _convert(model, layout, exact, double=True)


def _convert(
    model: Any, layout: Layout, exact: Mapping[type, Converter], *, double: bool
) -> onnx.ModelProto:
    # zipmap would turn the scores into a sequence of maps, which no tensor protocol carries
    _allow_zipmap("SklearnLinearSVC")
    options = {id(model): {"zipmap": False}} if is_classifier(model) else None
    try:
        graph: onnx.ModelProto = skl2onnx.convert_sklearn(
            model,
            initial_types=_input_types(layout, double=double),
            options=options,
            target_opset=TARGET_OPSETS,
            custom_conversion_functions=dict(exact),
        )
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError,
        TypeError, ValueError,
    ) as error:  # fmt: skip
        # what skl2onnx and the converters it calls raise for a model that they do not cope with
        raise ConversionError(_words(model, error), code="no-onnx-form") from error
    if is_clusterer(model):
        # distances: the least of them wins, so that they must not pass for scores
        del graph.graph.output[1:]
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
    known = unconvertible(model, lambda part: type(part) in sklearn_operator_name_map)
    if known:
        return known
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"skl2onnx cannot convert this {type(model).__name__}: {lines[0]}"


def _input_types(layout: Layout, *, double: bool) -> list[tuple[str, Any]]:
    number = DoubleTensorType if double else FloatTensorType
    if not layout.by_column:
        return [(INPUT, number([None, len(layout.columns)]))]
    return [(column.name, _column_type(column, number)) for column in layout.fed]


def _column_type(column: Column, number: type) -> Any:
    kinds = {"text": StringTensorType, "category": Int64TensorType}
    return kinds.get(column.kind, number)([None, 1])

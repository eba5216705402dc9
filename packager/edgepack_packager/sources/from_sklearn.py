"""Fitted scikit-learn estimators and pipelines, with XGBoost's and LightGBM's, made into graphs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import sklearn
from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor

from edgepack_contract.description import Task
from edgepack_packager.errors import ConversionError, DataError, ModelSourceError
from edgepack_packager.sources.adapting import for_graph
from edgepack_packager.sources.answering import answer_of
from edgepack_packager.sources.boosters import (
    describe_booster,
    library_of,
    refuse_categories,
    tools_of,
)
from edgepack_packager.sources.columns import Layout, read_layout
from edgepack_packager.sources.graph_of import exact_converters, to_graph
from edgepack_packager.sources.model import LoadContext, SourceModel, as_labels
from edgepack_packager.sources.probing import probe
from edgepack_packager.sources.steps import all_steps, last_step
from edgepack_packager.sources.thresholds import Converter


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
        DataError: The data hold text where it takes numbers.
    """
    if not hasattr(model, "get_params"):
        raise ModelSourceError(
            f"this is a {type(model).__name__}, not a fitted estimator of scikit-learn",
            code="not-an-estimator",
        )
    task = _task(model)
    boosted = [part for _, part in all_steps(model) if library_of(part)]
    for part in boosted:
        refuse_categories(part)
    libraries = sorted({name for part in boosted if (name := library_of(part))})
    exact = exact_converters(libraries)
    layout = read_layout(model, context.columns)
    prepared = for_graph(model)
    try:
        graph = to_graph(prepared, layout, exact, double=False)
    except ConversionError as error:
        raise _text_column(model, layout.odd) if layout.odd else error from error
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


def _text_column(model: Any, names: Sequence[str]) -> DataError:
    return DataError(
        f"column {', '.join(names)} holds text, this {type(model).__name__} takes numbers there; "
        "one stray text makes texts of a whole column of a csv: mend it, encode the column, leave "
        "it out, or name the label if it is one",
        code="text-column",
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


def _check_boosted(part: Any, prepared: Any, exact: Mapping[type, Converter], folder: Path) -> None:
    """Prove that what onnxmltools makes of ``part`` answers as it does: some of it does not."""
    layout = read_layout(part, {})
    graph = to_graph(prepared, layout, exact, double=False)
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
    return lambda: to_graph(model, layout, exact, double=True)

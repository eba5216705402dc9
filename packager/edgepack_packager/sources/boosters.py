"""Estimators of XGBoost and LightGBM: how skl2onnx is made to know them."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
from skl2onnx import update_registered_converter
from skl2onnx.common.shape_calculator import (
    calculate_linear_classifier_output_shapes,
    calculate_linear_regressor_output_shapes,
)
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from edgepack_packager.errors import ConversionError
from edgepack_packager.sources.extras import require
from edgepack_packager.sources.thresholds import Converter, Native, exactly

_CLASSIFIER_OPTIONS = {
    "nocl": [True, False],
    "zipmap": [True, False, "columns"],
    "output_class_labels": [False, True],
    "raw_scores": [True, False],
}

_CONVERTERS = {
    "xgboost": ("onnxmltools.convert.xgboost.operator_converters.XGBoost", "convert_xgboost"),
    "lightgbm": ("onnxmltools.convert.lightgbm.operator_converters.LightGbm", "convert_lightgbm"),
}

_NATIVE: dict[str, Native] = {"xgboost": "float32", "lightgbm": "float64"}
"""The type that they compare in."""

_ESTIMATORS = {
    "xgboost": ("XGBClassifier", "XGBRegressor", "XGBRFClassifier", "XGBRFRegressor"),
    "lightgbm": ("LGBMClassifier", "LGBMRegressor"),
}


class LightGBMClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # untyped
    """What a LightGBM file with a classifier holds: the library can make no estimator of it."""

    def __init__(self, booster: Any, names: Sequence[str], classes: int) -> None:
        self.booster_ = booster
        self.classes_ = np.arange(classes)
        self.n_features_in_ = booster.num_feature()
        self.feature_names_in_ = np.array(names, dtype=object)
        self.boosting_type = "gbdt"

    def predict_proba(self, rows: Any) -> Any:
        """Shape (rows, classes)."""
        scores = np.asarray(self.booster_.predict(_plain(rows)))
        return scores if scores.ndim == 2 else np.column_stack([1 - scores, scores])

    def predict(self, rows: Any) -> Any:
        """Shape (rows,)."""
        return self.classes_[self.predict_proba(rows).argmax(axis=1)]


class LightGBMRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # untyped
    """What a LightGBM file with a regressor holds."""

    def __init__(self, booster: Any, names: Sequence[str]) -> None:
        self.booster_ = booster
        self.n_features_in_ = booster.num_feature()
        self.feature_names_in_ = np.array(names, dtype=object)
        self.boosting_type = "gbdt"

    def predict(self, rows: Any) -> Any:
        """Shape (rows,)."""
        return self.booster_.predict(_plain(rows))


def _plain(rows: Any) -> Any:
    """Without names, which the library spells in its own way in files."""
    return np.asarray(rows, dtype=np.float64)


def library_of(part: Any) -> str | None:
    """``xgboost`` or ``lightgbm`` when ``part`` is an estimator of theirs."""
    if isinstance(part, LightGBMClassifier | LightGBMRegressor):
        return "lightgbm"
    name = type(part).__module__.partition(".")[0]
    return name if name in _ESTIMATORS else None


def describe_booster(part: Any) -> str:
    """What ``part`` is and what it was trained for, in words."""
    objective = getattr(part, "objective", None) or getattr(part, "objective_", None)
    if objective is None and library_of(part) == "lightgbm":
        objective = part.booster_.dump_model(num_iteration=1)["objective"]
    return f"a model of {library_of(part)} with the objective {objective}"


def refuse_categories(part: Any) -> None:
    """Refuse an estimator that splits by categories: onnxmltools loses which is which.

    Raises:
        ConversionError: It does; the columns are named.
    """
    if library_of(part) == "lightgbm":
        infos = part.booster_.dump_model(num_iteration=1)["feature_infos"]
        found = [name for name, info in infos.items() if info.get("values")]
    else:
        booster = part.get_booster()
        kinds, names = booster.feature_types or (), booster.feature_names
        found = [
            names[place] if names else f"f{place}"
            for place, kind in enumerate(kinds)
            if kind == "c"
        ]
    if found:
        raise ConversionError(
            f"column {', '.join(found)} is split by categories, which have no faithful ONNX form; "
            "encode it first, with a OneHotEncoder or OrdinalEncoder in a pipeline, and train "
            "again",
            code="categorical-splits",
        )


def need(module: str, what: str) -> Any:
    """Import a library of the extra ``boosting``.

    Raises:
        ModelSourceError: It is not installed.
    """
    require(module.partition(".")[0], what=what)
    return importlib.import_module(module)


def register(library: str) -> dict[type, Converter]:
    """Make skl2onnx know the estimators of ``library``; their converters by type.

    Raises:
        ModelSourceError: The library, or onnxmltools, is not installed.
    """
    found = need(library, f"a model of {library}")
    module, name = _CONVERTERS[library]
    convert = getattr(need(module, f"converting a model of {library}"), name)
    exact = exactly(convert, _NATIVE[library])
    kinds = [getattr(found, name) for name in _ESTIMATORS[library]]
    if library == "lightgbm":
        kinds += [LightGBMClassifier, LightGBMRegressor]
    for kind in kinds:
        _register(kind, convert)
    return dict.fromkeys(kinds, exact)


def tools_of(library: str) -> dict[str, str]:
    """Versions of what loads and converts a model of ``library``."""
    found = need(library, f"a model of {library}")
    return {
        library: str(found.__version__),
        "onnxmltools": importlib.metadata.version("onnxmltools"),
    }


def _register(kind: type, convert: Converter) -> None:
    if kind.__name__.endswith("Classifier"):
        shapes, options = calculate_linear_classifier_output_shapes, _CLASSIFIER_OPTIONS
    else:
        shapes, options = calculate_linear_regressor_output_shapes, {"split": None}
    alias = f"Edgepack{kind.__name__}"
    update_registered_converter(kind, alias, shapes, convert, overwrite=True, options=options)

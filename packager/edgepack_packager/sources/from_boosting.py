"""XGBoost and LightGBM: their own model files, and their estimators inside of pipelines."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from skl2onnx import update_registered_converter
from skl2onnx.common.shape_calculator import (
    calculate_linear_classifier_output_shapes,
    calculate_linear_regressor_output_shapes,
)

from edgepack_packager.errors import ModelSourceError
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


def library_of(part: Any) -> str | None:
    """``xgboost`` or ``lightgbm`` when ``part`` is an estimator of theirs."""
    name = type(part).__module__.partition(".")[0]
    return name if name in _ESTIMATORS else None


def need(module: str, what: str) -> Any:
    """Import a library of the extra ``boosting``.

    Raises:
        ModelSourceError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModelSourceError(
            f"{what} needs {module.partition('.')[0]}: pip install 'edgepack[boosting]'",
            code="missing-extra",
        ) from error


def register(library: str) -> dict[type, Converter]:
    """Make skl2onnx know the estimators of ``library``; their converters by type.

    Raises:
        ModelSourceError: The library, or onnxmltools, is not installed.
    """
    found = need(library, f"a model of {library}")
    module, name = _CONVERTERS[library]
    convert = getattr(need(module, f"converting a model of {library}"), name)
    exact = exactly(convert, _NATIVE[library])
    return {
        _register(getattr(found, estimator), convert): exact for estimator in _ESTIMATORS[library]
    }


def tools_of(library: str) -> dict[str, str]:
    """Versions of what loads and converts a model of ``library``."""
    found = need(library, f"a model of {library}")
    return {
        library: str(found.__version__),
        "onnxmltools": importlib.metadata.version("onnxmltools"),
    }


def _register(kind: type, convert: Converter) -> type:
    if kind.__name__.endswith("Classifier"):
        shapes, options = calculate_linear_classifier_output_shapes, _CLASSIFIER_OPTIONS
    else:
        shapes, options = calculate_linear_regressor_output_shapes, {"split": None}
    alias = f"Edgepack{kind.__name__}"
    update_registered_converter(kind, alias, shapes, convert, overwrite=True, options=options)
    return kind

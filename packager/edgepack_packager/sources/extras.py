"""Packages that only some sources need, which an extra of edgepack installs."""

from __future__ import annotations

import importlib.util

from edgepack_packager.errors import ModelSourceError

_PACKAGES = {
    "torch": ("PyTorch", "torch"),
    "onnxscript": ("onnxscript", "torch"),
    "tensorflow": ("TensorFlow", "tensorflow"),
    "tf2onnx": ("tf2onnx", "tensorflow"),
    "mlflow": ("MLflow", "mlflow"),
    "xgboost": ("XGBoost", "boosting"),
    "lightgbm": ("LightGBM", "boosting"),
    "onnxmltools": ("onnxmltools", "boosting"),
}


def require(*modules: str, what: str) -> None:
    """Check that ``modules`` are installed, without importing them.

    Args:
        modules: Keys of the table above.
        what: What needs them, such as ``reading model.keras``.

    Raises:
        ModelSourceError: One is missing; the message says which extra has it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            name, extra = _PACKAGES[module]
            raise ModelSourceError(
                f"{what} needs {name}: pip install 'edgepack[{extra}]'", code="missing-extra"
            )

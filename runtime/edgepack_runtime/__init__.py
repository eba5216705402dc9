"""The device: serves models, installs them, and tells a fleet how they do.

>>> from edgepack_runtime import Model
>>> with Model("pump-1.0.0.edgepack", unsigned=True) as model:  # doctest: +SKIP
...     model.predict_rows([[20.5, 1.2, 0.4, 3.0]])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepack_runtime.in_process import Model

__all__ = ["Model"]

_HOMES = {"Model": "edgepack_runtime.in_process"}


def __getattr__(name: str) -> Any:
    # importing the package does nothing; numpy and onnxruntime come with the first model
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)

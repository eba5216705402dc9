"""Where models come from. Each source gives an ONNX graph and the source's own answers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepack_packager.errors import ModelSourceError
from edgepack_packager.recipe import code_name, is_reference
from edgepack_packager.sources.model import LoadContext, SourceModel

__all__ = ["LoadContext", "SourceModel", "load_source"]

Loader = Callable[[Path, LoadContext], SourceModel]


def load_source(path: Path, context: LoadContext) -> SourceModel:
    """Load the model at ``path`` by what its name, or what is in its folder, says it is.

    Args:
        path: A file or folder as the tables below say, ``module:function``, or a ``models:/`` URI.
        context: What a source may need besides.

    Raises:
        ModelSourceError: Another kind of file, unreadable, or loading it would run code.
        ConversionError: It has no ONNX form.
    """
    if code_name(path) is not None:
        return _load_code(path, context)
    if is_reference(path):
        return _load_registered(path, context)
    if path.is_dir():
        return _folder_loader(path)(path, context)
    loader = _LOADERS.get(path.suffix.lower())
    if loader is None:
        raise ModelSourceError(
            f"{path.name}: models are read from {', '.join(sorted(_LOADERS))}, from folders of "
            "SavedModel and MLflow, from models:/NAME/VERSION, and from module:function",
            code="model-type",
        )
    if not path.is_file():
        raise ModelSourceError(f"there is no model {path}", code="no-model")
    return loader(path, context)


def _folder_loader(path: Path) -> Loader:
    for name, loader in _FOLDERS.items():
        if (path / name).is_file():
            return loader
    raise ModelSourceError(
        f"the folder {path} holds no {' or '.join(_FOLDERS)}: it is neither a model of MLflow nor "
        "a SavedModel",
        code="model-type",
    )


def _late(module: str, name: str, **options: Any) -> Loader:
    """A loader whose module is imported when it is used: each takes a library of seconds."""

    def load(path: Path, context: LoadContext) -> SourceModel:
        found = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        source: SourceModel = found(path, context, **options)
        return source

    return load


_load_tensorflow = _late("tensorflow_files", "load_tensorflow")
_load_code = _late("from_code", "load_code")
_load_registered = _late("from_mlflow", "load_registered")
_LOADERS: dict[str, Loader] = {
    **dict.fromkeys((".json", ".ubj"), _late("from_boosting", "load_xgboost")),
    ".txt": _late("from_boosting", "load_lightgbm"),
    ".onnx": _late("from_onnx", "load_onnx"),
    ".skops": _late("from_skops", "load_skops"),
    ".pt2": _late("pickled", "load_trusted", kind="exported"),
    **dict.fromkeys((".keras", ".h5", ".hdf5", ".tflite"), _load_tensorflow),
    **dict.fromkeys(
        (".pkl", ".pickle", ".joblib", ".dill", ".pt", ".pth"), _late("pickled", "load_trusted")
    ),
}
_FOLDERS: dict[str, Loader] = {
    "MLmodel": _late("from_mlflow", "load_mlflow"),
    "saved_model.pb": _load_tensorflow,
}

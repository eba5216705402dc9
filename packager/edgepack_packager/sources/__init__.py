"""Where models come from. Each source gives an ONNX graph and the source's own answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
    code = code_name(path)
    if code is not None:
        return _load_code(*code, context)
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


# each imports a library that takes seconds, and a build needs one of them


def _load_code(module: str, name: str, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.from_code import load_code  # noqa: PLC0415

    return load_code(module, name, context)


def _load_registered(path: Path, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.from_mlflow import load_registered  # noqa: PLC0415

    return load_registered(str(path), context)


def _load_mlflow(path: Path, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.from_mlflow import load_mlflow  # noqa: PLC0415

    return load_mlflow(path, context)


def _load_tensorflow(path: Path, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.tensorflow_files import load_tensorflow  # noqa: PLC0415

    return load_tensorflow(path, context)


def _load_pickle(path: Path, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.pickled import load_trusted  # noqa: PLC0415

    return load_trusted(path, context)


def _load_exported(path: Path, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.pickled import load_trusted  # noqa: PLC0415

    return load_trusted(path, context, kind="exported")


def _load_onnx(path: Path, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.from_onnx import load_onnx  # noqa: PLC0415

    return load_onnx(path, context)


def _load_skops(path: Path, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.from_skops import load_skops  # noqa: PLC0415

    return load_skops(path, context)


def _load_xgboost(path: Path, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.from_boosting import load_xgboost  # noqa: PLC0415

    return load_xgboost(path, context)


def _load_lightgbm(path: Path, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.from_boosting import load_lightgbm  # noqa: PLC0415

    return load_lightgbm(path, context)


_LOADERS: dict[str, Loader] = {
    **dict.fromkeys((".json", ".ubj"), _load_xgboost),
    ".txt": _load_lightgbm,
    ".onnx": _load_onnx,
    ".skops": _load_skops,
    ".pt2": _load_exported,
    **dict.fromkeys((".keras", ".h5", ".hdf5", ".tflite"), _load_tensorflow),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".dill", ".pt", ".pth"), _load_pickle),
}
_FOLDERS: dict[str, Loader] = {"MLmodel": _load_mlflow, "saved_model.pb": _load_tensorflow}

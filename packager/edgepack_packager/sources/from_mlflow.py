"""MLflow: the folder of a model as MLflow writes it, and models of a registry by URI."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from edgepack_contract.limits import MIB
from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.errors import ModelSourceError
from edgepack_packager.sources.extras import require
from edgepack_packager.sources.files import read_bounded
from edgepack_packager.sources.model import LoadContext, SourceModel

DESCRIPTION = "MLmodel"
DESCRIPTION_BYTES = 4 * MIB
EXAMPLE_BYTES = 16 * MIB
EXAMPLE_ROWS = 16

Flavor = Mapping[str, Any]
Opener = Callable[["Folder", Flavor, LoadContext], SourceModel]


class Folder:
    """A model's folder; nothing outside of it is ever opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def inside(self, text: object) -> Path:
        """The file or folder that ``text`` names.

        Raises:
            ModelSourceError: It is missing, or leads out of the folder.
        """
        if not isinstance(text, str) or not text:
            raise ModelSourceError(
                f"{DESCRIPTION} in {self.path} does not say where the model is", code="bad-mlmodel"
            )
        plain = PurePosixPath(text)
        found = self.path / plain
        outside = plain.is_absolute() or ".." in plain.parts
        if outside or not found.resolve().is_relative_to(self.path.resolve()):
            raise ModelSourceError(
                f"{DESCRIPTION} in {self.path} names {text!r}, which is outside of the folder",
                code="unsafe-path",
            )
        if not found.exists():
            raise ModelSourceError(
                f"{DESCRIPTION} in {self.path} names {text!r}, which is missing", code="bad-mlmodel"
            )
        return found


def load_mlflow(path: Path, context: LoadContext) -> SourceModel:
    """Load the folder of a model.

    The first flavor of the table below that the folder has is read. A pickle in it is refused as
    any other, unless it is trusted. Its input example stands in for rows where there are none, and
    its signature names the columns of an only input.

    Raises:
        ModelSourceError: It cannot be read, or has none of these flavors.
        ConversionError: The model has no ONNX form.
    """
    described = _description(path)
    folder = Folder(path)
    flavors = described.get("flavors")
    known = [name for name in _FLAVORS if isinstance(flavors, dict) and name in flavors]
    if not isinstance(flavors, dict) or not known:
        found = ", ".join(sorted(map(str, flavors))) if isinstance(flavors, dict) else "none"
        raise ModelSourceError(
            f"{path} has flavor {found}; one of {', '.join(_FLAVORS)} is read", code="no-flavor"
        )
    flavor = flavors[known[0]]
    example = _example(folder, described)
    if not context.columns and example:
        context = replace(context, columns=example)
    source = _FLAVORS[known[0]](folder, flavor if isinstance(flavor, dict) else {}, context)
    source = replace(source, passes=("load-mlflow", *source.passes))
    return _with_names(_with_sample(source, example), _names(described))


def load_registered(path: Path, context: LoadContext) -> SourceModel:
    """Fetch ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS`` and load it.

    Where the registry is, and the credentials for it, are MLflow's to know: its environment.

    Raises:
        ModelSourceError: MLflow is missing, or cannot fetch it.
        ConversionError: The model has no ONNX form.
    """
    uri = str(path)
    require("mlflow", what=f"reading {uri}")
    # MLflow 3 sends usage data to its maker unless told not to before it is imported
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow  # noqa: PLC0415 - seconds
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    place = context.folder / "registered"
    place.mkdir(parents=True)
    try:
        found = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(place))
    except (MlflowException, OSError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelSourceError(
            # its address is not repeated: it may hold a password
            f"MLflow does not give {uri}: {first[0]}. Is MLFLOW_TRACKING_URI set?",
            code="no-model",
        ) from error
    return load_mlflow(Path(found), context)


def _description(path: Path) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - only here

    raw = read_bounded(path / DESCRIPTION, DESCRIPTION_BYTES)
    if b"&" in raw and b"*" in raw:
        # anchors let a small file stand for a huge one, and MLflow writes none
        _refuse_anchors(raw, path)
    try:
        # the loader in C, where there is one: documents of pip requirements are long
        found = yaml.load(raw, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _bad(path, f"it is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise _bad(path, "it is no mapping")
    return found


def _refuse_anchors(raw: bytes, path: Path) -> None:
    import yaml  # noqa: PLC0415 - only here

    try:
        aliased = any(isinstance(token, yaml.AliasToken) for token in yaml.scan(raw))
    except yaml.YAMLError as error:
        raise _bad(path, f"it is no YAML: {error}") from error
    if aliased:
        raise _bad(path, "it has aliases")


def _bad(path: Path, words: str) -> ModelSourceError:
    return ModelSourceError(f"{path / DESCRIPTION} cannot be read: {words}", code="bad-mlmodel")


def _open_onnx(folder: Folder, flavor: Flavor, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.from_onnx import load_onnx  # noqa: PLC0415

    return load_onnx(folder.inside(flavor.get("data")), context)


def _open_sklearn(folder: Folder, flavor: Flavor, context: LoadContext) -> SourceModel:
    return _open_estimator(folder.inside(flavor.get("pickled_model")), context)


def _open_xgboost(folder: Folder, flavor: Flavor, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.from_boosting import load_xgboost  # noqa: PLC0415

    return load_xgboost(folder.inside(flavor.get("data")), context)


def _open_lightgbm(folder: Folder, flavor: Flavor, context: LoadContext) -> SourceModel:
    path = folder.inside(flavor.get("data"))
    if path.suffix != ".lgb":
        return _open_estimator(path, context)
    from edgepack_packager.sources.from_boosting import load_lightgbm  # noqa: PLC0415

    return load_lightgbm(path, context)


def _open_estimator(path: Path, context: LoadContext) -> SourceModel:
    if path.suffix == ".skops":
        from edgepack_packager.sources.from_skops import load_skops  # noqa: PLC0415

        return load_skops(path, context)
    from edgepack_packager.sources.pickled import load_trusted  # noqa: PLC0415

    return load_trusted(path, context)


def _open_torch(folder: Folder, flavor: Flavor, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.pickled import load_trusted  # noqa: PLC0415

    data = folder.inside(flavor.get("model_data", "data"))
    exported = data / "model.pt2"
    if exported.is_file():
        return load_trusted(exported, context, kind="exported")
    return load_trusted(folder.inside(f"{data.relative_to(folder.path)}/model.pth"), context)


def _open_tensorflow(folder: Folder, flavor: Flavor, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.tensorflow_files import load_tensorflow  # noqa: PLC0415

    if flavor.get("model_type") == "tf2-module" or "saved_model_dir" in flavor:
        return load_tensorflow(folder.inside(flavor.get("saved_model_dir")), context)
    data = folder.inside(flavor.get("data", "data"))
    for place in ("model.keras", "model.h5", "model"):
        if (data / place).exists():
            path = folder.inside(str((data / place).relative_to(folder.path)))
            return load_tensorflow(path, context)
    raise ModelSourceError(f"{data} holds no Keras model and no SavedModel", code="bad-mlmodel")


_FLAVORS: dict[str, Opener] = {
    "onnx": _open_onnx,
    "sklearn": _open_sklearn,
    "xgboost": _open_xgboost,
    "lightgbm": _open_lightgbm,
    "pytorch": _open_torch,
    "tensorflow": _open_tensorflow,
    "keras": _open_tensorflow,
}
"""In the order of preference: what needs least to be read comes first."""


def _names(described: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the columns in the signature."""
    signature = described.get("signature")
    if not isinstance(signature, dict) or not isinstance(signature.get("inputs"), str):
        return None
    try:
        specs = json.loads(signature["inputs"])
    except (ValueError, RecursionError):
        return None
    if not isinstance(specs, list) or not all(isinstance(spec, dict) for spec in specs):
        return None
    names = [spec.get("name") for spec in specs]
    return tuple(map(str, names)) if all(isinstance(name, str) for name in names) else None


def _example(folder: Folder, described: Mapping[str, Any]) -> Feeds:
    """A few rows of the input example by column or array; none when there is none to be read."""
    info = described.get("saved_input_example_info")
    if not isinstance(info, dict) or info.get("type") not in {"dataframe", "ndarray"}:
        return {}
    path = folder.inside(info.get("artifact_path"))
    try:
        found = json.loads(read_bounded(path, EXAMPLE_BYTES))
        arrays = _frame(found) if info["type"] == "dataframe" else _arrays(found)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelSourceError(
            f"{path} is no input example of MLflow: {error}", code="bad-mlmodel"
        ) from error
    return {name: array[:EXAMPLE_ROWS] for name, array in arrays.items() if array.ndim}


def _frame(found: Any) -> Feeds:
    columns = [str(name) for name in found["columns"]]
    cells = list(zip(*found["data"], strict=True))
    if len(cells) != len(columns):
        raise ValueError("its rows are not as long as its header")
    return {name: np.array(values) for name, values in zip(columns, cells, strict=True)}


def _arrays(found: Any) -> Feeds:
    given = found.get("inputs", found) if isinstance(found, dict) else found
    named = given if isinstance(given, dict) else {"input": given}
    return {str(name): np.array(values) for name, values in named.items()}


def _with_sample(source: SourceModel, example: Feeds) -> SourceModel:
    inputs = [item.name for item in source.graph.graph.input]
    if source.sample is not None or not example:
        return source
    if all(name in example for name in inputs):
        return replace(source, sample={name: _rows(example[name]) for name in inputs})
    numeric = all(array.dtype.kind in "biuf" for array in example.values())
    if len(inputs) == 1 and numeric:
        arrays = list(example.values())
        joined = arrays[0] if len(arrays) == 1 else np.column_stack(arrays)
        return replace(source, sample={inputs[0]: joined})
    return source


def _rows(array: Array) -> Array:
    return array[:, None] if array.ndim == 1 else array


def _with_names(source: SourceModel, names: tuple[str, ...] | None) -> SourceModel:
    """The signature's names for the columns of an only input that has none."""
    inputs = source.graph.graph.input
    if source.features is not None or names is None or len(inputs) != 1:
        return source
    sizes = inputs[0].type.tensor_type.shape.dim
    if len(sizes) != 2 or sizes[1].dim_value != len(names):
        return source
    return replace(source, features=names)

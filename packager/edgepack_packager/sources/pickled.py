"""Pickles: code that builds a model when it is loaded. Loaded in a child, and only when trusted."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepack_packager.data.rows import Feeds
from edgepack_packager.errors import ModelSourceError
from edgepack_packager.sources.extras import require
from edgepack_packager.sources.in_child import load_in_child
from edgepack_packager.sources.model import LoadContext, SourceModel
from edgepack_packager.sources.objects import convert_object
from edgepack_packager.sources.wire import Kind

_INSTEAD = {
    "pickle": "Save the model with skops.io.dump(model, 'model.skops') instead, or",
    "exported": "Name the code that makes the model, as module:function, or",
}

_IN_SCRIPT = (
    ". Its class stands in the script that saved it: move it into a module, import it from there, "
    "and save again"
)


def load_trusted(
    path: Path, context: LoadContext, *, kind: Kind = "pickle", sample: Feeds | None = None
) -> SourceModel:
    """Load a file whose loading runs code that is in it, if the user trusts it, in a child.

    Args:
        path: The file.
        context: The build's, which says whether pickles are trusted.
        kind: How the child loads it.
        sample: Example inputs, where another file has them.

    Raises:
        ModelSourceError: ``pickle``: it is not trusted; ``no-sandbox``: it cannot be shut in here.
        ConversionError: It has no ONNX form.
    """
    if context.trust_pickle == "no":
        raise ModelSourceError(
            f"{path.name} is a pickle, or holds some: loading it would run whatever code is in it. "
            f"{_INSTEAD[kind]}, if you trust who made it, give --trust-pickle: it is then loaded "
            "in a process without network, that sees no files but it and the installed packages",
            code="pickle",
        )
    if kind == "exported" or _LOADERS.get(path.suffix.lower()) is _load_torch:
        require("torch", "onnxscript", what=f"reading {path.name}")
    enclosed = context.trust_pickle == "sandboxed"
    try:
        return load_in_child(kind, path, context, enclosed=enclosed, sample=sample)
    except ModelSourceError as error:
        if error.code != "no-sandbox":
            raise
        raise ModelSourceError(
            f"{error}. If you trust the file with everything that you may do here, give "
            "--trust-pickle=unsandboxed",
            code="no-sandbox",
        ) from error


def load_pickle(
    path: Path, context: LoadContext, *, digest: str, sample: Feeds | None
) -> SourceModel:
    """Unpickle and convert. Only ever called inside of a child.

    Raises:
        ModelSourceError: It holds no model, or one that needs a package that is missing.
        ConversionError: The model has no ONNX form.
    """
    load = _LOADERS.get(path.suffix.lower(), _load_joblib)
    try:
        model = load(path)
    except ModuleNotFoundError as error:
        raise ModelSourceError(
            f"{path.name} needs the Python module {error.name!r}: install it, or run the build in "
            "the folder that has it",
            code="missing-module",
        ) from error
    except (pickle.UnpicklingError, EOFError, AttributeError) as error:
        hint = _IN_SCRIPT if "__main__" in str(error) else ""
        raise ModelSourceError(
            f"{path.name} cannot be unpickled: {error}{hint}", code="load-failed"
        ) from error
    source = convert_object(model, context, digest=digest, passes=("load-pickle",), sample=sample)
    return replace(source, digest=digest)


def _load_joblib(path: Path) -> Any:
    import joblib  # noqa: PLC0415 - it comes with scikit-learn

    # it reads plain pickles too, and many write its own format under the name .pkl
    return joblib.load(path)


def _load_dill(path: Path) -> Any:
    if importlib.util.find_spec("dill") is None:
        raise ModelSourceError(
            f"reading {path.name} needs dill: pip install dill", code="missing-extra"
        )
    with path.open("rb") as stream:
        return importlib.import_module("dill").load(stream)


def _load_torch(path: Path) -> Any:
    import torch  # noqa: PLC0415 - seconds

    return torch.load(path, map_location="cpu", weights_only=False)


_LOADERS: dict[str, Callable[[Path], Any]] = {
    ".dill": _load_dill,
    ".pt": _load_torch,
    ".pth": _load_torch,
}

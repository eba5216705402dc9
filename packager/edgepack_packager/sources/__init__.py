"""Where models come from. Each source gives an ONNX graph and the source's own answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgepack_packager.errors import ModelSourceError
from edgepack_packager.sources.model import LoadContext, SourceModel

__all__ = ["LoadContext", "SourceModel", "load_source"]

Loader = Callable[[Path, LoadContext], SourceModel]

_PICKLES = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth", ".dill"})


def load_source(path: Path, context: LoadContext) -> SourceModel:
    """Load the model at ``path`` by what its name says it is.

    Args:
        path: A file, as the table below says.
        context: What a source may need besides.

    Raises:
        ModelSourceError: Another kind of file, unreadable, or loading it would run code.
        ConversionError: It has no ONNX form.
    """
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise ModelSourceError(
            f"{path.name} is a pickle: loading it would run whatever code is in it. "
            "Save the model with skops.io.dump(model, 'model.skops') instead",
            code="pickle",
        )
    loader = _LOADERS.get(suffix)
    if loader is None:
        raise ModelSourceError(
            f"{path.name}: models are read from {', '.join(sorted(_LOADERS))}", code="model-type"
        )
    if not path.is_file():
        raise ModelSourceError(f"there is no model {path}", code="no-model")
    return loader(path, context)


def _load_onnx(path: Path, context: LoadContext) -> SourceModel:
    from edgepack_packager.sources.from_onnx import load_onnx  # noqa: PLC0415

    return load_onnx(path, context)


def _load_skops(path: Path, context: LoadContext) -> SourceModel:
    # scikit-learn takes seconds to import, and an ONNX file needs none of it
    from edgepack_packager.sources.from_skops import load_skops  # noqa: PLC0415

    return load_skops(path, context)


_LOADERS: dict[str, Loader] = {".onnx": _load_onnx, ".skops": _load_skops}

"""``module:function``: code that the user names, and which therefore runs in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepack_packager.code import load_function, said_by_code
from edgepack_packager.errors import ModelSourceError
from edgepack_packager.sources.digests import graph_digest
from edgepack_packager.sources.model import LoadContext, SourceModel
from edgepack_packager.sources.objects import Axes, convert_object


def load_code(path: Path, context: LoadContext) -> SourceModel:
    """Call what ``path`` names as ``module:function`` and convert what it returns.

    It returns ``(model, example)`` or ``(model, example, axes)`` for a PyTorch module; an ONNX
    model, a Keras model or a fitted estimator alone. The digest is that of the graph, since files
    that the code reads are not known.

    Raises:
        RecipeError: It is not there, or cannot be imported.
        ModelSourceError: It fails, or gives no model.
        ConversionError: The model has no ONNX form.
    """
    what = str(path)
    returned = _call(load_function(path), what)
    model, example, axes = _parts(returned, what)
    source = convert_object(
        model, context, digest="", passes=("call-code",), example=example, axes=axes
    )
    return replace(source, digest=graph_digest(source.graph))


def _call(function: Callable[[], Any], what: str) -> Any:
    try:
        return function()
    except Exception as error:  # the user's code, which may raise anything
        raise ModelSourceError(
            f"{what} fails: {said_by_code(error)}", code="code-failed"
        ) from error


def _parts(returned: Any, what: str) -> tuple[Any, Any, Axes | None]:
    if not isinstance(returned, tuple):
        return returned, None, None
    if len(returned) not in {2, 3}:
        raise ModelSourceError(
            f"{what} returns {len(returned)} things; (model, example input) is expected, or a "
            "model alone",
            code="bad-return",
        )
    model, example, axes = (*returned, None)[:3]
    if axes is not None and not _are_axes(axes):
        raise ModelSourceError(
            f"{what}: open axes are written as {{'input': {{1: 'length'}}}}", code="bad-return"
        )
    return model, example, axes


def _are_axes(axes: Any) -> bool:
    return isinstance(axes, Mapping) and all(
        isinstance(named, Mapping)
        and all(isinstance(axis, int) and isinstance(text, str) for axis, text in named.items())
        for named in axes.values()
    )

"""Models that are Python objects already, whatever made them: told apart and converted."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from edgepack_packager.data.rows import Feeds
from edgepack_packager.errors import ModelSourceError
from edgepack_packager.sources.extras import require
from edgepack_packager.sources.given import check_embedded
from edgepack_packager.sources.model import LoadContext, SourceModel

Axes = Mapping[str, Mapping[int, str]]
"""By input, the names of axes whose length is open, besides the first."""


def convert_object(
    model: Any,
    context: LoadContext,
    *,
    digest: str,
    passes: Sequence[str],
    example: Any = None,
    axes: Axes | None = None,
    sample: Feeds | None = None,
) -> SourceModel:
    """Convert a model in memory.

    Args:
        model: A PyTorch module, an ONNX model, a Keras model, or a fitted estimator.
        context: The build's; its rows are examples where there are no other.
        digest: Of what it came from.
        passes: What was done to get it.
        example: What PyTorch code calls it with.
        axes: Which axes are open, for a PyTorch module.
        sample: Arrays by the names of inputs, instead of ``example``.

    Raises:
        ModelSourceError: It is no model, or of a library that is not installed.
        ConversionError: It has no ONNX form.
    """
    if isinstance(model, onnx.ModelProto):
        return _given_graph(model, digest, passes)
    # what is not imported cannot have made the object, and importing takes seconds
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    if torch is not None and isinstance(model, torch.nn.Module):
        require("onnxscript", what="exporting a PyTorch module")
        from edgepack_packager.sources.from_torch import convert_module, example_from  # noqa: PLC0415

        given = example if example is not None else example_from(model, sample or context.columns)
        return convert_module(model, given, digest=digest, passes=passes, axes=axes or {})
    if keras is not None and isinstance(model, keras.Model):
        require("tf2onnx", what="converting a Keras model")
        from edgepack_packager.sources.from_tensorflow import convert_keras  # noqa: PLC0415

        return convert_keras(model, digest=digest, passes=passes)
    if isinstance(model, Mapping) or not hasattr(model, "predict"):
        raise ModelSourceError(_no_model(model), code="no-model-inside")
    from edgepack_packager.sources.from_sklearn import convert_estimator  # noqa: PLC0415

    return convert_estimator(model, context, digest=digest, passes=passes)


def _given_graph(graph: onnx.ModelProto, digest: str, passes: Sequence[str]) -> SourceModel:
    check_embedded(graph, "the code")
    return SourceModel(
        graph=graph,
        digest=digest,
        framework="onnx",
        task=None,
        features=None,
        classes=None,
        answer=None,
        tools={"onnx": importlib.metadata.version("onnx")},
        passes=tuple(passes),
    )


def _no_model(found: Any) -> str:
    kind = f"{type(found).__module__}.{type(found).__qualname__}"
    if isinstance(found, Mapping) and all(hasattr(value, "dtype") for value in found.values()):
        return (
            "this holds the weights of a model and not the model (a state_dict): write a function "
            "that makes the model, loads them and returns it with an example input, and build "
            "module:function"
        )
    return (
        f"this holds a {kind}, which is no model that can be packed: a fitted estimator, a PyTorch "
        "module, a Keras model or an ONNX model is"
    )

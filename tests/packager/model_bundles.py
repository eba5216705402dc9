"""Bundles with models that onnxruntime loads, written without a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bundle_samples import FILES, describe
from tests.packager.models import mlp

from edgepack_contract.layout import BundleContent, VariantContent, write_bundle
from edgepack_packager.graphs.running import model_files, save_model


def changed(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """The same graph with other values in some constants."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in names:
            values = onnx.numpy_helper.to_array(tensor) + np.float32(1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return copy


def variant(
    folder: Path, model: onnx.ModelProto, name: str = "generic", **said: Any
) -> VariantContent:
    """A variant with a real graph, saved as a build saves it."""
    place = folder / f"{name}-{len(list(folder.iterdir()))}"
    save_model(model, place)
    return VariantContent(describe(variant=name, **said), {**FILES, **model_files(place)})


def bundle(path: Path, *variants: VariantContent) -> Path:
    """Write a bundle; returns where it is."""
    write_bundle(path, BundleContent(list(variants)))
    return path


def wide() -> onnx.ModelProto:
    """A graph over 1 MiB, whose weights lie in a file beside it."""
    return mlp(features=8, hidden=40_000)

"""Keras, SavedModel and TFLite models: a child with TensorFlow reads, converts and answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgepack_packager.errors import ModelSourceError
from edgepack_packager.sources.extras import require
from edgepack_packager.sources.in_child import load_in_child
from edgepack_packager.sources.model import LoadContext, SourceModel
from edgepack_packager.sources.wire import Kind

KINDS: dict[str, Kind] = {
    ".keras": "keras", ".h5": "keras", ".hdf5": "keras", ".tflite": "tflite",
}  # fmt: skip


def load_tensorflow(path: Path, context: LoadContext) -> SourceModel:
    """Load a file of Keras or TFLite, or a SavedModel folder.

    None of them is a pickle, and Keras runs none of the code that a file may hold. Graphs may touch
    files all the same, so the child is shut in where the kernel allows it, and a warning says when
    it is not.

    Raises:
        ModelSourceError: It cannot be read, or TensorFlow is missing.
        ConversionError: It has no ONNX form.
    """
    require("tensorflow", "tf2onnx", what=f"reading {path.name}")
    kind = KINDS.get(path.suffix.lower(), "savedmodel")
    try:
        return load_in_child(kind, path, context, enclosed=True)
    except ModelSourceError as error:
        if error.code != "no-sandbox":
            raise
        source = load_in_child(kind, path, context, enclosed=False)
        warning = f"TensorFlow ran with access to this machine's files and network: {error}"
        return replace(source, warnings=(*source.warnings, warning))

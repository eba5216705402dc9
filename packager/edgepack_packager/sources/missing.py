"""Missing texts: NaN or None where scikit-learn sees them, an empty text where a graph does.

ONNX has no missing string, and so neither have the device's protocols. A graph therefore takes the
empty text for a missing one wherever the model knows missing texts, and the source's own answers
are asked for with the marker that it was fitted with.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgepack_packager.data.rows import Array
from edgepack_packager.sources.columns import is_missing
from edgepack_packager.sources.steps import all_steps

EMPTY = ""


def marker(model: Any) -> object:
    """What ``model`` was fitted with where a text is missing: NaN or None, else an empty text."""
    for _, part in all_steps(model):
        for categories in textual(part):
            for value in categories.tolist():
                if is_missing(value):
                    return value
        if fills_texts(part) and is_missing(part.missing_values):
            return part.missing_values
    return EMPTY


def with_marker(values: Array, missing: object) -> Array:
    """Texts, shape (rows,), with ``missing`` where there is none.

    Whole numbers are written out, as onnxruntime writes them when it is given them for texts.
    """
    if values.dtype.kind in "iu":
        return values.astype(str).astype(object)
    gone = np.array([is_missing(value) or value == EMPTY for value in values], dtype=bool)
    marked = values.astype(object)
    marked[gone] = missing
    return marked


def fills_texts(part: Any) -> bool:
    """Whether ``part`` is an imputer of texts."""
    return type(part).__name__ == "SimpleImputer" and any(
        isinstance(value, str) for value in part.statistics_
    )


def textual(part: Any) -> list[Array]:
    """The categories of an encoder's columns of texts; none for anything else."""
    return [
        np.asarray(values)
        for values in getattr(part, "categories_", ())
        if np.asarray(values).dtype.kind in "OU"
    ]

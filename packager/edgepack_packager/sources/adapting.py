"""Small changes to a copy of a fitted model, without which the converter errs or gives up."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from edgepack_packager.data.rows import Array
from edgepack_packager.errors import ConversionError
from edgepack_packager.sources.boosters import library_of
from edgepack_packager.sources.columns import is_missing
from edgepack_packager.sources.missing import EMPTY, fills_texts, textual
from edgepack_packager.sources.steps import all_steps

_SOFTMAX = "multi:softmax"


def for_graph(model: Any) -> Any:
    """The model as the converter copes with it; itself when nothing has to change.

    Missing texts become the empty text, as :mod:`edgepack_packager.sources.missing` says.

    Raises:
        ConversionError: A graph cannot tell missing from unknown as this model does.
    """
    if not any(_needs_change(part) for _, part in all_steps(model)):
        return model
    changed = copy.deepcopy(model)
    for path, part in all_steps(changed):
        _change(part, "/".join(path))
    return changed


def _needs_change(part: Any) -> bool:
    kind = type(part).__name__
    if library_of(part) == "xgboost":
        return part.get_booster().feature_names is not None or part.objective == _SOFTMAX
    if kind == "SimpleImputer":
        return fills_texts(part) or isinstance(part.missing_values, int)
    if kind.startswith("Voting"):
        return bool(getattr(part, "flatten_transform", False))
    return any(_has_missing(values) for values in textual(part))


def _change(part: Any, path: str) -> None:
    kind = type(part).__name__
    if library_of(part) == "xgboost":
        _change_xgboost(part)
    elif fills_texts(part):
        part.missing_values = EMPTY
    elif kind == "SimpleImputer" and isinstance(part.missing_values, int):
        part.missing_values = float(part.missing_values)
    elif kind.startswith("Voting"):
        part.flatten_transform = False  # it shapes what transform gives, never what predict does
    elif kind == "OrdinalEncoder":
        _change_ordinal(part, path)
    elif kind == "OneHotEncoder":
        part.categories_ = [_with_empty(values) for values in part.categories_]


def _with_empty(values: Array) -> Array:
    if values.dtype.kind not in "OU":
        return values
    return np.array([EMPTY if is_missing(value) else value for value in values], dtype=object)


def _change_xgboost(part: Any) -> None:
    """The converter reads columns by their numbers, and writes no scores for the other softmax."""
    booster = part.get_booster()
    booster.feature_names, booster.feature_types = None, None
    if part.objective == _SOFTMAX:
        part.objective = "multi:softprob"


def _change_ordinal(part: Any, path: str) -> None:
    """Let the code of a missing text be one that the converter can write."""
    gone = [
        place
        for place, values in enumerate(part.categories_)
        if values.dtype.kind in "OU" and _has_missing(values)
    ]
    if not gone:
        return
    code = part.encoded_missing_value
    if is_missing(code) and (part.handle_unknown == "error" or is_missing(part.unknown_value)):
        # unknown and missing texts get the same code, and the missing one leaves the list
        part.handle_unknown, part.unknown_value = "use_encoded_value", np.nan
        part.categories_ = [_without_missing(values) for values in part.categories_]
        return
    if any(len(part.categories_[place]) - 1 != code for place in gone):
        raise ConversionError(
            f"step {path!r}, an OrdinalEncoder, gives missing texts the code {code}, which has no "
            "ONNX form beside its code for unknown ones; fill missing texts with a SimpleImputer "
            "before it, or set unknown_value to the same code",
            code="missing-category",
        )
    part.categories_ = [_with_empty(values) for values in part.categories_]


def _has_missing(values: Array) -> bool:
    return any(is_missing(value) for value in values.tolist())


def _without_missing(values: Array) -> Array:
    return np.array([value for value in values if not is_missing(value)], dtype=values.dtype)

"""What a scikit-learn model takes: one row of numbers, or columns of several types."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline

from edgepack_packager.data.rows import Array
from edgepack_packager.errors import ConversionError, ModelSourceError

INPUT = "input"
"""The name of the only input of a model that takes numbers."""

TEXT = "text"
"""The name of the only input of a model that takes documents, where the data have none."""

Kind = Literal["number", "category", "text", "unused"]
"""What a column holds: ``category`` are whole numbers that stand for something."""

_ENCODERS = frozenset({"OneHotEncoder", "OrdinalEncoder", "TargetEncoder"})
_MADE_UP = re.compile(r"\AColumn_\d+\Z")
"""What LightGBM calls columns that had no names."""

_VECTORIZERS = frozenset({"CountVectorizer", "HashingVectorizer", "TfidfVectorizer"})


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the rows a model was fitted on."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Layout:
    """What a model takes.

    Attributes:
        columns: In the order it was fitted on.
        named: Whether it was fitted on named columns, and so wants them by name again.
        documents: Whether it takes one text a row, and no table.
        odd: Columns with texts in the data where the fitted parts seem to take numbers.
    """

    columns: tuple[Column, ...]
    named: bool
    documents: bool = False
    odd: tuple[str, ...] = ()

    @property
    def by_column(self) -> bool:
        """Whether each column is an input of its own, because they differ in type."""
        return any(column.kind in {"category", "text"} for column in self.columns)

    @property
    def fed(self) -> tuple[Column, ...]:
        """The columns that the model looks at, when each is an input; else all of them."""
        if not self.by_column:
            return self.columns
        return tuple(column for column in self.columns if column.kind != "unused")

    @property
    def features(self) -> tuple[str, ...] | None:
        """Names of the columns of the only input, when the model knows them."""
        if self.by_column or not self.named:
            return None
        return tuple(column.name for column in self.columns)


def read_layout(model: Any, columns: Mapping[str, Array]) -> Layout:
    """Work out what ``model`` takes.

    Args:
        model: A fitted estimator or pipeline.
        columns: A few rows of the data by column; empty without data.

    Raises:
        ModelSourceError: It was never fitted.
        ConversionError: A column holds categories of several types.
    """
    count = _feature_count(model)
    if count is None:
        if not _takes_documents(model):
            raise ModelSourceError(
                f"this {type(model).__name__} is not fitted; fit it, then save it", code="unfitted"
            )
        return Layout((Column(_document_name(columns), "text"),), named=False, documents=True)
    fitted = _fitted_names(model)
    named = fitted is not None
    names = _names(fitted, count, columns)
    known = _kinds(model, count)
    kinds = [_kind(known.get(place), columns.get(name)) for place, name in enumerate(names)]
    pairs = list(zip(names, kinds, strict=True))
    odd = [name for place, (name, kind) in enumerate(pairs)
           if kind == "text" and known.get(place) == "number"]  # fmt: skip
    return Layout(tuple(Column(name, kind) for name, kind in pairs), named=named, odd=tuple(odd))


def _feature_count(model: Any) -> int | None:
    count = getattr(model, "n_features_in_", None)
    if count is None and isinstance(model, Pipeline) and model.steps:
        return _feature_count(model.steps[0][1])
    return None if count is None else int(count)


def _takes_documents(model: Any) -> bool:
    if isinstance(model, Pipeline):
        return bool(model.steps) and _takes_documents(model.steps[0][1])
    if isinstance(model, FeatureUnion):
        return all(_takes_documents(part) for _, part in model.transformer_list)
    return type(model).__name__ in _VECTORIZERS


def _document_name(columns: Mapping[str, Array]) -> str:
    textual = [name for name, values in columns.items() if _is_text(values)]
    return textual[0] if len(textual) == 1 else TEXT


def _fitted_names(model: Any) -> list[str] | None:
    names = getattr(model, "feature_names_in_", None)
    if names is None:
        return None
    found = [str(name) for name in names]
    made_up = all(_MADE_UP.match(name) for name in found)
    return None if made_up else found


def _names(fitted: list[str] | None, count: int, columns: Mapping[str, Array]) -> list[str]:
    if fitted is not None:
        return fitted
    if len(columns) == count:
        return list(columns)
    return [f"column-{place}" for place in range(count)]


def _kind(known: Kind | None, values: Array | None) -> Kind:
    if known not in {None, "number"}:
        return known
    if values is not None and _is_text(values):
        return "text"
    return "unused" if known is None else "number"


def _is_text(values: Array) -> bool:
    return values.dtype.kind in "OU" and any(isinstance(value, str) for value in values.flat)


def _kinds(part: Any, count: int) -> dict[int, Kind]:
    """What the fitted parts know of each column; a column that nothing looks at is not there."""
    if isinstance(part, ColumnTransformer):
        return _kinds_by_column(part)
    if isinstance(part, Pipeline):
        steps = [step for _, step in part.steps if step is not None and step != "passthrough"]
        return _kinds(steps[0], count)
    if isinstance(part, FeatureUnion):
        inner = [_kinds(step, count) for _, step in part.transformer_list if step != "drop"]
        return {
            place: _strongest(kinds.get(place, "number") for kinds in inner)
            for place in range(count)
        }
    inner_part = getattr(part, "best_estimator_", None)
    if inner_part is not None:
        return _kinds(inner_part, count)
    return _kinds_of_leaf(part, count)


def _kinds_by_column(part: ColumnTransformer) -> dict[int, Kind]:
    found: dict[int, Kind] = {}
    for name, step, _ in part.transformers_:
        # what was given as names, numbers, masks or slices; scikit-learn resolves it when it fits
        places = part._transformer_to_input_indices.get(name, [])  # noqa: SLF001
        if isinstance(step, str) and step == "drop":
            continue
        inner: dict[int, Kind] = {} if isinstance(step, str) else _kinds(step, len(places))
        for position, place in enumerate(places):
            kind = inner.get(position, "number")
            found[place] = _strongest((kind, found.get(place, kind)))
    return found


def _kinds_of_leaf(part: Any, count: int) -> dict[int, Kind]:
    kind = type(part).__name__
    if kind in _VECTORIZERS:
        return {0: "text"}
    if kind in _ENCODERS:
        return {place: _category_kind(known) for place, known in enumerate(part.categories_)}
    if kind == "SimpleImputer":
        return {
            place: "text" if isinstance(value, str) else "number"
            for place, value in enumerate(part.statistics_)
        }
    return dict.fromkeys(range(count), "number")


def _category_kind(categories: Array) -> Kind:
    present = [value for value in categories.tolist() if not is_missing(value)]
    if all(isinstance(value, str) for value in present):
        return "text"
    if all(isinstance(value, int) for value in present):
        return "category"
    if all(isinstance(value, int | float) for value in present):
        return "number"
    raise ConversionError(
        f"a column has categories of several types, such as {present[0]!r} and {present[-1]!r}; "
        "make them all text and fit again",
        code="mixed-categories",
    )


def _strongest(kinds: Iterable[Kind]) -> Kind:
    """What a column is when several steps look at it: one type must do for all of them."""
    found = set(kinds)
    if "text" in found:
        return "text"
    return "category" if found == {"category"} else "number"


def is_missing(value: object) -> bool:
    """Whether ``value`` is what scikit-learn and pandas write for a missing one."""
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))

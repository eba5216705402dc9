"""The steps of a fitted scikit-learn model, and which of them has no ONNX form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline

Path = tuple[str, ...]
"""Names of steps from the outermost inwards."""


def children(part: Any) -> Iterator[tuple[str, Any]]:
    """The fitted parts right inside ``part``, by name; nothing that passes or drops columns."""
    if isinstance(part, Pipeline):
        found = [(name, step) for name, step in part.steps]
    elif isinstance(part, ColumnTransformer):
        found = [(name, step) for name, step, _ in part.transformers_]
    elif isinstance(part, FeatureUnion):
        found = [(name, step) for name, step in part.transformer_list]
    else:
        found = list(_inner(part))
    for name, step in found:
        if step is not None and not isinstance(step, str):
            yield name, step


def all_steps(model: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every part of ``model`` with its path; the model itself first, its path empty."""
    yield path, model
    for name, part in children(model):
        yield from all_steps(part, (*path, name))


def last_step(model: Any) -> Any:
    """The estimator that answers."""
    return last_step(model.steps[-1][1]) if isinstance(model, Pipeline) else model


def unconvertible(model: Any, known: Callable[[Any], bool]) -> str:
    """What to say of the innermost step that ``known`` refuses; empty when it knows all."""
    for path, part in all_steps(model):
        if any(True for _ in children(part)) or known(part):
            continue
        where = f"step {'/'.join(path)!r}, a {_type_name(part)}," if path else _type_name(part)
        return f"{where} has no ONNX form; {_advice(part)}"
    return ""


def _inner(part: Any) -> Iterator[tuple[str, Any]]:
    """What an estimator that wraps others has fitted."""
    for name in ("best_estimator_", "estimator_", "final_estimator_"):
        inner = getattr(part, name, None)
        if hasattr(inner, "get_params"):
            yield name, inner
    if type(part).__name__.startswith(("Voting", "Stacking")):
        for place, inner in enumerate(part.estimators_):
            yield f"estimators_[{place}]", inner


def _type_name(part: Any) -> str:
    return f"{type(part).__module__.partition('.')[0]} {type(part).__name__}"


def _advice(part: Any) -> str:
    if type(part).__name__ == "FunctionTransformer":
        return (
            "it may call any function. Do its work before the rows reach the model, or give it "
            "as --preprocess, and fit the pipeline without it"
        )
    if hasattr(part, "transform") and not hasattr(part, "predict"):
        return (
            "use a transformer of scikit-learn that skl2onnx supports, or do its work before the "
            "rows reach the model, for instance with --preprocess"
        )
    return "use an estimator that skl2onnx supports: https://onnx.ai/sklearn-onnx/supported.html"

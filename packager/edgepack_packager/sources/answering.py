"""A fitted estimator's own answers to rows that were bound to its graph's inputs."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
from sklearn.base import is_classifier, is_regressor

from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.sources.columns import INPUT, Layout
from edgepack_packager.sources.missing import marker, with_marker
from edgepack_packager.sources.model import Answer, as_labels


def answer_of(model: Any, layout: Layout, graph: onnx.ModelProto) -> Answer:
    """What ``model`` answers: labels with probabilities where it has them, or values."""
    outputs = [item.name for item in graph.graph.output]
    missing = marker(model)

    def answer(feeds: Feeds) -> Feeds:
        rows = rows_for(layout, feeds, missing)
        with warnings.catch_warnings():
            # unknown categories are what the encoder was told to ignore
            warnings.filterwarnings("ignore", message="Found unknown categories")
            # columns were matched when rows were bound; here some models see plain arrays
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            predicted = np.asarray(model.predict(rows))
            if is_regressor(model):
                return {outputs[0]: predicted.reshape(len(predicted), -1).astype(np.float64)}
            found = {outputs[0]: as_labels(predicted)}
            if is_classifier(model) and hasattr(model, "predict_proba") and len(outputs) > 1:
                found[outputs[1]] = np.asarray(model.predict_proba(rows), dtype=np.float64)
        return found

    return answer


def rows_for(layout: Layout, feeds: Feeds, missing: object) -> Any:
    """Rows as the model was fitted on: a table with names, an array, or a list of texts."""
    if layout.documents:
        return with_marker(feeds[layout.columns[0].name].reshape(-1), missing)
    if not layout.by_column:
        numbers = feeds[INPUT]
        if not layout.named:
            return numbers
        columns = [numbers[:, place] for place in range(numbers.shape[1])]
        return _frame({c.name: v for c, v in zip(layout.columns, columns, strict=True)})
    table = {
        column.name: with_marker(feeds[column.name].reshape(-1), missing)
        if column.kind == "text"
        else feeds[column.name].reshape(-1)
        for column in layout.fed
    }
    if layout.named:
        return _frame(table)
    rows = np.zeros((len(next(iter(table.values()))), len(layout.columns)), dtype=object)
    for place, column in enumerate(layout.columns):
        if column.name in table:
            rows[:, place] = table[column.name]
    return rows


def _frame(columns: dict[str, Array]) -> Any:
    import pandas as pd  # noqa: PLC0415 - only tables with names need it

    # as a series of objects, since pandas would make texts of its own type of them
    series = {
        name: pd.Series(values, dtype=object) if values.dtype.kind in "OU" else values
        for name, values in columns.items()
    }
    return pd.DataFrame(series)

"""Columns put side by side as the recipe says, so that an input finds them under its own name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgepack_packager.data.rows import Array, Rows
from edgepack_packager.errors import DataError
from edgepack_packager.recipe import InputRule


def arrange(rows: Rows, rules: Mapping[str, InputRule]) -> Rows:
    """Rows with one column for each input whose columns the recipe names.

    Args:
        rows: As they were read.
        rules: How inputs are fed, by name.

    Raises:
        DataError: A column is missing, or texts and numbers would stand side by side.
    """
    made = {name: _side_by_side(rows, name, rule) for name, rule in rules.items() if rule.columns}
    used = {column for rule in rules.values() for column in rule.columns}
    left = {name: values for name, values in rows.columns.items() if name not in used}
    return replace(rows, columns=left | made)


def _side_by_side(rows: Rows, name: str, rule: InputRule) -> Array:
    missing = [column for column in rule.columns if column not in rows.columns]
    if missing:
        raise DataError(
            f"inputs.{name}: the data have no column {', '.join(missing)}; "
            f"they have {', '.join(rows.columns)}",
            code="no-column",
        )
    taken = [rows.columns[column] for column in rule.columns]
    texts = [column for column in rule.columns if rows.columns[column].dtype.kind not in "biuf"]
    if texts and len(texts) != len(taken):
        raise DataError(
            f"inputs.{name}: column {', '.join(texts)} holds no numbers, others do; "
            "one input takes one kind",
            code="text-column",
        )
    if len(taken) == 1:
        return taken[0]
    wide = [column for column in rule.columns if rows.columns[column].ndim > 2]
    if wide:
        raise DataError(
            f"inputs.{name}: {', '.join(wide)} has more than one dimension a row; only columns "
            "stand side by side",
            code="bad-shape",
        )
    return np.column_stack(taken)

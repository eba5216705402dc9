"""The packager: a trained model and its data in, one signed bundle out.

>>> from pathlib import Path
>>> from edgepack_packager import Recipe, build, render_table
>>> result = build(Recipe(model=Path("digits.skops"), name="digits", version="1.0.0",
...                       output=Path("digits-1.0.0.edgepack"), data=Path("digits.npz"),
...                       label="label"))  # doctest: +SKIP
>>> print(render_table(result))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgepack_packager.errors import (
    AccuracyGateError,
    BudgetError,
    ConversionError,
    DataError,
    InputError,
    LockError,
    ModelSourceError,
    PackagerError,
    RecipeError,
)

if TYPE_CHECKING:
    from edgepack_packager.building import Progress, build
    from edgepack_packager.recipe import InputRule, Recipe
    from edgepack_packager.recipe_file import read_recipe
    from edgepack_packager.report.table import BuildResult, CandidateRow, render_table

_HOMES = {
    "BuildResult": "edgepack_packager.report.table",
    "CandidateRow": "edgepack_packager.report.table",
    "InputRule": "edgepack_packager.recipe",
    "Progress": "edgepack_packager.building",
    "Recipe": "edgepack_packager.recipe",
    "build": "edgepack_packager.building",
    "read_recipe": "edgepack_packager.recipe_file",
    "render_table": "edgepack_packager.report.table",
}
"""Loaded when they are asked for: scoring a table or listing targets needs no build."""

__all__ = [
    "AccuracyGateError",
    "BudgetError",
    "BuildResult",
    "CandidateRow",
    "ConversionError",
    "DataError",
    "InputError",
    "InputRule",
    "LockError",
    "ModelSourceError",
    "PackagerError",
    "Progress",
    "Recipe",
    "RecipeError",
    "build",
    "read_recipe",
    "render_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

"""The packager: a trained model and its data in, one signed bundle out.

>>> from pathlib import Path
>>> from edgepack_packager import Recipe, build, render_table
>>> result = build(Recipe(model=Path("digits.skops"), name="digits", version="1.0.0",
...                       output=Path("digits-1.0.0.edgepack"), data=Path("digits.npz"),
...                       label="label"))  # doctest: +SKIP
>>> print(render_table(result))  # doctest: +SKIP
"""

from __future__ import annotations

from edgepack_packager.building import Progress, build
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
from edgepack_packager.recipe import InputRule, Recipe
from edgepack_packager.recipe_file import read_recipe
from edgepack_packager.report.table import BuildResult, CandidateRow, render_table

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

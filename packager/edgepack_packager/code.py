"""Code that a recipe names as ``module:function``: imported, also from the current folder."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepack_contract.digest import sha256_digest
from edgepack_packager.errors import RecipeError
from edgepack_packager.recipe import code_name

MOST_SOURCE_BYTES = 16 * 1024 * 1024


def load_function(reference: Path) -> Callable[..., Any]:
    """Import what ``module:function`` names. It runs in this process: whoever named it trusts it.

    Raises:
        RecipeError: There is no such module or function, or importing it fails.
    """
    named = code_name(reference)
    if named is None:
        raise RecipeError(f"{reference}: write it as module:function", code="bad-code")
    module_name, name = named
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise RecipeError(
            f"{reference}: importing {module_name} fails: {said_by_code(error)}", code="code-failed"
        ) from error
    if not callable(found):
        raise RecipeError(f"{reference}: {module_name} has no function {name}", code="no-function")
    function: Callable[..., Any] = found
    return function


def said_by_code(error: Exception) -> str:
    """What the user's code raised, and at which line of it."""
    frames = traceback.extract_tb(error.__traceback__)
    others = ("<", sys.prefix, sys.base_prefix)
    outside = [frame for frame in frames if not frame.filename.startswith(others)]
    words = f"{type(error).__name__}: {error}"
    if len(outside) < 2:
        return words
    return f"{Path(outside[-1].filename).name}:{outside[-1].lineno}: {words}"


def code_digest(function: Callable[..., Any]) -> str:
    """The digest of the file that a function stands in, of what it is called without one."""
    plain = inspect.isfunction(function) or inspect.isclass(function)
    try:
        path = inspect.getsourcefile(function if plain else type(function))
    except TypeError:  # it is built in
        path = None
    if path is None or not Path(path).is_file():
        return sha256_digest(repr(function).encode())
    with Path(path).open("rb") as stream:
        return sha256_digest(stream.read(MOST_SOURCE_BYTES))

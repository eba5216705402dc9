"""The syntax trees of our own modules."""

from __future__ import annotations

import ast
import gc
from pathlib import Path


def syntax_tree(path: Path) -> ast.Module:
    """Parse a module.

    No garbage is collected meanwhile: CPython 3.11 counts the recursion of all ``ast.parse`` in one
    place (gh-106905), and what a finaliser complains of is formatted as a traceback, which parses.
    """
    text = path.read_text(encoding="utf-8")
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        gc.enable()

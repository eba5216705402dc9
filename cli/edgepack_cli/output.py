"""The only place that prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
import msgspec


def say(text: str = "") -> None:
    """Print a line of a result."""
    click.echo(text)


def note(text: str) -> None:
    """Print a line for a person who watches: progress, hints, warnings."""
    click.echo(text, err=True)


def emit_json(value: Any) -> None:
    """Print one JSON object."""
    click.echo(
        json.dumps(msgspec.to_builtins(value, enc_hook=str), indent=2, sort_keys=True, default=str)
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned on the left, two blanks apart, no lines."""
    cells = [[str(cell) for cell in row] for row in [headings, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def bytes_text(size: float) -> str:
    """A size for people: ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

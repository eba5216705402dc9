"""A measured part of a document, between two markers."""

from __future__ import annotations

from pathlib import Path


def replace_block(path: Path, name: str, text: str) -> None:
    """Put ``text`` between ``<!-- name -->`` and ``<!-- /name -->``."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    whole = path.read_text(encoding="utf-8")
    head, _, rest = whole.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"{path} has no {begin.strip()} ... {end}")
    path.write_text(f"{head}{begin}{text.strip()}\n{end}{tail}", encoding="utf-8")

"""Elements of a page, built as a tree: text and attributes are escaped by construction."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element, tostring

Child = Element | str


def node(tag: str, *children: Child, **attributes: object) -> Element:
    """An element.

    Args:
        tag: Its name.
        children: Elements and texts in order.
        attributes: ``class_`` stands for ``class`` and ``_`` for ``-``; False leaves one out.
    """
    made = Element(
        tag,
        {
            name.rstrip("_").replace("_", "-"): _spelt(value)
            for name, value in attributes.items()
            if value is not False
        },
    )
    return extend(made, children)


def extend(parent: Element, children: Iterable[Child]) -> Element:
    """Append elements and texts to an element, which is returned."""
    for child in children:
        if isinstance(child, Element):
            parent.append(child)
        elif len(parent):
            parent[-1].tail = (parent[-1].tail or "") + child
        else:
            parent.text = (parent.text or "") + child
    return parent


def to_text(tree: Element) -> bytes:
    """The document; half characters, which UTF-8 cannot carry, become question marks."""
    text = tostring(tree, encoding="unicode", method="html")
    return f"<!doctype html>\n{text}\n".encode(errors="replace")


def _spelt(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return "" if value is True else str(value)

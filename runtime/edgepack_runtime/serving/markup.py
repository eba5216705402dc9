"""Values as text in the pages for people."""

from __future__ import annotations


def escaped(value: object) -> str:
    """A value as text that HTML, and an attribute in quotes, may hold."""
    # with it come the names of 2,231 entities, for the few daemons that somebody looks at
    import html  # noqa: PLC0415

    return html.escape(str(value))

"""Which bytes of a blob a request asks for: ``Range``, ``If-Range`` and ``If-None-Match``.

RFC 9110, sections 13 and 14. One range is served; a list of ranges is answered with the whole
blob, which the RFC allows, because overlapping ranges are a known way to make servers work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgepack_contract.errors import EdgepackError

_SINGLE = re.compile(r"\Abytes=(\d{0,19})-(\d{0,19})\Z")


class UnsatisfiableRangeError(EdgepackError):
    """The range starts behind the last byte."""

    default_code = "unsatisfiable-range"

    def __init__(self, header: str, size: int) -> None:
        super().__init__(f"range {header[:80]!r} lies outside the {size} bytes that there are")
        self.size = size


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes ``start`` to ``stop`` (not included) of ``size``."""

    start: int
    stop: int
    size: int

    @property
    def length(self) -> int:
        """How many bytes."""
        return self.stop - self.start

    @property
    def content_range(self) -> str:
        """The ``Content-Range`` header."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def requested_span(
    header: str | None, size: int, *, if_range: str | None, etag: str
) -> Span | None:
    """The part that is asked for, or None for the whole.

    Args:
        header: ``Range``, or None.
        size: Bytes of the whole.
        if_range: ``If-Range``, or None: with another validator the whole is sent.
        etag: The strong validator of the whole.

    Raises:
        UnsatisfiableRangeError: Well formed, but no byte of it exists.
    """
    match = _SINGLE.match(header.replace(" ", "")) if header is not None else None
    if header is None or match is None or (if_range is not None and if_range != etag):
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
    if first and last and int(last) < int(first):
        return None
    if start >= stop:
        raise UnsatisfiableRangeError(header, size)
    return Span(start, stop, size)


def is_unchanged(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has these bytes already (weak comparison, as RFC 9110 wants here)."""
    if if_none_match is None:
        return False
    known = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return etag in known or "*" in known

"""Whether a client wants the compressed copy of a blob: ``Accept-Encoding`` (RFC 9110, 12.5.3)."""

from __future__ import annotations

import re

_CODING = re.compile(r"\A([a-z0-9*!#$%&'+.^_`|~-]{1,32})(?:;q=([01](?:\.\d{0,3})?))?\Z")
_MAX_CODINGS = 32


def wants_gzip(header: str | None) -> bool:
    """Whether gzip is named, and not liked less than the bytes as they are."""
    weights: dict[str, float] = {}
    for part in (header or "").lower().replace(" ", "").replace("\t", "").split(",")[:_MAX_CODINGS]:
        found = _CODING.match(part)
        if found:
            weights[found[1]] = float(found[2] or 1.0)
    gzip = weights.get("gzip", weights.get("x-gzip", 0.0))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)

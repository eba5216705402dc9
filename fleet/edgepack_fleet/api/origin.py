"""Where a request comes from: foreign pages and foreign host names are turned away.

The API takes no cookies, so a foreign page has no credentials to borrow; this check stands in front
of that. A page that rebinds its own DNS name to loopback is caught by its ``Host``.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_SITE = frozenset({"same-origin", "none"})


def host_name(authority: str) -> str:
    """The host of ``HOST[:PORT]``, lower-case, without the brackets of an IPv6 address."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def foreign_origin(method: str, headers: Mapping[str, str]) -> str | None:
    """Why an unsafe request is taken for one that another site's page has made, or None.

    ``Sec-Fetch-Site`` decides where a browser sends it; else ``Origin`` must name the host that the
    request went to. A client that sends neither is not a browser, and still needs its token.
    """
    if method in _SAFE:
        return None
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return None if site in _OWN_SITE else f"Sec-Fetch-Site is {site[:40]!r}"
    if origin is None or _authority(origin) == headers.get("host", "").lower():
        return None
    return f"Origin is {origin[:80]!r}"


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None

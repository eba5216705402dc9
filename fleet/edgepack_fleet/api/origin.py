"""Where a request comes from: foreign pages and foreign host names are turned away.

A token is nothing that a foreign page could borrow; for it this check stands in front of that. A
cookie is sent by the browser whoever asks, so that with one a request must show that it comes from
the own page. A page that rebinds its own DNS name to loopback is caught by its ``Host``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_PORTS = {"http": 80, "https": 443}
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


def not_the_own_page(method: str, headers: Mapping[str, str], own: Collection[str]) -> str | None:
    """Why an unsafe request with a cookie is not shown to come from the own page, or None if it is.

    Args:
        method: Of the request.
        headers: Of the request. ``Host`` is not asked: who sends the request chooses it.
        own: The origins of the own page, as configured.
    """
    if method in _SAFE:
        return None
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return None if site == "same-origin" else f"Sec-Fetch-Site is {site[:40]!r}"
    if origin is None:
        return "it has neither Sec-Fetch-Site nor Origin"
    return None if origin.lower() in own else f"Origin is {origin[:80]!r}"


def own_origins(public_url: str) -> frozenset[str]:
    """The origins of the page at ``public_url``; on loopback it has as many as loopback has names.

    Written as browsers write them: without the port that the scheme has anyway.
    """
    parts = urlsplit(public_url)
    host = parts.hostname or ""
    names = {host} if host not in LOOPBACK_NAMES else LOOPBACK_NAMES
    port = "" if parts.port in (None, _PORTS.get(parts.scheme)) else f":{parts.port}"
    shown = (f"[{name}]" if ":" in name else name for name in names)
    return frozenset(f"{parts.scheme}://{name}{port}" for name in shown)


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None

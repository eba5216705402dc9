"""The cookie of a browser that has logged in.

With TLS it has the prefix ``__Host-``: browsers then take it only over TLS, from this host, for all
of it, and never from a neighbour. Plain loopback can have no such cookie.
"""

from __future__ import annotations

from fastapi.responses import Response

from edgepack_fleet.config import HttpConfig
from edgepack_fleet.logins import SESSION_TTL_MS

SECURE_NAME = "__Host-edgepack"
LOOPBACK_NAME = "edgepack-session"


def is_secure(http: HttpConfig) -> bool:
    """Whether browsers reach the service over TLS, its own or that of a proxy in front of it."""
    public = http.public_url or ""
    return http.tls_certificate is not None or public.startswith("https://")


def cookie_name(http: HttpConfig) -> str:
    """What the cookie is called."""
    return SECURE_NAME if is_secure(http) else LOOPBACK_NAME


def set_cookie(response: Response, http: HttpConfig, secret: str) -> None:
    """Give the browser its cookie."""
    _set(response, http, secret, SESSION_TTL_MS // 1000)


def clear_cookie(response: Response, http: HttpConfig) -> None:
    """Make the browser forget its cookie."""
    _set(response, http, "", 0)


def _set(response: Response, http: HttpConfig, value: str, max_age: int) -> None:
    response.set_cookie(
        cookie_name(http),
        value,
        max_age=max_age,
        path="/",
        secure=is_secure(http),
        httponly=True,
        samesite="strict",
    )

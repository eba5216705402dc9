"""The outermost layer: foreign hosts and pages turned away, security headers on every answer."""

from __future__ import annotations

from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepack_fleet.api.origin import foreign_origin, host_name
from edgepack_fleet.api.problems import refusal

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Shield:
    """ASGI middleware.

    Args:
        app: The application behind it.
        hosts: The host names that requests may be addressed to; None accepts any, which is right
            for a listener that is not on loopback.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_shielded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        reason = self._foreign(scope)
        if reason is None:
            await self._app(scope, receive, send_shielded)
            return
        code, words = reason
        answer = refusal(scope["path"], HTTPStatus.FORBIDDEN, code, words)
        await answer(scope, receive, send_shielded)

    def _foreign(self, scope: Scope) -> tuple[str, str] | None:
        headers = Headers(scope=scope)
        host = host_name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            return "foreign-host", (
                f"this service listens on loopback and does not answer to the host {host[:80]!r}; "
                f"address it as one of {', '.join(sorted(self._hosts))}"
            )
        why = foreign_origin(scope["method"], headers)
        if why is not None:
            return "foreign-origin", f"a page of another site may not do this: {why}"
        return None

"""The outermost layer: foreign hosts and pages turned away, security headers on every answer."""

from __future__ import annotations

from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepack_fleet.api.origin import foreign_origin, host_name
from edgepack_fleet.api.problems import bug, refusal

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


_TLS_HEADERS = {"Strict-Transport-Security": "max-age=31536000"}


class Shield:
    """ASGI middleware, and the outer boundary of the application: what escapes it is a bug.

    Args:
        app: The application behind it.
        hosts: The host names that requests may be addressed to; None accepts any, which is right
            for a listener that is not on loopback.
        secure: Whether browsers come over TLS, and are told never to come without.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, *, secure: bool) -> None:
        self._app = app
        self._hosts = hosts
        self._headers = _HEADERS | (_TLS_HEADERS if secure else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        started = False

        async def send_shielded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._answer(scope, receive, send_shielded)
        except Exception as error:
            # the outer boundary: a bug is logged with its traceback, and told without it
            if started:
                raise
            await bug(Request(scope), error)(scope, receive, send_shielded)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = self._foreign(scope)
        if reason is None:
            await self._app(scope, receive, send)
            return
        code, words = reason
        await refusal(scope["path"], HTTPStatus.FORBIDDEN, code, words)(scope, receive, send)

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

"""The operations listener: health and metrics for machines that only watch."""

from __future__ import annotations

from typing import Any

from edgepack_runtime.serving.asgi import CLOSE, Asgi, Receive, Scope, Send, error_response

PATHS = frozenset({"/health", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready"})


class OpsOnly:
    """The few pages of an application that need no token; it closes each connection after one.

    A listener that everybody may reach must not let a few callers keep all of its connections.
    """

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is known, which only reads; answer 404 to everything else."""
        if scope["path"] not in PATHS:
            told = ", ".join(sorted(PATHS))
            await error_response(404, f"this listener has only {told}", CLOSE).send(send)
        else:
            await self._app(scope, receive, _closing(send))


def _closing(send: Send) -> Send:
    async def close(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message["headers"], CLOSE]}
        await send(message)

    return close

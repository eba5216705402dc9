"""As much of ASGI as the endpoints need: a request, a response, and a body within limits.

Source: asgi.readthedocs.io, "HTTP & WebSocket ASGI Message Format", version 2.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

BODY_SECONDS = 30.0
CLOSE: Header = (b"connection", b"close")
JSON: Header = (b"content-type", b"application/json")
_encoder = msgspec.json.Encoder()


class HttpError(Exception):
    """A request that HTTP itself refuses; what a model or its input refuses has its own errors."""

    def __init__(self, status: int, message: str, *headers: Header) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Response:
    """An answer."""

    status: int
    body: bytes
    headers: tuple[Header, ...] = (JSON,)

    async def send(self, send: Send) -> None:
        """Write the answer."""
        length = (b"content-length", b"%d" % len(self.body))
        await send(
            {
                "type": "http.response.start",
                "status": self.status,
                "headers": [*self.headers, length],
            }
        )
        await send({"type": "http.response.body", "body": self.body})


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request, and where its body comes from."""

    method: str
    headers: dict[bytes, bytes]
    receive: Receive


def json_response(value: object, status: int = 200, *headers: Header) -> Response:
    """An answer in JSON."""
    return Response(status, _encoder.encode(value), (JSON, *headers))


def error_response(status: int, message: str, *headers: Header) -> Response:
    """An error, always as ``{"error": message}``."""
    return json_response({"error": message}, status, *headers)


async def read_body(
    request: Request,
    most_bytes: int,
    *,
    length_required: bool = False,
    grown: Callable[[int], None] = lambda _size: None,
) -> bytes:
    """Read a request's body.

    Args:
        request: Whose.
        most_bytes: How much it may hold.
        length_required: Whether it must say how much, or come in chunks.
        grown: Told the bytes that are there as they become more; what it raises ends the reading.

    Raises:
        HttpError: 411 without a length where one is required, 413 over the limit, 408 when it does
            not arrive in time, 400 when the client hangs up half-way.
    """
    headers = request.headers
    declared = headers.get(b"content-length")
    if declared is not None and int(declared) > most_bytes:
        raise too_large(int(declared), most_bytes)
    if length_required and declared is None and b"transfer-encoding" not in headers:
        raise HttpError(411, "send the body with a Content-Length", CLOSE)
    message = await request.receive()
    first = _part(message)
    if len(first) > most_bytes:
        raise too_large(len(first), most_bytes)
    if not message.get("more_body"):
        return first
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read_rest(request.receive, bytearray(first), most_bytes, grown)
    except TimeoutError as error:
        raise HttpError(408, f"the body did not arrive within {BODY_SECONDS:g} s", CLOSE) from error


def too_large(size: int, most_bytes: int) -> HttpError:
    """A body of ``size`` bytes, perhaps more, where ``most_bytes`` are allowed."""
    return HttpError(413, f"the body has {size} bytes or more, at most {most_bytes}", CLOSE)


async def _read_rest(
    receive: Receive, body: bytearray, most_bytes: int, grown: Callable[[int], None]
) -> bytes:
    more = True
    while more:
        message = await receive()
        body += _part(message)
        if len(body) > most_bytes:
            raise too_large(len(body), most_bytes)
        grown(len(body))
        more = message.get("more_body", False)
    return bytes(body)


def _part(message: dict[str, Any]) -> bytes:
    if message["type"] == "http.disconnect":
        raise HttpError(400, "the client went away")
    part: bytes = message.get("body", b"")
    return part

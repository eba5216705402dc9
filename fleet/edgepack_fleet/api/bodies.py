"""Read a JSON body: bounded, strict, and only after the caller's role was checked."""

from __future__ import annotations

import msgspec
from fastapi import Request

from edgepack_contract.canonical import decode
from edgepack_contract.limits import MIB
from edgepack_fleet.api.problems import TooLargeError, WrongTypeError

JSON_BODY_BYTES = 1 * MIB


class JsonBody:
    """The dependency that decodes a request's body into a struct.

    Args:
        shape: The struct; unknown and missing fields are refused by name.
    """

    def __init__(self, shape: type[msgspec.Struct]) -> None:
        self.shape = shape

    async def __call__(self, request: Request) -> msgspec.Struct:
        """Read and decode.

        Raises:
            WrongTypeError: The content type is not JSON.
            TooLargeError: More than ``JSON_BODY_BYTES``.
            MalformedDocumentError: Not JSON, or not these fields.
        """
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            raise WrongTypeError("send the body as Content-Type: application/json")
        raw = await read_body(request, JSON_BODY_BYTES)
        return decode(raw, self.shape, what="request body", max_bytes=JSON_BODY_BYTES)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, refused as soon as it is known to be larger than ``max_bytes``."""
    refuse_declared(request, max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large(max_bytes)
    return bytes(body)


def refuse_declared(request: Request, max_bytes: int) -> None:
    """Refuse a body by its ``Content-Length``, before a byte of it is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> TooLargeError:
    """The refusal of a body over ``max_bytes``."""
    return TooLargeError(f"the body is larger than the {max_bytes} bytes that are accepted here")

"""Compressed requests and answers: gzip, and deflate, which is zlib's format.

Source: RFC 9110, sections 8.4 and 12.5.3.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from edgepack_runtime.serving.asgi import CLOSE, Header, HttpError, Response, too_large

Encoding = Literal["gzip", "deflate"]

SMALLEST_BYTES = 2048
"""Of an answer that is worth packing."""

_WINDOW: dict[Encoding, int] = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
# the answer often goes to a program on the same machine: more effort costs it more than bytes do
_LEVEL = 1
_SUPPORTED: Header = (b"accept-encoding", b"gzip, deflate")
_VARY: Header = (b"vary", b"accept-encoding")


def encoding_of(headers: Mapping[bytes, bytes]) -> Encoding | None:
    """How the body of a request is packed, None for not at all.

    Raises:
        HttpError: 415, in a way that is not understood here.
    """
    given = headers.get(b"content-encoding")
    if given is None:
        return None
    match given.strip().lower():
        case b"" | b"identity":
            return None
        case b"gzip" | b"x-gzip":
            return "gzip"
        case b"deflate":
            return "deflate"
        case _:
            raise HttpError(
                415,
                f"content-encoding {given.decode('latin-1')[:40]!r} is not supported; "
                "send gzip, deflate or nothing",
                _SUPPORTED,
                CLOSE,
            )


def unpack(encoding: Encoding, body: bytes, most_bytes: int) -> bytes:
    """Unpack a body; never makes more than ``most_bytes``.

    Raises:
        HttpError: 413 when it holds more, 400 when it is damaged, cut off or goes on after its end.
    """
    unpacker = zlib.decompressobj(_WINDOW[encoding])
    try:
        unpacked = unpacker.decompress(body, most_bytes + 1)
    except zlib.error as error:
        raise HttpError(400, f"the body is not {encoding}: {error}") from error
    if len(unpacked) > most_bytes:
        raise too_large(len(unpacked), most_bytes)
    if not unpacker.eof or unpacker.unused_data:
        where = "goes on after its end" if unpacker.eof else "is cut off"
        raise HttpError(400, f"the {encoding} body {where}")
    return unpacked


def encoding_for(headers: Mapping[bytes, bytes]) -> Encoding | None:
    """How the caller would like an answer to be packed best, None for not at all."""
    accepted = headers.get(b"accept-encoding")
    if accepted is None:
        return None
    weights = dict(_weight(item) for item in accepted.lower().split(b","))
    best: Encoding | None = None
    most = 0.0
    for encoding, name in (("gzip", b"gzip"), ("deflate", b"deflate")):
        weight = weights.get(name, weights.get(b"*", 0.0))
        if weight > most:
            best, most = encoding, weight  # type: ignore[assignment]
    return best


def pack(response: Response, encoding: Encoding) -> Response:
    """The same answer, packed."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[encoding])
    body = packer.compress(response.body) + packer.flush()
    packed = (b"content-encoding", encoding.encode())
    return replace(response, body=body, headers=(*response.headers, packed, _VARY))


def is_worth_packing(response: Response) -> bool:
    """Whether packing an answer saves anything."""
    return len(response.body) >= SMALLEST_BYTES


def _weight(item: bytes) -> tuple[bytes, float]:
    name, _, parameter = item.partition(b";")
    key, _, value = parameter.partition(b"=")
    if key.strip() != b"q":
        return name.strip(), 1.0
    try:
        weight = float(value)
    except ValueError:
        return name.strip(), 0.0
    return name.strip(), weight if 0.0 <= weight <= 1.0 else 0.0

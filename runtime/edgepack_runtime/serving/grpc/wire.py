"""How a ModelInferRequest lies on the wire, looked at before any of it is read.

Tensors in ``raw_input_contents`` are taken as they lie there. Everything else is made into messages
and lists, which take up to some forty times its bytes. Source of the form:
protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgepack_contract.limits import LIMITS
from edgepack_runtime.inference.errors import BadRequestError
from edgepack_runtime.serving.asgi import HttpError

MOST_PARTS = 4096
"""Inputs, outputs, contents and parameters that a request may have; an empty one has two bytes."""

_RAW_INPUT_CONTENTS = 7
_VARINT, _EIGHT, _MEASURED, _FOUR = 0, 1, 2, 5
_VARINT_BYTES = 10


def check_parts(raw: bytes) -> None:
    """Check how much there is to be made of a request.

    Raises:
        HttpError: 413, more than 16 MiB of it are not ``raw_input_contents``, or it has too many
            parts.
        BadRequestError: It is not a message.
    """
    beside = len(raw)
    for count, (number, size) in enumerate(_parts(raw), 1):
        if count > MOST_PARTS:
            raise HttpError(
                413, f"the request has more than {MOST_PARTS} inputs, outputs and contents"
            )
        if number == _RAW_INPUT_CONTENTS:
            beside -= size
    if beside > LIMITS.request_json_bytes:
        raise HttpError(
            413,
            f"the request has {beside} bytes of typed contents and others that are not raw, at "
            f"most {LIMITS.request_json_bytes}; use raw_input_contents",
        )


def _parts(raw: bytes) -> Iterator[tuple[int, int]]:
    """The number of each field, and the bytes of its value."""
    place, end = 0, len(raw)
    while place < end:
        tag, place = _varint(raw, place)
        kind = tag & 7
        size = {_EIGHT: 8, _FOUR: 4}.get(kind, 0)
        if kind == _VARINT:
            _, place = _varint(raw, place)
        elif kind == _MEASURED:
            size, place = _varint(raw, place)
        elif not size:
            raise _malformed(f"a field of the kind {kind}")
        yield tag >> 3, size
        place += size
    if place != end:
        raise _malformed("it ends within a field")


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(raw[place : place + _VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, place + shift + 1
    raise _malformed("a number without an end")


def _malformed(words: str) -> BadRequestError:
    return BadRequestError(f"not a ModelInferRequest: {words}")

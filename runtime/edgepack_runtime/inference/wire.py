"""The protobuf wire format, read field by field out of bytes that nobody vouches for.

https://protobuf.dev/programming-guides/encoding/. Groups, which nothing we read has, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple

Bytes = bytes | mmap

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

_FIXED = {FIXED64: 8, FIXED32: 4}
_MAX_VARINT = 10
_MASK = 2**64 - 1


class WireError(ValueError):
    """The bytes are no protobuf message."""


class Field(NamedTuple):
    """One field: the bytes of its content, or its value when it is a varint."""

    number: int
    wire: int
    start: int
    end: int
    value: int


def fields(data: Bytes, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in ``data[start:end]``.

    Raises:
        WireError: They do not fill it exactly.
    """
    at = start
    while at < end:
        tag, at = read_varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 2**29:
            raise WireError(f"field number {number} at byte {at}")
        if wire == VARINT:
            value, after = read_varint(data, at, end)
            yield Field(number, wire, at, after, value)
        else:
            at, after = _content(data, at, end, wire)
            yield Field(number, wire, at, after, 0)
        at = after


def read_varint(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """A number of 64 bits, and where it ends.

    Raises:
        WireError: It is cut off or too long.
    """
    value = shift = 0
    for place in range(at, min(end, at + _MAX_VARINT)):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, place + 1
        shift += 7
    raise WireError(f"a number at byte {at} is cut off")


def signed(value: int) -> int:
    """A varint as int64 has it."""
    return value - 2**64 if value >= 2**63 else value


def _content(data: Bytes, at: int, end: int, wire: int) -> tuple[int, int]:
    if wire == LENGTH:
        size, at = read_varint(data, at, end)
    elif wire in _FIXED:
        size = _FIXED[wire]
    else:
        raise WireError(f"wire type {wire} at byte {at}")
    if size > end - at:
        raise WireError(f"a field of {size} bytes at byte {at} is cut off")
    return at, at + size

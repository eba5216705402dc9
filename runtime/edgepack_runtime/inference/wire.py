"""The protobuf wire format, read field by field out of bytes that nobody vouches for.

https://protobuf.dev/programming-guides/encoding/. Groups, which nothing we read has, are refused.
"""

from __future__ import annotations

import re
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


def scalars(*, reals: int, numbers: int, texts: int) -> re.Pattern[bytes]:
    """A run of fields that hold one number or one short text each, for :func:`fields` to pass over.

    A model of trees is millions of them, and a regular expression passes over them in C.

    Args:
        reals: The field number of 32-bit reals, at most 15 like the others.
        numbers: That of varints.
        texts: That of texts.
    """
    short = b"|".join(b"%s[\\x00-\\xff]{%d}" % (re.escape(bytes([n])), n) for n in range(64))
    kinds = (
        re.escape(bytes([reals << 3 | FIXED32])) + b"[\\x00-\\xff]{4}",
        re.escape(bytes([numbers << 3 | VARINT])) + b"[\\x80-\\xff]{0,9}[\\x00-\\x7f]",
        re.escape(bytes([texts << 3 | LENGTH])) + b"(?:" + short + b")",
    )
    # possessive, so that nothing is kept for going back; in portions all the same
    return re.compile(b"(?:%s){1,4096}+" % b"|".join(kinds))


def fields(
    data: Bytes, start: int, end: int, passing: re.Pattern[bytes] | None = None
) -> Iterator[Field]:
    """The fields of the message in ``data[start:end]``, but for those that ``passing`` matches.

    Raises:
        WireError: They do not fill it exactly.
    """
    at = start
    while at < end:
        if passing is not None and (run := passing.match(data, at, end)):
            at = run.end()
            continue
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

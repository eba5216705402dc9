"""How deeply a UBJSON file nests, found without calling oneself for every level.

Only what XGBoost reads (src/common/json.cc, UBJReader): objects without a count, arrays that are
typed, counted or closed, lengths as 64-bit integers, and no high-precision numbers.
"""

from __future__ import annotations

import struct

_WIDTHS = {
    b"Z": 0, b"T": 0, b"F": 0, b"i": 1, b"U": 1, b"C": 1, b"I": 2, b"l": 4, b"d": 4, b"L": 8,
    b"D": 8,
}  # fmt: skip
"""Bytes of a value by the byte before it."""

_LENGTH = struct.Struct(">q")
_OBJECT, _CLOSED = -2, -1
"""Kinds of open brackets; a counted array is the number of values that are still to come."""


def deepest(raw: bytes, limit: int) -> int:
    """The number of brackets that stand open at the deepest place, or ``limit`` when it is more.

    Raises:
        ValueError: Not UBJSON as XGBoost writes it, or it ends too early.
    """
    position, open_brackets, most = 0, list[int](), 0
    while True:
        position = _value(raw, position, open_brackets)
        most = max(most, len(open_brackets))
        if most >= limit:
            return limit
        position = _close(raw, position, open_brackets)
        if not open_brackets:
            return most


def _value(raw: bytes, position: int, open_brackets: list[int]) -> int:
    """Step over a value, or into it."""
    kind = raw[position : position + 1]
    if kind == b"{":
        open_brackets.append(_OBJECT)
        return position + 1
    if kind == b"[":
        return _array(raw, position + 1, open_brackets)
    if kind == b"S":
        return _text(raw, position + 1)
    if kind not in _WIDTHS:
        raise ValueError(f"byte {position} begins no value")
    return position + 1 + _WIDTHS[kind]


def _array(raw: bytes, position: int, open_brackets: list[int]) -> int:
    kind = raw[position : position + 1]
    if kind == b"$":
        width = _WIDTHS.get(raw[position + 1 : position + 2])
        if width is None or raw[position + 2 : position + 3] != b"#":
            raise ValueError(f"byte {position} begins no array")
        count, position = _length(raw, position + 3)
        return position + width * count
    if kind == b"#":
        count, position = _length(raw, position + 1)
        open_brackets.append(count)
        return position
    open_brackets.append(_CLOSED)
    return position


def _close(raw: bytes, position: int, open_brackets: list[int]) -> int:
    """Close what ends here, and go to the next value."""
    while open_brackets:
        top, sign = open_brackets[-1], raw[position : position + 1]
        if top > 0:
            open_brackets[-1] -= 1
            return position
        if top == _OBJECT and sign != b"}":
            return _text(raw, position)
        if top == _CLOSED and sign != b"]":
            return position
        open_brackets.pop()
        position += top != 0
    return position


def _text(raw: bytes, position: int) -> int:
    length, position = _length(raw, position)
    return position + length


def _length(raw: bytes, position: int) -> tuple[int, int]:
    if raw[position : position + 1] != b"L" or position + 9 > len(raw):
        raise ValueError(f"byte {position} begins no length")
    (length,) = _LENGTH.unpack_from(raw, position + 1)
    if length < 0 or length > len(raw):
        raise ValueError(f"byte {position} has a length that cannot be")
    return int(length), position + 9

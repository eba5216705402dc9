"""The one JSON encoding that is hashed, signed and compared, and the strict way to read it back.

Keys are sorted, there is no white space, text is UTF-8, and NaN and infinities are refused. It is
RFC 8785 (JCS) for everything edgepack writes: our documents hold no numbers whose shortest
representation differs between Python and ECMAScript, because signed values are text and integers.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from edgepack_contract.errors import MalformedDocumentError
from edgepack_contract.limits import LIMITS

T = TypeVar("T")


def canonical_json(value: object) -> bytes:
    """Encode ``value`` (a struct or plain JSON data) canonically.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    plain = msgspec.to_builtins(value)
    text = json.dumps(
        plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def parse_json(raw: bytes, *, what: str, max_bytes: int) -> Any:
    """Decode JSON from somebody else, within limits.

    Args:
        raw: The bytes.
        what: The name of the document, for the error.
        max_bytes: Larger input is refused before it is parsed.

    Raises:
        MalformedDocumentError: Too large, too deep, a duplicate key, or not JSON.
    """
    if len(raw) > max_bytes:
        raise MalformedDocumentError(
            f"{what} has {len(raw)} bytes, at most {max_bytes} are accepted", code="too-large"
        )
    if json_depth(raw) > LIMITS.json_depth:
        raise MalformedDocumentError(
            f"{what} is nested deeper than {LIMITS.json_depth} levels", code="too-deep"
        )
    try:
        # json.loads guesses UTF-16 and UTF-32 from bytes, which the depth check above cannot read
        return json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedDocumentError(f"{what} is not valid JSON: {error}") from error


def decode(raw: bytes, shape: type[T], *, what: str, max_bytes: int) -> T:
    """Decode JSON into a struct; unknown and missing fields are errors that name the field.

    Raises:
        MalformedDocumentError: See :func:`parse_json`; or the fields are not those of ``shape``.
    """
    plain = parse_json(raw, what=what, max_bytes=max_bytes)
    try:
        return msgspec.convert(plain, shape)
    except msgspec.ValidationError as error:
        raise MalformedDocumentError(f"{what} has wrong fields: {error}") from error


def json_depth(raw: bytes) -> int:
    """The deepest nesting of brackets outside strings, without parsing."""
    depth = deepest = 0
    in_string = escaped = False
    for byte in raw:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has the same key twice")
    return result


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")

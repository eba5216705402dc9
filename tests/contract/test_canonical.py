from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.canonical import canonical_json, decode, json_depth, parse_json
from edgepack_contract.errors import MalformedDocumentError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


class Point(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    x: int
    y: int


@given(JSON)
def test_round_trip_and_stable(value):
    encoded = canonical_json(value)
    assert parse_json(encoded, what="value", max_bytes=10**7) == value
    assert canonical_json(json.loads(encoded)) == encoded


@given(st.dictionaries(st.text(), st.integers()))
def test_order_of_keys_does_not_matter(value):
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_has_not_are_refused(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": number})


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b'{"x":1,"x":2,"y":3}', "malformed-document"),
        (b'{"x":NaN,"y":1}', "malformed-document"),
        (b'{"x":1}', "malformed-document"),
        (b'{"x":1,"y":2,"z":3}', "malformed-document"),
        (b'{"x":"1","y":2}', "malformed-document"),
        (b"\xef\xbb\xbf{}", "malformed-document"),
        (b"{", "malformed-document"),
        (b"[" * 100 + b"]" * 100, "too-deep"),
        (b"[" * 90_000, "too-deep"),
        (b" " * 100_001, "too-large"),
    ],
)
def test_hostile_json_is_refused_by_name(raw, code):
    with pytest.raises(MalformedDocumentError, match="point") as caught:
        decode(raw, Point, what="point", max_bytes=100_000)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("raw", "depth"), [(b"1", 0), (b"[]", 1), (b'{"a":[{}]}', 3), (b'"[[["', 0), (b'"\\"[["', 0)]
)
def test_depth_ignores_brackets_inside_strings(raw, depth):
    assert json_depth(raw) == depth

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepack_contract.description import DimensionRange, TensorSpec
from edgepack_runtime.inference.coerce import (
    check_feeds,
    rows_from_json,
    tensor_from_json,
    tensor_from_values,
)
from edgepack_runtime.inference.errors import (
    BadRequestError,
    InputError,
    NonfiniteInputError,
    ShapeError,
)


def spec(dtype: str = "float32", shape: list[int | str] | None = None) -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, shape=["batch", 2] if shape is None else shape)


def raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


@pytest.mark.parametrize("text", ["[1, 2, 3, 4]", "[[1, 2], [3, 4]]", " [ [1.0,2],\n[3,4e0] ]"])
def test_flat_and_nested_data_are_the_same(text):
    array = tensor_from_json(spec(), raw(text), [2, 2])
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("dtype", "text", "expected"),
    [
        ("bool", "[true, false]", [True, False]),
        ("str", '["a", "ö"]', ["a", "ö"]),
        ("int8", "[-128, 127]", [-128, 127]),
        ("uint64", "[0, 18446744073709551615]", [0, 2**64 - 1]),
        ("float64", "[0.1, 1]", [0.1, 1.0]),
        ("float32", "[1.5, null]", [1.5, math.nan]),
    ],
)
def test_every_kind_of_element(dtype, text, expected):
    array = tensor_from_json(spec(dtype), raw(text), [1, 2])
    assert array.dtype == np.dtype(object if dtype == "str" else dtype)
    np.testing.assert_array_equal(array[0], np.array(expected, array.dtype))


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("float32", '["1", 2]'),
        ("float32", "[true, 2]"),
        ("float32", "[NaN, 2]"),
        ("float32", "[1, {}]"),
        ("float32", "[1e999, 2]"),
        ("int64", "[1.5, 2]"),
        ("int64", "[null, 2]"),
        ("int8", "[128, 2]"),
        ("uint8", "[-1, 2]"),
        ("bool", "[1, 0]"),
        ("str", "[1, 2]"),
        ("float32", "[" * 17 + "]" * 17),
    ],
)
def test_values_of_another_type_are_refused(dtype, text):
    with pytest.raises(InputError) as caught:
        tensor_from_json(spec(dtype), raw(text), [1, 2])
    assert caught.value.kind == "bad_request"
    assert "17" in text or "'x'" in str(caught.value) or "nested" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("[1, 2, 3]", [1, 3]),
        ("[1, 2]", [2]),
        ("[1, 2, 3]", [1, 2]),
        ("[]", [0, 3]),
        ("[[1, 2], [3]]", [2, 2]),
        ("[[1], [2]]", [1, 2]),
        ("[[[1, 2]]]", [1, 2]),
        ("[1, 2]", [-1, 2]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(text, shape):
    with pytest.raises(ShapeError) as caught:
        tensor_from_json(spec(), raw(text), shape)
    assert caught.value.kind == "shape"
    assert "'x'" in str(caught.value)


def test_open_dimensions_may_be_empty_but_not_endless():
    assert tensor_from_json(spec(), raw("[]"), [0, 2]).shape == (0, 2)
    open_ended = TensorSpec(name="x", dtype="float32", shape=["n", "m", "k"])
    assert tensor_from_json(open_ended, raw("[]"), [3, 0, 2]).shape == (3, 0, 2)
    for shape in ([0, 2**31, 1], [2**70, 0, 1], [0, 2**20, 2]):
        with pytest.raises(ShapeError):
            tensor_from_json(open_ended, raw("[]"), shape)


def test_the_error_names_what_was_expected_and_given():
    with pytest.raises(
        ShapeError, match=r"input 'x': expected shape \[batch, 2\] of float32, given \[1, 3\]"
    ):
        tensor_from_values(spec(), [[1, 2, 3]])


def test_a_scalar_input():
    np.testing.assert_array_equal(tensor_from_json(spec("int64", []), raw("[5]"), []), 5)


def test_rows_are_shaped_as_they_are_nested():
    assert rows_from_json(spec(), raw("[[1, 2], [3, 4], [5, null]]")).shape == (3, 2)
    with pytest.raises(ShapeError):
        rows_from_json(spec(), raw("[1, 2]"))
    with pytest.raises(ShapeError, match="different lengths"):
        rows_from_json(spec(), raw("[[1, 2], [3]]"))


@pytest.mark.parametrize(
    ("dtype", "given_dtype", "accepted"),
    [
        ("float32", "float64", True),
        ("float32", "int16", True),
        ("float32", "bool", True),
        ("int64", "float64", False),
        ("int8", "int64", True),
        ("int64", "bool", True),
        ("float32", "U3", False),
        ("str", "U3", True),
        ("str", "float32", False),
    ],
)
def test_arrays_are_cast_only_where_nothing_is_lost_in_kind(dtype, given_dtype, accepted):
    values = np.ones((1, 2)).astype(given_dtype)
    if accepted:
        assert tensor_from_values(spec(dtype), values).shape == (1, 2)
    else:
        with pytest.raises(BadRequestError):
            tensor_from_values(spec(dtype), values)


def test_integers_out_of_range_are_refused():
    with pytest.raises(BadRequestError, match="range of int8"):
        tensor_from_values(spec("int8"), np.array([[1, 300]]))


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=4),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_what_json_carries_comes_back(array):
    shape: list[int | str] = [f"d{axis}" for axis in range(array.ndim)]
    nested = raw(msgspec.json.encode(array.tolist()).decode())
    flat = raw(msgspec.json.encode(array.ravel().tolist()).decode())
    for text in (nested, flat):
        back = tensor_from_json(spec("float32", shape), text, array.shape)
        np.testing.assert_array_equal(back, array)
    np.testing.assert_array_equal(tensor_from_values(spec("float32", shape), array), array)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
        max_leaves=12,
    )
)
def test_no_json_does_more_than_an_input_error(value: Any):
    try:
        array = tensor_from_json(spec(), raw(msgspec.json.encode(value).decode()), [2, 2])
    except InputError:
        return
    assert array.shape == (2, 2)
    assert array.dtype == np.float32


TWO = [
    TensorSpec(name="a", dtype="float32", shape=["n", 2]),
    TensorSpec(name="b", dtype="float32", shape=["n", "t"]),
]


class Described:
    """The fields of a description that the check of feeds reads."""

    def __init__(self, on_nonfinite: str = "refuse") -> None:
        self.inputs = TWO
        self.dimensions = {"t": DimensionRange(minimum=2, maximum=4)}
        self.on_nonfinite = on_nonfinite


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("feeds", "error", "words"),
    [
        ({"a": zeros(1, 2)}, BadRequestError, "'b' is missing"),
        ({"a": zeros(1, 2), "b": zeros(1, 2), "c": zeros(1)}, BadRequestError, "'c' is not one"),
        ({"a": zeros(1, 2), "b": zeros(2, 2)}, ShapeError, "'n' is 2 here and 1"),
        ({"a": zeros(1, 2), "b": zeros(1, 5)}, ShapeError, "allowed are 2 to 4"),
        ({"a": zeros(1, 2), "b": zeros(1, 1)}, ShapeError, "allowed are 2 to 4"),
        ({"a": zeros(1, 2), "b": zeros(1, 2) * np.nan}, NonfiniteInputError, "2 of 2 values"),
        ({"a": zeros(1, 2), "b": zeros(1, 2) + np.inf}, NonfiniteInputError, "infinite"),
    ],
)
def test_inputs_are_checked_against_each_other(feeds, error, words):
    with np.errstate(invalid="ignore"), pytest.raises(error, match=words):
        check_feeds(Described(), feeds)


def test_a_bundle_may_count_what_is_not_finite_instead():
    check_feeds(Described("count"), {"a": zeros(1, 2), "b": zeros(1, 2) * np.nan})

"""What travels between a build and a child: the same again, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgepack_packager.sources.wire import Tensor, from_tensors, to_tensors


@given(
    arrays.arrays(
        dtype=st.one_of(
            arrays.boolean_dtypes(),
            arrays.integer_dtypes(),
            arrays.floating_dtypes(sizes=(16, 32, 64)),
            arrays.datetime64_dtypes(),
        ),
        shape=arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
def test_numbers_come_back_the_same(array):
    (found,) = from_tensors(to_tensors({"x": array})).values()
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "ü", ""]),
        np.array([["a", None], ["b", 3]], object),
        np.array([], object),
        np.arange(12.0).reshape(3, 4).T,
    ],
)
def test_texts_and_gaps_come_back_the_same(array):
    (found,) = from_tensors(to_tensors({"x": array})).values()
    assert found.dtype.kind == array.dtype.kind
    assert found.tolist() == array.tolist()


def test_missing_values_of_pandas_become_gaps():
    array = np.array([float("nan"), np.datetime64("NaT"), None, np.float32(2)], object)
    (found,) = from_tensors(to_tensors({"x": array})).values()
    assert np.isnan(found[0])
    assert found.tolist()[1:] == [None, None, 2.0]


def test_objects_do_not_travel():
    with pytest.raises(ValueError, match="holds a object"):
        to_tensors({"x": np.array([object()], object)})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dtype": "<f4", "shape": (3,), "data": b"\0" * 8}, "reshape"),
        ({"dtype": "<f4", "shape": (1,), "data": b"\0" * 3}, "buffer"),
        ({"dtype": "O", "shape": (1,), "data": b"\0" * 8}, "do not travel"),
        ({"dtype": "i4,O", "shape": (1,), "data": b"\0" * 12}, "do not travel"),
        ({"dtype": "nonsense", "shape": (1,)}, "no type is called"),
        ({"dtype": "<f4", "shape": (1,), "cells": ("a",)}, "cells of type"),
        ({"dtype": "str", "shape": (2,), "cells": ("a",)}, "reshape"),
    ],
)
def test_tensors_that_contradict_themselves_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        from_tensors([Tensor(name="x", **fields)])

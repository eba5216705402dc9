from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_runtime.inference.float_rows import MOST_VALUES, FloatRows

WIDTH = 3
DTYPES = ("float16", "float32", "float64")
ROWS = st.lists(
    st.lists(st.floats(), min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=3
)  # fmt: skip


def rows_of(dtype, least=1, most=float("inf"), width=WIDTH):
    return FloatRows("x", dtype, width, (least, most))


@pytest.mark.parametrize("dtype", DTYPES)
@given(values=ROWS)
def test_what_is_read_is_what_numpy_makes_of_it(dtype, values):
    usual, flat = rows_of(dtype), [value for row in values for value in row]
    with np.errstate(over="ignore"):
        expected = np.array(values, np.float64).astype(dtype)
    for read in (usual.read(values), usual.read(flat, [len(values), WIDTH])):
        if read is not None:
            assert np.isfinite(expected).all()
            assert read.dtype == expected.dtype
            np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2])
def test_usual_values_are_read(dtype, count):
    read = rows_of(dtype).read([[0.1, -2.0, 3e4]] * count)
    assert read is not None
    assert read.shape == (count, WIDTH)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e39, 7e4])
def test_what_a_type_cannot_hold_takes_a_closer_look(bad):
    assert rows_of("float16").read([[bad, 0.0, 0.0]]) is None


@pytest.mark.parametrize("values", [[], [[]], [[1.0]], [[1.0] * 4], [[1.0] * 3, [1.0]]])
def test_other_shapes_take_a_closer_look(values):
    assert rows_of("float32").read(values) is None


def test_the_rows_a_model_takes():
    one = [[1.0, 2.0, 3.0]]
    assert rows_of("float32", least=2).read(one) is None
    assert rows_of("float32", most=1).read(one * 2) is None
    wide = [[1.0] * (MOST_VALUES + 1)]
    assert rows_of("float32", width=MOST_VALUES + 1).read(wide) is None

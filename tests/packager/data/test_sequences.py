"""Sequences: numbered as they appear, run longest first, each row after the one before it."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_packager.data.sequences import previous_rows, sequence_numbers, step_rows
from edgepack_packager.errors import DataError

units = st.lists(st.integers(0, 5), min_size=1, max_size=40).map(
    lambda names: sequence_numbers(np.array(names), len(names))
)


def test_sequences_are_numbered_as_they_appear():
    names = np.array(["b", "a", "b", "c", "a"], dtype=object)
    assert sequence_numbers(names, 5).tolist() == [0, 1, 0, 2, 1]
    assert sequence_numbers(None, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("names", [np.array(["a", None], object), np.array([1.0, np.nan])])
def test_every_row_belongs_to_a_sequence(names):
    with pytest.raises(DataError, match="row 1 names no sequence") as caught:
        sequence_numbers(names, 2)
    assert caught.value.code == "bad-sequence"


@given(units)
def test_steps_take_every_row_once_and_in_order(units):
    steps = step_rows(units)
    assert sorted(np.concatenate(steps).tolist()) == list(range(len(units)))
    for number in range(units.max() + 1):
        rows = [row for step in steps for row in step.tolist() if units[row] == number]
        assert rows == np.flatnonzero(units == number).tolist()


@given(units)
def test_a_step_continues_the_first_sequences_of_the_step_before(units):
    steps = step_rows(units)
    for one, two in pairwise(steps):
        assert units[one[: len(two)]].tolist() == units[two].tolist()


@given(units)
def test_the_row_before_is_the_last_of_its_sequence(units):
    before = previous_rows(units)
    for row, found in enumerate(before.tolist()):
        earlier = np.flatnonzero(units[:row] == units[row]).tolist()
        assert found == (earlier[-1] if earlier else -1)

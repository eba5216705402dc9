"""Columns put side by side under the name of the input that takes them."""

import numpy as np
import pytest

from edgepack_packager.data.arranging import arrange
from edgepack_packager.data.rows import Rows
from edgepack_packager.errors import DataError
from edgepack_packager.recipe import InputRule

ROWS = Rows(
    columns={
        "a": np.arange(3), "b": np.arange(3) * 0.5, "t": np.array(["x", "y", "z"], object),
        "image": np.zeros((3, 2, 2)), "pair": np.ones((3, 2)),
    },
    labels=np.arange(3),
    digest="sha256:" + "0" * 64,
    asides={"a": np.arange(3)},
)  # fmt: skip


def test_columns_stand_side_by_side_and_others_stay():
    found = arrange(ROWS, {"x": InputRule(columns=("b", "a")), "note": InputRule(columns=("t",))})
    assert list(found.columns) == ["image", "pair", "x", "note"]
    assert found.columns["x"].tolist() == [[0, 0], [0.5, 1], [1, 2]]
    assert found.columns["note"].tolist() == ["x", "y", "z"]
    assert found.labels is ROWS.labels
    assert list(found.asides) == ["a"]


def test_one_column_may_go_into_two_inputs_and_wide_ones_be_joined():
    rules = {"one": InputRule(columns=("a", "pair")), "two": InputRule(columns=("a", "b"))}
    found = arrange(ROWS, rules)
    assert found.columns["one"].shape == (3, 3)
    assert found.columns["two"].shape == (3, 2)


def test_an_input_may_have_the_name_of_a_column_that_it_takes():
    found = arrange(ROWS, {"a": InputRule(columns=("b",))})
    assert found.columns["a"].tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("columns", "code", "words"),
    [
        (("a", "z"), "no-column", "no column z; they have a, b"),
        (("a", "t"), "text-column", "column t holds no numbers"),
        (("a", "image"), "bad-shape", "image has more than one dimension"),
    ],
)
def test_what_cannot_stand_side_by_side_is_refused(columns, code, words):
    with pytest.raises(DataError, match=words) as caught:
        arrange(ROWS, {"x": InputRule(columns=columns)})
    assert caught.value.code == code

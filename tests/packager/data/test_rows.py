"""Rows: formats, splitting, binding to inputs, and each refusal with its reason."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv, parquet

from edgepack_contract.description import TensorSpec
from edgepack_packager.data.loading import read_parts, read_rows
from edgepack_packager.data.rows import (
    Rows,
    bind_rows,
    cast_feeds,
    feature_columns,
    gaps,
    has_missing,
)
from edgepack_packager.data.splitting import split_rows
from edgepack_packager.errors import DataError


def spec(name="x", shape=("batch", 2), dtype="float32", features=None):
    return TensorSpec(name=name, shape=list(shape), dtype=dtype, features=features)


def rows(**columns):
    return Rows(columns=columns, labels=None, digest="sha256:" + "0" * 64)


@pytest.fixture
def table():
    return pa.table({"b": [1.0, 2.0, None], "a": [4, 5, 6], "y": ["no", "yes", "no"]})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_are_read_and_the_label_taken_out(tmp_path, table, suffix):
    path = tmp_path / f"rows.{suffix}"
    (csv.write_csv if suffix == "csv" else parquet.write_table)(table, path)
    found = read_rows(path, label="y")
    assert found.n == 3
    assert list(found.columns) == ["b", "a"]
    assert list(found.labels) == ["no", "yes", "no"]
    assert np.isnan(found.columns["b"][2])
    assert found.digest.startswith("sha256:")


def test_arrays_are_read(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.zeros((4, 2)), y=np.arange(4))
    np.save(tmp_path / "rows.npy", np.zeros((4, 2)))
    assert read_rows(tmp_path / "rows.npz", label="y").labels.tolist() == [0, 1, 2, 3]
    assert read_rows(tmp_path / "rows.npy", label=None).n == 4


@pytest.mark.parametrize(
    ("arrays", "label", "code"),
    [
        ({"x": np.zeros((0, 2))}, None, "no-rows"),
        ({"x": np.zeros((3, 2)), "z": np.zeros(4)}, None, "ragged-data"),
        ({"x": np.zeros((3, 2))}, "y", "no-label"),
        ({"y": np.zeros(3)}, "y", "no-columns"),
        ({"x": np.zeros(3), "y": np.array([1, np.nan, 2])}, "y", "bad-label"),
        ({"x": np.array([{}, {}, {}], dtype=object)}, None, "unreadable-data"),  # a pickle
    ],
)
def test_unusable_arrays_are_refused(tmp_path, arrays, label, code):
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / "rows.npz", label=label)
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.npz", "rows.npy"])
@pytest.mark.parametrize("content", [None, b"", b"\x00\xff\x17 not a table"])
def test_broken_files_are_refused(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError):
        bind_rows(read_rows(path, label=None), [spec()])


def test_an_unknown_kind_of_file_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"\.csv, \.npy, \.npz, \.parquet"):
        read_rows(tmp_path / "rows.xlsx", label=None)


@given(st.integers(8, 5000), st.integers(0, 100))
def test_a_split_is_disjoint_complete_and_repeats(n, seed):
    whole = rows(x=np.arange(n))
    parts = split_rows(whole, seed=seed)
    pieces = [part.columns["x"] for part in (parts.calibration, parts.evaluation, parts.reference)]
    assert sorted(np.concatenate(pieces).tolist()) == list(range(n))
    assert all(len(piece) for piece in pieces)
    assert len(pieces[1]) >= len(pieces[2])
    again = split_rows(whole, seed=seed)
    assert np.array_equal(again.calibration.columns["x"], pieces[0])


def test_the_reference_keeps_the_order_of_the_rows():
    parts = split_rows(rows(x=np.arange(100)), seed=1)
    assert np.all(np.diff(parts.reference.columns["x"]) > 0)


def test_too_few_rows_are_not_split():
    with pytest.raises(DataError, match="at least 8"):
        split_rows(rows(x=np.arange(7)), seed=0)


def test_parts_given_one_by_one_need_the_label_only_for_evaluation(tmp_path):
    np.savez(tmp_path / "c.npz", x=np.zeros((4, 2)))
    np.savez(tmp_path / "e.npz", x=np.zeros((5, 2)), y=np.zeros(5))
    parts = read_parts(
        calibration=tmp_path / "c.npz", evaluation=tmp_path / "e.npz", reference=None, label="y"
    )
    assert (parts.calibration.labels, parts.evaluation.n, parts.reference) == (None, 5, None)
    with pytest.raises(DataError, match="no label"):
        read_parts(calibration=None, evaluation=tmp_path / "c.npz", reference=None, label="y")


def test_columns_are_matched_by_the_models_names_in_the_models_order():
    found = bind_rows(rows(b=np.array([1.0]), a=np.array([2.0]), c=np.array([3.0])),
                      [spec(features=["a", "b"])])  # fmt: skip
    assert found["x"].tolist() == [[2.0, 1.0]]


def test_columns_without_known_names_keep_their_order():
    found = bind_rows(rows(b=np.array([1.0]), a=np.array([2.0])), [spec()])
    assert found["x"].tolist() == [[1.0, 2.0]]


def test_several_inputs_are_matched_by_name_and_single_values_become_columns():
    specs = [spec("p", ("batch", 1)), spec("q", ("batch", 3))]
    found = bind_rows(rows(q=np.zeros((4, 3)), p=np.zeros(4)), specs)
    assert found["p"].shape == (4, 1)


def test_flat_rows_are_shaped_when_the_model_fixes_all_sizes():
    found = bind_rows(rows(pixels=np.arange(8.0).reshape(1, 8)), [spec(shape=("batch", 2, 2, 2))])
    assert found["x"].shape == (1, 2, 2, 2)


@pytest.mark.parametrize(
    ("columns", "specs", "code"),
    [
        ({"a": np.zeros(2)}, [spec("p"), spec("q")], "missing-input"),
        ({"a": np.zeros(2), "z": np.zeros(2)}, [spec(features=["a", "b"])], "missing-input"),
        ({"a": np.zeros(2), "b": np.array(["u", "v"])}, [spec()], "text-column"),
        ({"a": np.zeros(2), "b": np.zeros(2), "y": np.zeros(2)}, [spec()], "bad-shape"),
        ({"x": np.zeros((2, 3))}, [spec()], "bad-shape"),
    ],
)
def test_rows_that_do_not_fit_are_refused(columns, specs, code):
    with pytest.raises(DataError) as caught:
        bind_rows(rows(**columns), specs)
    assert caught.value.code == code


@pytest.mark.parametrize("array", [np.array([[0.5, 1.0]]), np.array([[300, 1]])])
def test_casting_never_changes_whole_numbers(array):
    with pytest.raises(DataError):
        cast_feeds({"x": array}, [spec(dtype="int8")])


def test_missing_values_are_noticed():
    assert has_missing({"x": np.array([1.0, np.inf])})
    assert not has_missing({"x": np.array([1, 2])})


def aside(keys=(), **columns):
    known = {name: np.zeros(2) for name in ("a", "b")}
    return Rows({**known, **columns}, None, "", dict(columns), tuple(keys))


def test_asides_are_no_features_unless_the_model_takes_as_many_columns():
    beside = aside(("when",), when=np.ones(2), sex=np.ones(2))
    assert feature_columns(beside, spec()) == ["a", "b"]
    assert feature_columns(beside, spec(shape=("batch", 3))) == ["a", "b", "sex"]
    assert feature_columns(beside, spec(shape=("batch", 4))) == ["a", "b", "when", "sex"]
    assert feature_columns(beside, spec(shape=("batch", "any"))) == ["a", "b"]
    assert feature_columns(beside, spec(features=["sex", "a"])) == ["sex", "a"]


def test_the_only_array_beside_a_sequence_is_the_input():
    images = Rows({"pixels": np.zeros((4, 8, 8)), "who": np.arange(4)}, None, "",
                  {"who": np.arange(4)}, ("who",))  # fmt: skip
    found = bind_rows(images, [spec(shape=("batch", 8, 8))])
    assert found["x"].shape == (4, 8, 8)


def test_texts_that_stand_for_numbers_are_shown_with_their_row():
    odd = rows(a=np.array(["1", "2", "two"], dtype=object), b=np.zeros(3))
    with pytest.raises(DataError, match=r"text such as 'two' \(row 2\)"):
        bind_rows(odd, [spec()])


def test_rows_of_a_part_are_named_by_their_place_in_the_data():
    odd = rows(a=np.array(["1", "2", "two", "4"], dtype=object), b=np.array([0, np.nan, 0, 0]))
    part = odd.take(np.array([3, 2, 1, 0])).take(np.array([1, 2]))
    with pytest.raises(DataError, match=r"text such as 'two' \(row 2\)"):
        bind_rows(part, [spec()])
    assert gaps(part) == ["b (row 1)"]


def test_too_many_columns_are_listed():
    wide = rows(**{f"c{place}": np.zeros(2) for place in range(30)})
    with pytest.raises(DataError, match=r"takes 2 columns, the data have 30: c0, .*, …, .*, c29"):
        bind_rows(wide, [spec()])


def test_a_missing_text_is_the_empty_one():
    texts = np.array([["a"], [None]], dtype=object)
    assert cast_feeds({"x": texts}, [spec(dtype="str")])["x"].tolist() == [["a"], [""]]

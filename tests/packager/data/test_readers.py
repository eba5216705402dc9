"""Every format gives the same rows; what holds no values is refused by name; nothing unpickles."""

import datetime as dt
import decimal
import io
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import save_file

from edgepack_packager.data import readers
from edgepack_packager.data.loading import read_rows
from edgepack_packager.data.readers import read_columns
from edgepack_packager.errors import DataError


def write(folder, **columns):
    path = folder / "rows.parquet"
    parquet.write_table(pa.table(columns), path)
    return path


def refused(path, label=None):
    with pytest.raises(DataError) as caught:
        read_rows(path, label=label)
    return caught.value


def test_parquet_columns_of_every_kind_become_numbers_texts_or_times(tmp_path):
    day = dt.date(2026, 3, 1)
    columns, digest = read_columns(write(
        tmp_path,
        decimal=pa.array([decimal.Decimal("1.5"), None]),
        kind=pa.array(["a", "b"]).dictionary_encode(),
        code=pa.array([7, 9]).dictionary_encode(),
        day=pa.array([day, None]),
        at=pa.array([dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC), None]),
        flag=pa.array([True, None]),
        sure=pa.array([True, False]),
        count=pa.array([3, None]),
        vector=pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        image=pa.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]),
        nothing=pa.nulls(2),
    ))  # fmt: skip
    assert digest.startswith("sha256:")
    assert columns["decimal"].tolist()[0] == 1.5
    assert columns["kind"].tolist() == ["a", "b"]
    assert columns["code"].tolist() == [7, 9]
    assert columns["day"].dtype.kind == columns["at"].dtype.kind == "M"
    assert columns["flag"][0] == 1.0
    assert all(np.isnan(columns[name][1]) for name in ("decimal", "flag", "count", "nothing"))
    assert columns["sure"].dtype == bool
    assert columns["vector"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert columns["image"].shape == (2, 2, 2)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"\x00", b"\x01"]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([[1, 2], [3]]),
        pa.array([[1, 2], None]),
        pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
    ],
)
def test_parquet_columns_that_hold_no_values_are_refused_by_name(tmp_path, column):
    found = refused(write(tmp_path, good=[1.0, 2.0], odd=column))
    assert found.code == "column-type"
    assert "'odd'" in str(found)


def test_empty_cells_of_csv_are_missing_and_na_may_be_a_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('number,text,land\n1.5,"a,b",NA\n,,NO\n')
    columns, _ = read_columns(path)
    assert np.isnan(columns["number"][1])
    assert columns["text"].tolist() == ["a,b", None]
    assert columns["land"].tolist() == ["NA", "NO"]


def test_safetensors_are_read_and_others_under_that_name_refused(tmp_path):
    path = tmp_path / "rows.safetensors"
    save_file({"x": np.ones((3, 2), np.float32), "y": np.arange(3)}, path)
    rows = read_rows(path, label="y")
    assert (rows.n, rows.labels.tolist()) == (3, [0, 1, 2])
    path.write_bytes(b"\xff" * 64)
    assert refused(path).code == "unreadable-data"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (np.array([1 + 2j, 3]), "column-type"),
        (np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), "column-type"),
        (np.array([None, 1], dtype=object), "unreadable-data"),
    ],
)
def test_arrays_that_hold_no_values_are_refused(tmp_path, values, code):
    np.savez(tmp_path / "rows.npz", x=values)
    assert refused(tmp_path / "rows.npz").code == code


def test_bytes_become_texts_and_a_missing_label_names_its_row(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.array([b"a", b"bc"]))
    assert read_columns(tmp_path / "rows.npz")[0]["x"].tolist() == ["a", "bc"]
    error = refused(write(tmp_path, x=[1.0, 2.0, 3.0], y=["a", None, "b"]), label="y")
    assert "missing in 1 of 3 rows, the first is row 1" in str(error)


def claim(shape):
    stream = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def test_a_claim_of_more_bytes_than_are_held_is_refused_before_they_are_made(tmp_path):
    (tmp_path / "rows.npy").write_bytes(claim((10**12,)))
    assert refused(tmp_path / "rows.npy").code == "too-much-data"
    with zipfile.ZipFile(tmp_path / "rows.npz", "w") as archive:
        archive.writestr("x.npy", claim((10**6, 10**6)))
    assert refused(tmp_path / "rows.npz").code == "too-much-data"
    (tmp_path / "rows.npy").write_bytes(claim((1000,)))
    assert refused(tmp_path / "rows.npy").code == "unreadable-data"


def test_rows_over_the_limit_are_refused_whatever_holds_them(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MOST_BYTES", 20_000)
    few = pa.array(["x" * 50] * 2000).dictionary_encode()
    small = write(tmp_path, x=np.zeros(10))
    assert read_rows(small, label=None).n == 10
    assert refused(write(tmp_path, x=np.zeros(5000))).code == "too-much-data"
    assert refused(write(tmp_path, x=few.cast(pa.string()))).code == "too-much-data"
    (tmp_path / "rows.csv").write_text("a\n" + "1.2345\n" * 4000)
    error = refused(tmp_path / "rows.csv")
    assert error.code == "too-much-data"
    assert "over 20000" in str(error)

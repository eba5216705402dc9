"""What a killed writer leaves is removed by the next; what a living one writes is not."""

from __future__ import annotations

import signal
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet as pa_parquet

from edgepack_packager.errors import DataError
from edgepack_packager.scoring.tables import TableReader, new_table, remove_leavings

SCHEMA = pa.schema([("v", pa.int64())])
HANGING = """
import sys
from pathlib import Path
import pyarrow as pa
from edgepack_packager.scoring.tables import new_table
schema = pa.schema([("v", pa.int64())])
with new_table(Path(sys.argv[1]), schema) as writer:
    writer.write_batch(pa.record_batch([pa.array(range(100000))], schema=schema))
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing ``out.parquet``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, tmp_path / "out.parquet"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


def names(folder):
    return [path.name for path in folder.iterdir()]


def parts(folder):
    return [name for name in names(folder) if name.endswith(".part")]


def write_and_fail(path):
    with new_table(path, SCHEMA) as table:
        table.write_batch(pa.record_batch([pa.array([1])], schema=SCHEMA))
        raise ZeroDivisionError


def test_a_killed_writer_leaves_nothing_under_the_name(writer, tmp_path):
    remove_leavings(tmp_path / "out.parquet")
    assert len(parts(tmp_path)) == 1, "a living writer keeps its file"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert not (tmp_path / "out.parquet").exists()
    assert len(parts(tmp_path)) == 1
    with new_table(tmp_path / "out.parquet", SCHEMA) as table:
        assert len(parts(tmp_path)) == 1, "its own"
        table.write_batch(pa.record_batch([pa.array([1])], schema=SCHEMA))
    assert names(tmp_path) == ["out.parquet"]


def test_an_interrupted_writer_cleans_up_itself(writer, tmp_path):
    writer.send_signal(signal.SIGINT)
    assert writer.wait() != 0
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_failure_leaves_what_was_there(tmp_path, kind):
    path = tmp_path / f"out.{kind}"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError):
        write_and_fail(path)
    assert path.read_text() == "before"
    assert names(tmp_path) == [path.name]


def test_a_truncated_parquet_is_unreadable(tmp_path):
    pa_parquet.write_table(pa.table({"v": range(1000)}), tmp_path / "t.parquet")
    raw = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(raw[:-100])
    with pytest.raises(DataError, match="cannot read"), TableReader(tmp_path / "t.parquet"):
        pass


def test_damaged_pages_are_an_error_not_numbers(tmp_path):
    pa_parquet.write_table(
        pa.table({"v": range(100_000)}), tmp_path / "t.parquet", write_page_checksum=True
    )
    raw = bytearray((tmp_path / "t.parquet").read_bytes())
    raw[200:400] = bytes(200)
    (tmp_path / "t.parquet").write_bytes(raw)
    with (
        pytest.raises(DataError, match="cannot read"),
        TableReader(tmp_path / "t.parquet") as reader,
    ):
        list(reader.batches(["v"], texts=[], rows=1000))

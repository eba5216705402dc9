"""``edgepack predict``: streams, exit codes, and what is left when the process is ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pytest
from pyarrow import csv as pa_csv
from world_bundles import tiny_bundle

from edgepack_contract.keys import read_private_key

ROWS = "id,a,b,c,d\n1,1,2,3,4\n2,0,x,0,0\n"


@pytest.fixture
def scores(tmp_path, keys):
    publisher = read_private_key(keys[0] / "publisher.key")
    tiny_bundle(tmp_path / "tiny.edgepack", "1.0.0", signer=publisher)
    (tmp_path / "rows.csv").write_text(ROWS)
    return tmp_path


def predict(cli, folder, *options, rows="rows.csv", out="out.csv"):
    words = ("predict", folder / "tiny.edgepack", folder / rows, "-o", folder / out)
    return cli(*words, "--keep", "id", *options)


def test_rows_are_scored_for_people_and_for_programs(cli, scores, trust):
    ended = predict(cli, scores, "--on-error", "null", *trust)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[0].startswith(f"{scores / 'out.csv'}: 2 rows, 1 of them without")
    assert "  row 2: column 'b' holds 'x'" in ended.out
    shown = json.loads(
        predict(cli, scores, "--on-error", "null", "--overwrite", "--json", *trust).out
    )
    assert (shown["rows"], shown["refused"]) == (2, 1)
    assert shown["bundle"]["signed_by"]
    assert pa_csv.read_csv(scores / "out.csv").column("id").to_pylist() == [1, 2]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 3, "row 2: column 'b' holds 'x', expected a number"),
        (("--keep", "name"), 3, "no column name to keep"),
        (("--variant", "rpi5"), 7, "there is no variant 'rpi5'"),
        (("--on-error", "skip"), 2, "skip"),
        (("--chunk-rows", "0"), 2, "chunk-rows"),
    ],
)
def test_what_cannot_be_scored_is_refused_and_leaves_nothing(cli, scores, options, code, words):
    ended = predict(cli, scores, *options)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err.splitlines()[-1]
    assert not [path.name for path in scores.iterdir() if "out.csv" in path.name]


def test_a_bundle_of_a_stranger_is_not_used(cli, scores, trust):
    tiny_bundle(scores / "tiny.edgepack", "1.0.0")
    assert predict(cli, scores, *trust).code == 6


def test_a_full_disk_is_said(scores):
    """Any limit on what may be written will do: the file is removed, and the words name it."""
    pa_csv.write_csv(
        pa.table({n: [0.5] * 20_000 for n in ("id", "a", "b", "c", "d")}), scores / "big.csv"
    )
    words = ["predict", scores / "tiny.edgepack", scores / "big.csv", "-o", scores / "out.csv"]
    code = (
        "import resource, sys; from edgepack_cli.main import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
        "main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, words), "--keep", "id"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "cannot write" in done.stderr
    assert "out.csv" in done.stderr
    assert not [path.name for path in scores.iterdir() if "out.csv" in path.name]


@pytest.mark.e2e
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_run_that_is_ended_cleans_up(scores, number, code):
    process, part = started(scores)
    process.send_signal(number)
    assert process.wait(60) == code
    assert not part.exists()
    assert not [path.name for path in scores.iterdir() if "out.csv" in path.name]


@pytest.mark.e2e
def test_a_run_that_is_killed_leaves_no_output_and_the_next_cleans_up(cli, scores):
    process, part = started(scores)
    process.kill()
    process.wait()
    assert part.exists()
    assert not (scores / "out.csv").exists()
    assert predict(cli, scores, "--on-error", "null").code == 0
    assert not part.exists()


def started(folder):
    """A run in the middle of writing, with what it writes."""
    rows = 500_000
    table = pa.table({name: pa.array([0.5]).take(pa.array([0] * 100_000)) for name in "abcd"})
    with pa_csv.CSVWriter(folder / "long.csv", table.schema) as writer:
        for _ in range(rows // 100_000):
            writer.write_table(table)
    words = ["predict", folder / "tiny.edgepack", folder / "long.csv", "-o", folder / "out.csv"]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgepack_cli", *map(str, words), "--chunk-rows", "50"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (parts := list(folder.glob(".out.csv.*.part"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
    return process, parts[0]

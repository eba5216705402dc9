"""Rows from code: joined, digested whatever the batches, and refused in words."""

import sys
from pathlib import Path

import pytest

from edgepack_packager.code import code_digest, load_function
from edgepack_packager.data import readers
from edgepack_packager.data.loading import read_rows
from edgepack_packager.errors import DataError, RecipeError

CODE = """
import numpy as np

def rows(size):
    for start in range(0, 60, size):
        yield {"x": np.arange(start, start + size).reshape(-1, 1) / 7, "y": ["ab"] * size}

def tens(): return [{**b, "y": ["ab"] * 10} for b in rows(10)]
def twenties(): return [{**b, "y": np.array(["ab"] * 20, object)} for b in rows(20)]
def once(): return {"x": np.zeros((5, 2)), "y": np.arange(5)}
def nothing(): return []
def texts(): return ["a"]
def uneven(): return {"x": np.zeros(3), "y": np.zeros(4)}
def renamed(): return [{"x": np.zeros(3)}, {"z": np.zeros(3)}]
def reshaped(): return [{"x": np.zeros((3, 2))}, {"x": np.zeros((3, 4))}]
def broken(): raise ValueError("no such table")
def endless():
    while True:
        yield {"x": np.zeros(1000)}
number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "given_rows.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("given_rows", None)


def test_batches_are_joined_and_their_sizes_do_not_change_the_digest():
    tens = read_rows(Path("given_rows:tens"), label="y")
    twenties = read_rows(Path("given_rows:twenties"), label="y")
    assert (tens.n, tens.labels[0]) == (60, "ab")
    assert tens.digest == twenties.digest
    assert tens.digest != read_rows(Path("given_rows:once"), label="y").digest


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nothing", "no-rows", "gives no rows"),
        ("texts", "bad-batch", "batch 0 is str"),
        ("uneven", "bad-batch", "different lengths"),
        ("renamed", "bad-batch", "batch 1 has z, the first has x"),
        ("reshaped", "bad-batch", "x changes its shape"),
        ("broken", "data-failed", "ValueError: no such table"),
    ],
)
def test_code_that_gives_no_rows_is_refused(name, code, words):
    with pytest.raises(DataError, match=words) as caught:
        read_rows(Path(f"given_rows:{name}"), label=None)
    assert caught.value.code == code


def test_code_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr(readers, "MOST_BYTES", 100_000)
    with pytest.raises(DataError, match="over 100000"):
        read_rows(Path("given_rows:endless"), label=None)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("given_rows:missing", "no-function"),
        ("given_rows:number", "no-function"),
        ("no_module:f", "code-failed"),
    ],
)
def test_code_that_is_not_there_is_named(name, code):
    with pytest.raises(RecipeError, match=name) as caught:
        read_rows(Path(name), label=None)
    assert caught.value.code == code


def test_the_digest_of_code_is_that_of_its_file():
    first = code_digest(load_function(Path("given_rows:once")))
    assert first == code_digest(load_function(Path("given_rows:tens")))
    assert first != code_digest(pytest.fail)

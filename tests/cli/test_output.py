"""Printing: tables, sizes, JSON, and what goes to which stream."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_cli.output import bytes_text, emit_json, note, say, table


class Colour(StrEnum):
    RED = "red"


class Inner(msgspec.Struct):
    colour: Colour = Colour.RED


@dataclass
class Outer:
    path: Path
    inner: Inner
    names: frozenset[str]


def test_a_table_is_aligned_without_trailing_blanks():
    text = table(("NAME", "SIZE"), [("a", 1), ("longer", ""), ("b", 12345)])
    assert text == "NAME    SIZE\na       1\nlonger\nb       12345"


def test_a_table_without_rows_is_its_headings():
    assert table(("NAME", "SIZE"), []) == "NAME  SIZE"


WORDS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=9)


@given(st.lists(st.tuples(WORDS, WORDS), max_size=5))
def test_a_table_keeps_every_cell_in_its_column(rows):
    lines = table(("A", "B"), rows).splitlines()
    start = lines[0].index("B")
    assert [(line[:start].strip(), line[start:]) for line in lines[1:]] == rows


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"),
        (5 * 1024**2, "5.0 MiB"), (3 * 1024**3, "3.0 GiB"), (2000 * 1024**3, "2000.0 GiB"),
    ],
)  # fmt: skip
def test_sizes(size, text):
    assert bytes_text(size) == text


def test_json_is_one_object_with_sorted_keys(capsys):
    emit_json({"b": Outer(Path("/x"), Inner(), frozenset({"n"})), "a": 1})
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "a": 1, "b": {"path": "/x", "inner": {"colour": "red"}, "names": ["n"]},
    }  # fmt: skip
    assert out.index('"a"') < out.index('"b"')
    assert err == ""


def test_results_and_notes_go_to_different_streams(capsys):
    say("a result")
    note("a note")
    assert capsys.readouterr() == ("a result\n", "a note\n")

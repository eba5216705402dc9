"""The table of a terminal: aligned, inside 100 columns, with every reason."""

from __future__ import annotations

import pytest

from edgepack_packager.report.table import (
    BuildResult,
    CandidateRow,
    render_table,
    spell_bytes,
    spell_ms,
)


def result(*rows):
    return BuildResult(None, f"sha256:{'0' * 64}", rows, (), {})


def row(**changes):
    fields = {
        "target": "generic-amd64", "name": "int8-static-per-channel",
        "metric": "; ".join(f"metric-{n} 0.9610 (0.9400..0.9760, n=540)" for n in range(4)),
        "size_bytes": 1 << 21, "latency_ms": 0.0104, "chosen": True,
        "reason": "chosen: " + "a long reason " * 20,
    }  # fmt: skip
    return CandidateRow(**{**fields, **changes})


def test_long_metrics_and_reasons_go_on_below():
    text = render_table(result(row(), row(name="fp32", chosen=False, latency_ms=None)))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    size = lines[0].index("size")
    assert lines[1][size:].split() == ["2.0", "MiB", "10", "us"]
    assert lines[1].startswith("*")
    whole = " ".join(text.split())
    assert all(f"metric-{n}" in whole for n in range(4))
    assert whole.count("a long reason") == 40
    assert "not measured" in whole


def test_a_row_that_fits_is_one_line():
    text = render_table(result(row(metric="accuracy 1.0", reason="short")))
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")]
)
def test_sizes(size, words):
    assert spell_bytes(size) == words


@pytest.mark.parametrize(("ms", "words"), [(0.0104, "10 us"), (9.9, "9900 us"), (12.34, "12.3 ms")])
def test_latencies(ms, words):
    assert spell_ms(ms) == words

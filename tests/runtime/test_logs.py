"""The log: what a line is, and that no log keeps the daemon from serving."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import re
from pathlib import Path

import pytest
from syntax import syntax_tree

import edgepack_runtime
from edgepack_runtime.config import LogConfig
from edgepack_runtime.logs import (
    BURST,
    BURST_SECONDS,
    LINE_BYTES,
    JsonFormatter,
    LineHandler,
    Repeats,
    configure,
)

PACKAGE = Path(edgepack_runtime.__file__).parent
DOCUMENT = Path(__file__).parents[2] / "docs" / "logs.md"
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def record(message="words", **changes):
    fields = {"name": "edgepack", "msg": message, "levelname": "INFO", "levelno": logging.INFO}
    return logging.makeLogRecord(fields | changes)


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    yield reading, writing
    os.close(writing)
    with contextlib.suppress(OSError):
        # a test may have closed it
        os.close(reading)


def handler(writing):
    made = LineHandler(writing)
    made.setFormatter(JsonFormatter())
    return made


def test_every_line_is_ascii_json_and_short(pipe):
    reading, writing = pipe
    for message in ("é\n\x00\ud800", "x" * 10**6, "日" * 10**5):
        handler(writing).emit(record(message, event="a"))
        raw = os.read(reading, 2 * LINE_BYTES)
        assert len(raw) <= LINE_BYTES
        assert raw.isascii()
        assert raw.count(b"\n") == 1
        assert json.loads(raw)["event"] == "a"


def test_a_reader_that_hangs_loses_lines_and_then_hears_how_many(pipe):
    reading, writing = pipe
    lines = handler(writing)
    for _ in range(200):
        lines.emit(record("x" * 900, event="a"))
    assert lines.lost > 0
    lost = lines.lost
    while len(os.read(reading, 65536)) == 65536:
        pass
    lines.emit(record("at last", event="b"))
    told = [json.loads(line) for line in os.read(reading, 65536).splitlines()]
    assert [one["event"] for one in told[-2:]] == ["log_lost", "b"]
    assert str(lost) in told[-2]["message"]
    assert lines.lost == 0


def test_a_reader_that_is_gone_and_a_full_disk_end_nothing(pipe):
    reading, writing = pipe
    os.close(reading)
    lines = handler(writing)
    lines.emit(record())
    full = os.open("/dev/full", os.O_WRONLY)
    handler(full).emit(record())
    os.close(full)
    handler(10_000).emit(record())
    lines.emit(record("%d", args=("no number",)))
    assert lines.lost == 2


def test_what_repeats_is_counted_instead(pipe):
    clock = [0.0]
    repeats = Repeats(lambda: clock[0])
    passed = [repeats.filter(record(event="a", msg=f"try {n}")) for n in range(100)]
    assert passed == [True] * BURST + [False] * (100 - BURST)
    assert repeats.filter(record(event="b"))
    clock[0] = BURST_SECONDS
    later = record(event="a")
    assert repeats.filter(later)
    assert later.left_out == 100 - BURST
    again = record(event="a")
    assert repeats.filter(again)
    assert not hasattr(again, "left_out")


def test_how_an_install_ends_is_no_repetition_of_how_others_began():
    repeats = Repeats(lambda: 0.0)

    def passes(slot, phase):
        return repeats.filter(record(event="slot_phase", slot=slot, phase=phase))

    assert [passes("tiny", "downloading") for _ in range(BURST + 1)] == [True] * BURST + [False]
    assert passes("tiny", "fell-back")
    assert passes("other", "downloading")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LogConfig(), ["info", "warning"]), (LogConfig(level="error"), []),
        (LogConfig(level="debug", format="json"), ["debug", "info", "warning"]),
    ],
    ids=["as it is", "errors", "all"],
)  # fmt: skip
def test_level_and_format_are_as_configured(tmp_path, config, expected):
    root = logging.getLogger()
    before = root.level
    with (tmp_path / "log").open("w+") as stream:
        configure(LogConfig(format="text"), stream)
        configure(config, stream)
        try:
            for level in (logging.DEBUG, logging.INFO, logging.WARNING):
                logging.getLogger("edgepack").log(level, "a", extra={"event": "test"})
        finally:
            root.handlers = [one for one in root.handlers if not isinstance(one, LineHandler)]
            root.setLevel(before)
    told = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [one["level"] for one in told] == expected


def calls():
    """Every call of a logger in the package: where, and the event that it names."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(syntax_tree(path)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
                and node.func.attr in LEVELS
            ):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", path, node


def events_of(path):
    """Names in ``"event": "name"`` of a module, whether at the call or beside it."""
    return re.findall(r'"event": "([^"]+)"', path.read_text(encoding="utf-8"))


def test_every_call_names_its_event():
    unnamed = [
        where for where, _, node in calls() if "extra" not in {word.arg for word in node.keywords}
    ]
    assert unnamed == []


def test_the_document_lists_every_event_and_no_other():
    used = {event for path in PACKAGE.rglob("*.py") for event in events_of(path)}
    rows = re.findall(r"^\| (`.*?`) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    listed = [event for row in rows for event in re.findall(r"`([^`]+)`", row)]
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == used | {"other"}
    assert all(re.fullmatch(r"[a-z0-9_]+", event) for event in used)

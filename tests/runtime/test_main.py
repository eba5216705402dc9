"""The outermost boundary of the daemon: exit codes, and a log that machines read."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
from world_device import make_home

from edgepack_contract.errors import (
    ConfigError,
    MalformedBundleError,
    MalformedDocumentError,
    SigningKeyError,
    SourceError,
    UnsupportedBundleError,
    UntrustedBundleError,
    UntrustedDocumentError,
)
from edgepack_runtime.__main__ import exit_code
from edgepack_runtime.errors import DiskFullError, StorageFaultError
from edgepack_runtime.inference.errors import ModelLoadError
from edgepack_runtime.logs import JsonFormatter


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError, 78), (UnsupportedBundleError, 7), (MalformedBundleError, 6),
        (UntrustedBundleError, 6), (MalformedDocumentError, 6), (UntrustedDocumentError, 6),
        (SourceError, 3), (ModelLoadError, 3), (SigningKeyError, 78), (DiskFullError, 1),
        (StorageFaultError, 1),
    ],
)  # fmt: skip
def test_the_exit_code_says_who_is_to_blame(error, code):
    assert exit_code(error("words")) == code


LOOP = """
import asyncio, os, sys
import edgepack_runtime.process as process
os.cpu_count = lambda: 2
async def run_device(*_):
    selector = asyncio.get_running_loop()._selector
    print(type(selector).__name__, selector._seconds)
process.run_device = run_device
from edgepack_runtime.__main__ import main
sys.exit(main())
"""


def test_the_loop_waits_awake_for_as_long_as_is_settled(tmp_path):
    make_home(tmp_path / "pi", "pi", 1883)
    config = tmp_path / "pi" / "device.toml"
    config.write_text(config.read_text().replace("[serve]", "[serve]\nbusy_poll_us = 500"))
    done = subprocess.run(
        [sys.executable, "-c", LOOP, "--config", config],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "AwakeSelector 0.0005\n"), done.stderr


def record(**changes):
    fields = {"name": "edgepack", "msg": "slot %s", "args": ("main",), "levelname": "WARNING"}
    return logging.makeLogRecord(fields | changes)


def test_a_log_line_is_one_json_object_with_the_names_of_its_call():
    line = JsonFormatter().format(record(event="slot_phase", slot="main"))
    assert "\n" not in line
    told = json.loads(line)
    assert (told["message"], told["level"]) == ("slot main", "warning")
    assert (told["event"], told["slot"]) == ("slot_phase", "main")
    assert set(told) == {"time", "level", "message", "event", "slot"}


def test_a_traceback_stays_inside_its_line():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        line = JsonFormatter().format(record(exc_info=sys.exc_info()))
    assert "\n" not in line
    assert "ValueError: two\nlines" in json.loads(line)["error"]


def test_what_is_not_json_is_still_told():
    line = JsonFormatter().format(record(path=pytest))
    assert "pytest" in json.loads(line)["path"]

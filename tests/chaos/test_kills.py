"""A slice of ``make chaos``: every scenario killed at some calls, and some calls that fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.foreign("strace"), pytest.mark.e2e, pytest.mark.xdist_group("chaos")]

TOOL = Path(__file__).parent / "kills.py"


def run(state, *arguments):
    return subprocess.run(
        [sys.executable, TOOL, "--state", state, "--workers", "4", *arguments],
        capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip


def lines(state):
    return [json.loads(line) for line in state.read_text().splitlines()]


def test_killed_daemons_start_again_and_serve_and_finish(tmp_path):
    state = tmp_path / "state.jsonl"
    done = run(state, "--kills", "12", "--scenario", "install")
    assert done.returncode == 0, done.stdout + done.stderr
    first = lines(state)
    assert sum(one["hits"] for one in first) >= 12
    # it goes on where it was
    done = run(state, "--kills", "14", "--scenario", "install")
    assert done.returncode == 0, done.stdout + done.stderr
    both = lines(state)
    assert both[: len(first)] == first
    assert len({one["job"] for one in both}) == len(both)


def test_failing_calls_stop_nothing(tmp_path):
    state = tmp_path / "state.jsonl"
    done = run(state, "--errors", "--kills", "8", "--scenario", "fallback")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(one["hits"] for one in lines(state)) >= 8

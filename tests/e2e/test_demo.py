"""The whole loop, with a kill at each of three points: it must end as if nothing had happened."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

SECONDS = 300.0
PROCESSES = 8
"""The demo itself, the broker, the fleet service, and five devices."""

KILLS = ["device-install", "device-probation", "fleet-soak"]


def processes_with(mark: str) -> list[str]:
    """The command lines of all processes that inherited ``mark`` in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append(f"{entry.name}: {command}")
        except (OSError, UnicodeDecodeError):
            continue  # it has ended, or belongs to somebody else
    return found


@contextmanager
def running(tmp_path, *options):
    """The demo as a process with a temporary folder of its own: (process, folder, stdout)."""
    # not in tmp_path: names of Unix sockets are short
    home = Path(tempfile.mkdtemp(prefix="edgepack-e2e-"))
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgepack_cli", "demo", "--exit", *options],
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            env={**os.environ, "TMPDIR": str(home)},
        )  # fmt: skip
    try:
        yield process, home, out
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(SECONDS)
        shutil.rmtree(home)


def wait_for(come_true, out):
    deadline = time.monotonic() + SECONDS
    while not come_true():
        assert time.monotonic() < deadline, f"waited in vain:\n{out.read_text()[-3000:]}"
        time.sleep(0.2)


@pytest.mark.e2e
@pytest.mark.xdist_group("demo")
def test_the_demo_comes_true_and_leaves_nothing_behind(tmp_path):
    kills = [word for kill in KILLS for word in ("--kill", kill)]
    with running(tmp_path, *kills) as (process, home, path):
        wait_for(lambda: len(processes_with(f"TMPDIR={home}")) >= PROCESSES, path)
        wait_for(lambda: process.poll() is not None, path)
        assert list(home.iterdir()) == []
        assert processes_with(f"TMPDIR={home}") == []
    out, err = path.read_text(), (tmp_path / "err").read_text()
    assert process.returncode == 0, f"{out[-4000:]}\n{err[-4000:]}"
    assert re.fullmatch(r"Everything came true in \d+ s\.", out.splitlines()[-1])
    ends = re.findall(r"^\S+: digits (\S+) to gateways is (\w+)$", out, re.MULTILINE)
    assert ends == [("1.0.0", "completed"), ("1.1.0", "completed"), ("1.2.0", "rolled_back")]
    assert "accuracy: not measured" in out
    (served, failed, refused) = map(
        int,
        re.findall(r"^requests: (\d+) served, (\d+) failed, (\d+) refused", out, re.MULTILINE)[0],
    )
    assert failed == 0
    assert served > 5000
    assert refused > 0, "two daemons were killed"
    lines = re.findall(r"^answers by version, (?:clients|telemetry): +(.*)$", out, re.MULTILINE)
    clients, telemetry = (dict(part.split() for part in line.split(", ")) for line in lines)
    assert set(clients) == set(telemetry) == {"1.0.0", "1.1.0", "1.2.0"}
    assert all(int(telemetry[version]) <= int(count) for version, count in clients.items())
    right = dict(re.findall(r"^rollout of 1\.2\.0 +(\S+) +\d+ +([\d.]+) %$", out, re.MULTILINE))
    after = float(re.findall(r"^after +1\.1\.0 +\d+ +([\d.]+) %$", out, re.MULTILINE)[0])
    assert float(right["1.2.0"]) < 85
    assert after > 90


@pytest.mark.e2e
@pytest.mark.xdist_group("demo")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_interrupted_leaves_nothing_behind(tmp_path, number):
    with running(tmp_path) as (process, home, path):
        wait_for(lambda: len(processes_with(f"TMPDIR={home}")) > PROCESSES - 5, path)
        while process.poll() is None:
            # whoever is impatient asks again
            process.send_signal(number)
            time.sleep(0.05)
        assert process.returncode == 130
        assert list(home.iterdir()) == []
        assert processes_with(f"TMPDIR={home}") == []

"""The supervisor: what dies comes back, what is stopped stays away."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from edgepack_cli.demo.supervisor import Child, Supervisor

SECONDS = 30.0
SLEEPER = "import sys, time\nopen(sys.argv[1], 'a').write('x')\ntime.sleep(600)"
DEAF = (
    "import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "open(sys.argv[1], 'a').write('x')\ntime.sleep(600)"
)


def wait_for(come_true):
    deadline = time.monotonic() + SECONDS
    while not come_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def supervisor():
    supervisor = Supervisor(os.environ)
    yield supervisor
    supervisor.stop()


@pytest.fixture
def child(tmp_path):
    """A process that writes one letter to ``marks`` whenever it starts."""
    marks = tmp_path / "marks"
    return Child(
        "sleeper", [sys.executable, "-c", SLEEPER, str(marks)], tmp_path / "log", marks.exists
    )


def test_a_killed_child_comes_back_and_the_outage_is_known(supervisor, child, tmp_path):
    marks = tmp_path / "marks"
    child.is_back = lambda: marks.read_text() == "xx"
    supervisor.start(child)
    supervisor.wait_ready([child], seconds=SECONDS)
    first, before = child.pid, time.monotonic()
    supervisor.kill(child)
    wait_for(lambda: child.outages and child.outages[-1][1] is not None)
    assert child.pid != first
    assert alive(child.pid)
    assert not alive(first)
    ((died, back),) = child.outages
    assert before <= died <= back <= time.monotonic()
    assert child.was_down((died + back) / 2, margin=0.0)
    assert not child.was_down(before - 1.0, margin=0.5)


def test_a_child_that_ends_by_itself_comes_back_too(supervisor, tmp_path):
    marks = tmp_path / "marks"
    code = "import sys; open(sys.argv[1], 'a').write('x')"
    short = Child("short", [sys.executable, "-c", code, str(marks)], tmp_path / "log", marks.exists)
    supervisor.start(short)
    wait_for(lambda: marks.exists() and len(marks.read_text()) >= 3)
    assert len(short.outages) >= 2


def test_stop_leaves_no_process_and_starts_none(child, tmp_path, monkeypatch):
    monkeypatch.setattr("edgepack_cli.demo.supervisor.STOP_SECONDS", 2.0)
    supervisor = Supervisor(os.environ)
    deaf = Child(
        "deaf", [sys.executable, "-c", DEAF, str(tmp_path / "deaf")], tmp_path / "log2",
        (tmp_path / "deaf").exists,
    )  # fmt: skip
    supervisor.start(child)
    supervisor.start(deaf)
    supervisor.wait_ready([child, deaf], seconds=SECONDS)
    supervisor.stop()
    assert child.process.returncode == -signal.SIGTERM
    assert not alive(child.pid)
    assert (tmp_path / "marks").read_text() == "x"
    assert child.outages == deaf.outages == []
    assert deaf.process.returncode == -signal.SIGKILL
    supervisor.stop()


def test_stop_goes_backwards(child, tmp_path, monkeypatch):
    supervisor = Supervisor(os.environ)
    marks = tmp_path / "second"
    second = Child("2", [sys.executable, "-c", SLEEPER, str(marks)], tmp_path / "log", marks.exists)
    for one in (child, second):
        supervisor.start(one)
    pids, ended = [child.pid, second.pid], []
    real = type(child.process).terminate
    monkeypatch.setattr(
        type(child.process), "terminate", lambda self: (ended.append(self.pid), real(self))
    )
    supervisor.stop()
    assert ended == pids[::-1]


def test_a_child_that_does_not_start_shows_the_end_of_its_log(supervisor, tmp_path):
    code = "print('the port is taken'); import time; time.sleep(600)"
    command = [sys.executable, "-u", "-c", code]
    log = tmp_path / "log"
    broken = Child("fleet", command, log, lambda: False)
    supervisor.start(broken)
    wait_for(lambda: log.read_text() != "")
    with pytest.raises(TimeoutError, match="fleet did not start; its log ends:\nthe port is taken"):
        supervisor.wait_ready([broken], seconds=0.0)


def test_a_child_gets_no_terminal_and_a_session_of_its_own(supervisor, tmp_path):
    out = tmp_path / "out"
    code = "import os, sys; open(sys.argv[1], 'w').write(f'{os.getsid(0)} {sys.stdin.read()!r}')"
    command = [sys.executable, "-c", f"{code}\nimport time; time.sleep(600)", str(out)]
    one = supervisor.start(Child("one", command, tmp_path / "log", out.exists))
    wait_for(lambda: out.exists() and out.read_text())
    assert out.read_text() == f"{one.pid} ''"


def test_the_pid_of_what_was_never_started(child):
    with pytest.raises(RuntimeError, match="sleeper was never started"):
        assert child.pid


@pytest.mark.parametrize(
    ("moment", "down"),
    [(8.9, False), (9.0, True), (10.0, True), (12.0, True), (13.0, True), (13.1, False),
     (18.9, False), (19.0, True), (1e9, True)],
)  # fmt: skip
def test_an_outage_has_a_margin_and_may_last(child, moment, down):
    child.outages = [[10.0, 12.0], [20.0, None]]
    assert child.was_down(moment, margin=1.0) is down

"""One daemon for each state folder, sessions that grow, and the end of a process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slot_world import TestCalls
from world_device import make_home

from edgepack_contract.errors import ConfigError
from edgepack_runtime import process
from edgepack_runtime.activation.journal import Journal
from edgepack_runtime.config import load_config
from edgepack_runtime.notify import Notifier
from edgepack_runtime.process import (
    MAX_SESSION,
    SESSION_FILE,
    next_session,
    only_one,
    remove_leftovers,
)
from edgepack_runtime.stopping import Stop, until_stopped
from edgepack_runtime.storage.fsio import DurableFS

SECONDS = 20.0
CLOCK = 1_780_000_000_000
SECOND = CLOCK // 1000


@pytest.fixture
def calls():
    return TestCalls()


def session(home, calls, clock_ms=CLOCK):
    return next_session(DurableFS(calls), home, clock_ms=clock_ms)


def test_a_new_device_begins_with_its_clock_and_grows(tmp_path, calls):
    assert [session(tmp_path, calls) for _ in range(3)] == [SECOND, SECOND + 1, SECOND + 2]


def test_a_clock_that_was_set_back_does_not_matter(tmp_path, calls):
    assert session(tmp_path, calls) == SECOND
    assert session(tmp_path, calls, clock_ms=0) == SECOND + 1


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 16, b"-5", b"1.5", "¹²".encode(), b"9" * 60, b"9" * 300, b"\xff\xfe", b"12"],
    ids=repr,
)
def test_a_lost_or_damaged_file_does_not_make_it_smaller(tmp_path, calls, content):
    before = session(tmp_path, calls)
    path = tmp_path / SESSION_FILE
    path.write_bytes(content)
    after = session(tmp_path, calls, clock_ms=CLOCK + 1000)
    assert before < after <= SECOND + 1
    path.unlink()
    assert session(tmp_path, calls, clock_ms=CLOCK + 2000) == SECOND + 2


def test_a_folder_in_its_place_does_not_keep_the_device_from_serving(tmp_path, calls, caplog):
    (tmp_path / SESSION_FILE).mkdir()
    assert session(tmp_path, calls) == SECOND
    assert {record.event for record in caplog.records} == {"session_unread", "session_unwritten"}


@pytest.mark.parametrize("harm", ["full", "broken"])
def test_a_disk_that_takes_nothing_does_not_keep_the_device_from_serving(
    tmp_path, calls, caplog, harm
):
    first = session(tmp_path, calls)
    setattr(calls, harm, True)
    assert session(tmp_path, calls) == first + 1
    assert [record.event for record in caplog.records] == ["session_unwritten"]
    assert (tmp_path / SESSION_FILE).read_text() == str(first)
    assert [path.name for path in tmp_path.iterdir()] == [SESSION_FILE]


@given(before=st.integers(0, MAX_SESSION - 1), clock_ms=st.integers(0, 4_000_000_000_000))
def test_sessions_grow_whatever_was_there_and_whatever_the_clock(
    tmp_path_factory, before, clock_ms
):
    home = tmp_path_factory.mktemp("home")
    (home / SESSION_FILE).write_text(str(before))
    first = session(home, TestCalls(), clock_ms)
    assert before < first <= max(MAX_SESSION, clock_ms)
    assert (home / SESSION_FILE).read_text() == str(first)


def test_a_folder_has_one_daemon(tmp_path):
    with only_one(tmp_path):
        with pytest.raises(ConfigError, match="another daemon uses") as raised, only_one(tmp_path):
            pytest.fail("two at once")
        assert raised.value.code == "in-use"
    with only_one(tmp_path):
        pass


def test_a_killed_daemon_leaves_no_lock(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from edgepack_runtime.process import only_one\n"
        "with only_one(pathlib.Path(sys.argv[1])):\n"
        "    print('mine', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"mine\n"
        with pytest.raises(ConfigError, match="another daemon"), only_one(tmp_path):
            pytest.fail("two at once")
        child.kill()
    with only_one(tmp_path):
        pass


def test_what_goes_wrong_inside_is_not_taken_for_another_daemon(tmp_path):
    with pytest.raises(BlockingIOError), only_one(tmp_path):
        raise BlockingIOError
    with only_one(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "lock").mkdir()
    with (
        pytest.raises(ConfigError, match="give the folder to the user") as raised,
        only_one(tmp_path),
    ):
        pytest.fail("a folder was locked")
    assert raised.value.code == "bad-state-dir"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_waiting(number):
    async def run():
        stop = Stop()
        forever = asyncio.create_task(asyncio.Event().wait())
        os.kill(os.getpid(), number)
        await until_stopped(stop, forever)
        assert not stop.hurried.is_set()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stop.hurried.wait(), SECONDS)
        assert not forever.done()
        forever.cancel()

    asyncio.run(run())


def test_work_that_fails_ends_it_with_its_error():
    async def fails():
        raise RuntimeError("a thread ended")

    async def run():
        await until_stopped(Stop(), asyncio.create_task(fails()))

    with pytest.raises(RuntimeError, match="a thread ended"):
        asyncio.run(run())


def test_what_writes_that_were_cut_off_left_is_removed(tmp_path):
    (tmp_path / "keys").mkdir()
    for name in ("session.tmp-12-1", "trust.json.tmp-3-9", "keys/keyring.json.tmp-7-2"):
        (tmp_path / name).write_text("half")
    others = tmp_path / "keys" / "somebody.tmp-1-1"
    others.touch()
    remove_leftovers(DurableFS(), tmp_path, tmp_path / "keys" / "keyring.json")
    assert list(tmp_path.rglob("*.tmp-*")) == [others]


def test_slots_are_there_before_anybody_can_ask_and_end_when_nobody_ever_could(
    tmp_path, monkeypatch
):
    make_home(tmp_path / "pi-1", "pi-1", mqtt_port=1)
    home = tmp_path / "pi-1" / "state"
    (home / "slots" / "pump").mkdir(parents=True)
    found = []

    async def refuse(app, **_):
        found.append(sorted(app.predictions._slots))
        raise ConfigError("the port is taken")

    monkeypatch.setattr(process, "serve", refuse)
    config = load_config(tmp_path / "pi-1" / "device.toml", {})
    with pytest.raises(ConfigError, match="the port is taken"):
        asyncio.run(process.run_device(lambda: config, Notifier()))
    assert found == [["pump"]]
    # a start that cannot listen is no crash of the model
    journal = Journal(DurableFS(), home / "slots" / "pump")
    assert journal.load().state.clean

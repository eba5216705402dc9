"""A loop that waits awake where requests follow each other at once, and sleeps everywhere else."""

from __future__ import annotations

import asyncio
import selectors
import socket

import pytest

from edgepack_runtime import event_loop
from edgepack_runtime.event_loop import AwakeSelector, new_event_loop

AWAKE = 100.0
BASE = selectors.DefaultSelector


class Waits:
    """Stands in for the system: what each look finds, and how long it takes by a clock."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.asked = []
        self.comes = 0.0
        monkeypatch.setattr(BASE, "select", lambda _, timeout=None: self._found(timeout))
        monkeypatch.setattr(event_loop.os, "sched_yield", lambda: None)

    def clock(self):
        return self.now

    def _found(self, timeout):
        self.asked.append(timeout)
        if timeout == 0:
            self.now += 10.0
        else:
            sleeps = max(0.0, self.comes - self.now)
            self.now += sleeps if timeout is None else min(sleeps, timeout)
        return ["ready"] if self.now >= self.comes else []

    def wait(self, selector, seconds, timeout=None):
        """A wait for what comes in so many seconds; how the system was asked."""
        self.asked, self.comes = [], self.now + seconds
        found = selector.select(timeout)
        return found, self.asked


@pytest.fixture
def waits(monkeypatch):
    return Waits(monkeypatch)


def expecting(waits):
    """One whose last waits were short."""
    selector = AwakeSelector(AWAKE, waits.clock)
    for _ in range(event_loop.SHORT_WAITS):
        assert waits.wait(selector, 30.0) == (["ready"], [None])
    return selector


def test_the_first_wait_sleeps(waits):
    assert waits.wait(AwakeSelector(AWAKE, waits.clock), 30.0) == (["ready"], [None])


def test_after_short_waits_it_stays_awake(waits):
    selector = expecting(waits)
    assert waits.wait(selector, 30.0) == (["ready"], [0, 0, 0])
    assert waits.wait(selector, 95.0) == (["ready"], [0] * 10)


def test_what_does_not_come_is_slept_for_and_the_next_one_too(waits):
    selector = expecting(waits)
    assert waits.wait(selector, 500.0) == (["ready"], [*[0] * 10, None])
    for _ in range(event_loop.SHORT_WAITS):
        assert waits.wait(selector, 30.0) == (["ready"], [None])
    assert waits.wait(selector, 30.0) == (["ready"], [0, 0, 0])


def test_callers_that_pause_are_always_slept_for(waits):
    selector = AwakeSelector(AWAKE, waits.clock)
    assert all(waits.wait(selector, 101.0)[1] == [None] for _ in range(10))


def test_a_body_that_follows_its_head_is_no_reason(waits):
    selector = AwakeSelector(AWAKE, waits.clock)
    for _ in range(10):
        assert waits.wait(selector, 30.0) == (["ready"], [None])
        assert waits.wait(selector, 5000.0) == (["ready"], [None])


@pytest.mark.parametrize(
    ("timeout", "asked"), [(30.0, [0, 0, 0, 0.0]), (250.0, [*[0] * 10, 150.0])]
)
def test_it_never_waits_longer_than_it_may(waits, timeout, asked):
    selector = expecting(waits)
    begun = waits.now
    assert waits.wait(selector, 1000.0, timeout) == ([], asked)
    assert waits.now - begun <= timeout + 10.0


@pytest.mark.parametrize("timeout", [0, -1.0])
def test_a_look_is_no_wait(waits, timeout):
    selector = AwakeSelector(AWAKE, waits.clock)
    for _ in range(5):
        assert waits.wait(selector, 30.0, timeout)[1] == [timeout]
    assert waits.wait(selector, 30.0)[1] == [None]


def test_without_it_every_wait_sleeps(waits):
    selector = AwakeSelector(0.0, waits.clock)
    assert all(waits.wait(selector, 0.0)[1] == [None] for _ in range(5))


@pytest.mark.parametrize(("cores", "awake"), [(1, False), (None, False), (2, True)])
def test_on_one_processor_it_sleeps(monkeypatch, cores, awake):
    monkeypatch.setattr(event_loop.os, "cpu_count", lambda: cores)
    loop = new_event_loop(100)
    assert (loop._selector._seconds > 0) is awake
    loop.close()


@pytest.mark.parametrize("busy_poll_us", [0, 1000])
def test_a_loop_of_it_answers_wakes_and_keeps_time(busy_poll_us):
    async def ask(times):
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        loop = asyncio.get_running_loop()
        theirs.setblocking(False)
        for number in range(times):
            writer.write(b"%d\n" % number)
            theirs_said = await loop.sock_recv(theirs, 100)
            await loop.run_in_executor(None, theirs.sendall, theirs_said)
            assert await reader.readline() == b"%d\n" % number
            await asyncio.sleep(0.0005 if number % 10 == 0 else 0)
        writer.close()
        theirs.close()
        return times

    with asyncio.Runner(loop_factory=lambda: new_event_loop(busy_poll_us)) as runner:
        assert runner.run(ask(200)) == 200

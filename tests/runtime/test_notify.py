"""What a service manager is told, on a stand-in for its socket."""

from __future__ import annotations

import os
import socket

import pytest

from edgepack_runtime.notify import Notifier, notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.settimeout(5)
    name = str(tmp_path / "notify") if request.param == "path" else f"@edgepack-test-{os.getpid()}"
    receiver.bind("\0" + name[1:] if name[0] == "@" else name)
    yield name, receiver
    receiver.close()


def test_everything_is_said_as_systemd_reads_it(manager):
    name, receiver = manager
    told = Notifier(name, monotonic_ns=lambda: 5_000_999)
    told.ready("main serves churn\n1.4.0")
    told.status("a")
    told.alive()
    told.reloading()
    told.extend(1.5)
    told.stopping("b")
    heard = [receiver.recv(4096).decode() for _ in range(6)]
    assert heard == [
        "READY=1\nSTATUS=main serves churn 1.4.0", "STATUS=a", "WATCHDOG=1",
        "RELOADING=1\nMONOTONIC_USEC=5000", "EXTEND_TIMEOUT_USEC=1500000", "STOPPING=1\nSTATUS=b",
    ]  # fmt: skip


def test_the_environment_names_it_and_children_do_not_find_it(manager):
    name, receiver = manager
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "7"}
    told = notifier(environ, 7)
    assert environ == {}
    assert told.watchdog_seconds == 20.0
    told.alive()
    assert receiver.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    "environ",
    [
        {}, {"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "5", "WATCHDOG_PID": "8"},
    ],
    ids=str,
)  # fmt: skip
def test_nobody_watches(environ):
    told = notifier(dict(environ), 7)
    assert told.watchdog_seconds is None
    told.alive()


@pytest.mark.parametrize("address", ["/nowhere/at/all", "x" * 200, "@nobody-there"])
def test_a_manager_that_is_gone_harms_nothing_and_is_told_once(address, caplog):
    told = Notifier(address)
    told.ready("a")
    told.alive()
    assert [record.event for record in caplog.records] == ["notify_failed"]


def test_a_manager_that_reads_nothing_is_not_waited_for(manager):
    told = Notifier(manager[0])
    for _ in range(5000):
        told.alive()

"""Ports for processes that are told theirs before they start."""

from __future__ import annotations

import socket

import pytest

from edgepack_cli.demo import ports


def test_the_system_gives_it_to_nobody_by_itself():
    lowest = int(ports._EPHEMERAL.read_text().split()[0])
    assert all(ports.FIRST <= ports.free_port() < lowest for _ in range(20))


def test_one_that_is_taken_is_not_given(monkeypatch):
    with socket.create_server(("127.0.0.1", ports.free_port())) as taken:
        port = taken.getsockname()[1]
        drawn = [port - ports.FIRST, port - ports.FIRST, 7]
        monkeypatch.setattr(ports.secrets, "randbelow", lambda _: drawn.pop(0))
        found = ports.free_port()
    assert (found, drawn) == (ports.FIRST + 7, [])


def test_where_all_are_taken_it_says_so(monkeypatch):
    with socket.create_server(("127.0.0.1", ports.free_port())) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports.secrets, "randbelow", lambda _: port - ports.FIRST)
        with pytest.raises(OSError, match="no port of 127"):
            ports.free_port()


def test_where_the_system_keeps_none_for_itself_it_chooses(monkeypatch, tmp_path):
    (tmp_path / "range").write_text("1024\t65535\n")
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "range")
    assert ports.free_port() > 0

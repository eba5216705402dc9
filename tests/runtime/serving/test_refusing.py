from __future__ import annotations

import contextlib
import json
import socket

import pytest

from edgepack_runtime.serving import server

POST = b"POST /v1/models/pump:predict HTTP/1.1\r\nhost: d\r\ncontent-length: 2\r\n\r\n{}"
GET = b"GET /health HTTP/1.1\r\nhost: d\r\n\r\n"


def said(world, raw):
    with socket.create_connection(("127.0.0.1", world.server.port), timeout=30) as connection:
        connection.sendall(raw)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert int(headers[b"content-length"]) == len(body)
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"connection"] == b"close"
    return int(head.split()[1]), headers, json.loads(body)["error"]


@pytest.mark.parametrize("raw", [b"garbage\r\n\r\n", b"GET /health HTTP/1.1\r\n: x\r\n\r\n"])
def test_what_is_no_request(shared, raw):
    status, _, words = said(shared, raw)
    assert (status, words) == (400, "Invalid HTTP request received.")


@pytest.mark.parametrize("raw", [POST, GET], ids=["short-way", "ordinary-way"])
def test_too_many_connections(world, load, monkeypatch, raw):
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    world.add("pump", load("v1"))
    world.start()
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            other = socket.create_connection(("127.0.0.1", world.server.port), timeout=30)
            stack.enter_context(contextlib.closing(other))
            other.sendall(GET)
            assert other.recv(4096)
        status, headers, words = said(world, raw)
        assert (status, headers[b"retry-after"]) == (503, b"1")
        assert "too many connections" in words
    assert world.slots["pump"].totals.answered == 0

"""Large bodies take of one budget, whatever way they come in; small ones need none."""

from __future__ import annotations

import contextlib
import socket

import numpy as np
import pytest
from world_waiting import eventually

from edgepack_contract.limits import KIB, MIB
from edgepack_runtime.serving import sockets as sockets_module
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.errors import NoRoomError
from edgepack_runtime.serving.room import FREE_BYTES, MOST_BYTES, Room, room_size
from edgepack_runtime.serving.sockets import SHARES, bind_tcp

SECONDS = 30
ROWS = 40_000
BODY = np.zeros((ROWS, 4), np.float32).tobytes()
LENGTH = len(BODY)
INFER = "/v2/models/pump/infer"


def test_a_hold_takes_what_a_body_grows_to_and_gives_it_back():
    room = Room(MIB)
    with room.holding() as one, room.holding() as other:
        one.grow(FREE_BYTES)
        assert room.left == MIB
        one.grow(700 * KIB)
        one.grow(600 * KIB)
        assert room.left == 324 * KIB
        with pytest.raises(NoRoomError):
            other.grow(325 * KIB)
        other.grow(324 * KIB)
    assert room.left == MIB


@pytest.mark.parametrize(
    ("body", "available", "size"),
    [(MIB, None, MOST_BYTES), (MIB, 400 * MIB, 100 * MIB), (64 * MIB, 100 * MIB, 64 * MIB)],
)
def test_room_is_for_one_body_at_least(body, available, size):
    assert room_size(body, available) == size


@pytest.fixture
def small(world, load):
    """A server with room for one large body."""
    world.add("pump", load("v"))
    world.app = App(world.slots)
    world.app.predictions.room.left = MIB
    world.start(world.app)
    return world


def left(world):
    return world.call(lambda: world.app.predictions.room.left)


def begun(world, *lines, length: int | None = LENGTH):
    """A connection on which a large body has begun."""
    made = socket.create_connection(("127.0.0.1", world.server.port))
    made.settimeout(SECONDS)
    head = [f"POST {INFER} HTTP/1.1", "host: d", "inference-header-content-length: 0", *lines]
    if length is not None:
        head.append(f"content-length: {length}")
    made.sendall("\r\n".join([*head, "", ""]).encode())
    return made


WAYS = {
    "short way": [],
    "asgi": ["expect: 100-continue"],
}


@pytest.mark.parametrize("way", WAYS)
def test_who_finds_no_room_is_told_to_come_back(small, way):
    with begun(small, *WAYS[way]) as first:
        first.sendall(BODY[:1000])
        eventually(lambda: left(small) == MIB - len(BODY), lambda: left(small))
        with begun(small, *WAYS[way]) as second:
            answer = second.recv(65536)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in answer
        small.ask("POST", "/predict", [0.5, -1.0, 2.0, 0.0])
        first.sendall(BODY[1000:])
        answer = first.recv(65536)
        while b" 200 " not in answer:
            answer += first.recv(65536)
        eventually(lambda: left(small) == MIB, lambda: left(small))
    # twice on one connection, and again by another
    for _ in range(2):
        headers = {"inference_header_content_length": "0"}
        assert small.ask("POST", INFER, BODY, **headers).status == 200
    assert left(small) == MIB


def test_chunks_take_room_as_they_come(small):
    chunk = b"%x\r\n%b\r\n" % (65536, bytes(65536))
    with begun(small, "transfer-encoding: chunked", length=None) as first:
        for _ in range(10):
            first.sendall(chunk)
        eventually(lambda: left(small) == MIB - 10 * 65536, lambda: left(small))
        with begun(small, "transfer-encoding: chunked", length=None) as second:
            with contextlib.suppress(ConnectionError):
                for _ in range(10):
                    second.sendall(chunk)
            assert second.recv(65536).startswith(b"HTTP/1.1 503 ")
    # who hangs up gives it back
    eventually(lambda: left(small) == MIB, lambda: left(small))


def test_who_hangs_up_in_a_body_gives_its_room_back(small):
    begun(small).close()
    eventually(lambda: left(small) == MIB, lambda: left(small))


def test_one_stranger_cannot_have_all_connections(monkeypatch):
    monkeypatch.setattr(sockets_module, "is_loopback", lambda host: host == "127.0.0.1")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(bind_tcp("127.0.0.1", 0))
        listener.listen()
        listener.most = 4 * SHARES

        def call(address):
            caller = stack.enter_context(socket.socket())
            caller.bind((address, 0))
            caller.connect(listener.getsockname())
            try:
                return stack.enter_context(listener.accept()[0])
            except ConnectionAbortedError:
                return None

        taken = [call("127.0.0.2") for _ in range(4)]
        assert all(taken)
        assert call("127.0.0.2") is None
        assert call("127.0.0.3")
        # this machine itself may have what is left
        assert all(call("127.0.0.1") for _ in range(6))
        taken[0].close()
        assert call("127.0.0.2")


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("", ""), (("10.0.0.7", 1), "10.0.0.7"), (("::ffff:10.0.0.7", 1, 0, 0), "10.0.0.7"),
        (("2001:db8::1:2:3:4", 1, 0, 0), "2001:db8::"), (("fe80::1%eth0", 1, 0, 2), "fe80::"),
        (("::1", 1, 0, 0), "::1"),
    ],
    ids=str,
)  # fmt: skip
def test_who_counts_as_one(address, peer):
    assert sockets_module._peer(address) == peer

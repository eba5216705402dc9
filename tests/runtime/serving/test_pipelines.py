"""A client that asks without reading costs no more memory than a bound, and stops nobody."""

from __future__ import annotations

import contextlib
import select
import socket
import threading

from raw_line import DEADLINE
from tests.runtime.serving.test_fast import GOOD, V1, post

from edgepack_runtime.serving.pipelines import MOST_WAITING, WAITING

# a read of asyncio has at most 256 KiB, and so fewer of these than are cut
LONG = post(V1, GOOD, b"x: " + b"y" * 600)


def connections(world):
    """What is open, as (requests that wait, bytes not sent, whether all is at rest)."""
    servers = world.server._servers
    found = [one for server in servers for one in server.server_state.connections]
    return [
        (
            len(one.pipeline),
            one.transport.get_write_buffer_size(),
            one.flow.read_paused and one.flow.write_paused,
        )
        for one in found
    ]


def test_who_reads_nothing_is_read_no_more(world, pump):
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", world.server.port))
        client.setblocking(False)
        raw, sent = LONG * 200, 0
        while sent < 64 << 20:
            if select.select([], [client], [], 0.05)[1]:
                sent += client.send(raw[sent % len(raw) :])
            elif all(rests for *_, rests in world.call(lambda: connections(world))):
                break
        [(waiting, unsent, rests)] = world.call(lambda: connections(world))
    assert rests
    assert WAITING <= waiting < MOST_WAITING
    assert unsent < 64 * 1024


def test_who_reads_is_answered_however_much_is_asked(world, pump, line):
    one, count = line(), 1200
    answers = []
    reader = threading.Thread(
        target=lambda: answers.extend(one.answer()[0] for _ in range(count)), daemon=True
    )
    reader.start()
    one.send(LONG * count)
    reader.join(DEADLINE)
    assert answers == [b"HTTP/1.1 200 OK\r\n"] * count
    assert world.call(lambda: pump.totals.answered) == count


def test_too_many_at_once_are_cut(world, pump, line):
    raw, arrived = b"GET /x HTTP/1.1\r\n\r\n" * (MOST_WAITING + 50), threading.Event()
    with socket.create_connection(("127.0.0.1", world.server.port), timeout=DEADLINE) as client:
        # all of it is there when the server looks
        world.loop.call_soon_threadsafe(arrived.wait)
        client.sendall(raw)
        arrived.set()
        said = b""
        with contextlib.suppress(ConnectionResetError):
            while some := client.recv(1 << 16):
                said += some
    assert said.count(b"HTTP/1.1") < MOST_WAITING
    other = line()
    other.send(post(V1))
    assert other.answer()[0] == b"HTTP/1.1 200 OK\r\n"

"""Several connections that ask as fast as they are answered, in a process of their own.

    python bench/load.py PORT CONNECTIONS REQUESTS < request

Each sends the same bytes again as soon as it has an answer. No event loop: a client that does more
for a request than the server would measure itself. Prints requests a second.
"""

from __future__ import annotations

import select
import socket
import sys
import time

_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_SECONDS = 60.0


class Answers:
    """Tells when the answer of a connection is whole."""

    def __init__(self) -> None:
        self._heads: dict[bytes, int] = {}

    def whole(self, data: bytes) -> bool:
        """Whether ``data`` are an answer from its first to its last byte.

        Raises:
            RuntimeError: It is no prediction.
        """
        place = data.find(_END)
        if place < 0:
            return False
        head = data[:place]
        length = self._heads.get(head)
        if length is None:
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(data.decode())
            rest = head.lower().partition(_LENGTH)[2]
            length = self._heads[head] = int(rest.split(b"\r\n", 1)[0])
        return len(data) - place - len(_END) >= length


def main() -> None:
    """Ask, and print the rate."""
    port, connections, requests = map(int, sys.argv[1:])
    raw = sys.stdin.buffer.read()
    each = requests // connections
    begun = time.perf_counter()
    ask(port, raw, connections, each)
    print(connections * each / (time.perf_counter() - begun))


def ask(port: int, raw: bytes, connections: int, each: int) -> None:
    """Let every connection have ``each`` answers.

    Raises:
        ConnectionError: One ended before.
    """
    poll, answers = select.epoll(), Answers()
    open_ones = {}
    for _ in range(connections):
        connection = socket.create_connection(("127.0.0.1", port), timeout=_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(connection.fileno(), select.EPOLLIN)
        open_ones[connection.fileno()] = connection
        connection.sendall(raw)
    left, seen = dict.fromkeys(open_ones, each), dict.fromkeys(open_ones, b"")
    while open_ones:
        ready = poll.poll(_SECONDS)
        if not ready:
            raise ConnectionError("no answer")
        for number, _ in ready:
            connection = open_ones[number]
            data = connection.recv(65536)
            if not data:
                raise ConnectionError(f"hung up with {left[number]} answers to come")
            data = seen[number] + data
            if not answers.whole(data):
                seen[number] = data
                continue
            seen[number] = b""
            left[number] -= 1
            if left[number]:
                connection.sendall(raw)
            else:
                poll.unregister(number)
                open_ones.pop(number).close()


if __name__ == "__main__":
    main()

"""Several connections that ask as fast as they are answered, in a process of their own.

    python bench/load.py PORT CONNECTIONS REQUESTS < request

Each is a bare asyncio protocol that sends the same bytes again as soon as it has an answer. Prints
requests a second.
"""

from __future__ import annotations

import asyncio
import sys
import time


class Asker(asyncio.Protocol):
    """One connection; ``done`` is set after ``left`` answers."""

    def __init__(self, raw: bytes, left: int) -> None:
        self.raw, self.left, self.seen = raw, left, b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.raw)

    def data_received(self, data: bytes) -> None:
        """Ask again when the answer is whole."""
        self.seen += data
        head, end, body = self.seen.partition(b"\r\n\r\n")
        if not end:
            return
        place = head.lower().index(b"content-length:") + 15
        if len(body) < int(head[place:].split(b"\r\n", 1)[0]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(body.decode()))
            return
        self.seen, self.left = b"", self.left - 1
        if self.left:
            self.transport.write(self.raw)
        else:
            self.done.set_result(None)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail when there are answers to come."""
        if not self.done.done():
            self.done.set_exception(ConnectionError(exc))


async def main() -> None:
    """Ask, and print the rate."""
    port, connections, requests = map(int, sys.argv[1:])
    raw, loop = sys.stdin.buffer.read(), asyncio.get_running_loop()
    begun = time.perf_counter()
    askers = [
        (
            await loop.create_connection(
                lambda: Asker(raw, requests // connections), "127.0.0.1", port
            )
        )[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(one.done for one in askers))
    print(connections * (requests // connections) / (time.perf_counter() - begun))


if __name__ == "__main__":
    asyncio.run(main())

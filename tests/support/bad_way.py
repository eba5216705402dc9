"""A way between two programs on this machine that a test cuts, stalls, slows and mends.

Unlike :mod:`toxic_proxy`, whose connections each have their fate from the start, what happens here
happens to all connections, at the moment at which the test says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no seconds: closing sends RST."""

_BLOCK = 1024


class BadWay:
    """A TCP proxy on loopback to the port ``target``; its methods may be called from any thread.

    Attributes:
        target: Where it leads; may be set late.
        port: Where it listens.
        passed: How many bytes of answers it has passed on.
        connections: How many connections it has led to ``target``.
    """

    def __init__(self, target: int = 0) -> None:
        self.target, self.passed, self.connections = target, 0, 0
        self._is_cut, self._rate = False, 0
        self._left: int | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._ends: set[asyncio.StreamWriter] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._lead, sock=self._listener))

    def mend(self) -> None:
        """Pass everything on from now on, also what was held up."""
        self._do(self._set(is_cut=False, rate=0, is_open=True))

    def cut(self) -> None:
        """Reset all connections, and those that come."""
        self._do(self._set(is_cut=True, rate=0, is_open=True))

    def reset(self) -> None:
        """Reset all connections; new ones are welcome."""
        self._do(self._set(is_cut=True, rate=self._rate, is_open=True))
        self._do(self._set(is_cut=False, rate=self._rate, is_open=True))

    def stall(self) -> None:
        """Hold up every byte, and say nothing of it."""
        self._do(self._set(is_cut=False, rate=0, is_open=False))

    def slow(self, rate: int) -> None:
        """Pass on so many bytes a second of each direction of a connection."""
        self._do(self._set(is_cut=False, rate=rate, is_open=True))

    def cut_after(self, size: int) -> None:
        """Pass on so many more bytes of requests, then :meth:`cut`, in the middle of a word."""
        self._left = size

    @property
    def is_cut(self) -> bool:
        """Whether nobody is led on now."""
        return self._is_cut

    def close(self) -> None:
        self.cut()
        self._server.close()
        self._do(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _set(self, *, is_cut: bool, rate: int, is_open: bool) -> None:
        self._is_cut, self._rate = is_cut, rate
        if is_cut:
            self._reset_all()
        if is_open:
            self._open.set()
        else:
            self._open.clear()

    def _reset_all(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                raw = end.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.transport.abort()

    async def _lead(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        self._ends.add(near)
        if self._is_cut:
            self._reset_all()
            self._ends.discard(near)
            return
        try:
            answers, far = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            near.transport.abort()
            self._ends.discard(near)
            return
        self.connections += 1
        self._ends.add(far)
        await asyncio.gather(
            self._pump(reader, far, are_answers=False), self._pump(answers, near, are_answers=True)
        )
        self._ends -= {near, far}

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, are_answers: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_BLOCK):
                await self._open.wait()
                if self._rate:
                    await asyncio.sleep(len(data) / self._rate)
                left = None if are_answers else self._left
                writer.write(data[:left])
                await writer.drain()
                self.passed += len(data) * are_answers
                if left is not None:
                    self._left = left - len(data) if left > len(data) else None
                    await self._set(is_cut=self._left is None, rate=self._rate, is_open=True)
        writer.close()

    async def _finish(self) -> None:
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if rest:
            await asyncio.wait(rest, timeout=5)


@contextmanager
def bad_way(target: int = 0) -> Iterator[BadWay]:
    """A way that is gone after the block."""
    way = BadWay(target)
    try:
        yield way
    finally:
        way.close()

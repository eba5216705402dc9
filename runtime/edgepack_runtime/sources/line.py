"""A connection whose reads heed what the transfer has to: a stop, a deadline, a cap.

http.client reads from :class:`Line` as from a socket, so that its parsing of heads, lengths and
chunks is heeded too, also while nothing comes.
"""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgepack_runtime.errors import InterruptedInstallError, TransientSourceError
from edgepack_runtime.proxy import Proxy
from edgepack_runtime.sources.pace import Pace
from edgepack_runtime.sources.source import CHUNK_BYTES, never

LOOK_SECONDS = 0.1
"""How often a wait looks whether it shall end."""

_HEAD_BYTES = 8 * 1024
_LEAST_WINDOW, _MOST_WINDOW = 16 * 1024, 1024 * 1024


@dataclass(slots=True)
class Watch:
    """What a transfer heeds; seconds are monotonic.

    Attributes:
        deadline: When it must be over. What its cap makes it wait is added.
        stall: The longest time without a byte.
        pace: The cap.
        interrupted: Whether it shall stop.
        clock: The time.
        sleep: Waits so many seconds.
    """

    deadline: float
    stall: float
    pace: Pace = field(default_factory=Pace)
    interrupted: Callable[[], bool] = never
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def check(self) -> None:
        """End the transfer when it shall end.

        Raises:
            InterruptedInstallError: Something newer is wanted.
            TransientSourceError: It took too long.
        """
        if self.interrupted():
            raise InterruptedInstallError("something newer is wanted")
        if self.clock() > self.deadline:
            raise TransientSourceError("the source is too slow: its total time is over")

    def allowed(self, most: int) -> int:
        """Wait until some of ``most`` bytes may be read, and say how many."""
        while True:
            self.check()
            allowance = self.pace.allow(most, self.clock())
            if allowance.size:
                return allowance.size
            before = self.clock()
            self.sleep(min(allowance.wait, LOOK_SECONDS))
            self.deadline += self.clock() - before


class Connection(http.client.HTTPConnection):
    """An HTTP connection that heeds a :class:`Watch`, with TLS and by a proxy when so told.

    Args:
        host: Where the other side is.
        port: Its port.
        watch: What to heed.
        tls: How its certificate is checked; None for plain HTTP.
        proxy: By whom it is reached.
    """

    def __init__(
        self, host: str, port: int, watch: Watch, *, tls: ssl.SSLContext | None, proxy: Proxy | None
    ) -> None:
        near, gate = (host, port) if proxy is None else (proxy.host, proxy.port)
        super().__init__(near, gate, timeout=watch.stall)
        self._name, self._tls, self._watch = host, tls, watch
        if proxy is not None:
            self.set_tunnel(host, port, proxy.headers)

    def connect(self) -> None:
        """Connect, and have every read heeded."""
        super().connect()
        wire: socket.socket = self.sock
        try:
            if self._watch.pace.rate:
                # what the kernel takes in ahead of the cap has been paid for
                window = min(max(self._watch.pace.rate // 4, _LEAST_WINDOW), _MOST_WINDOW)
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            if self._tls is not None:
                wire = self._tls.wrap_socket(wire, server_hostname=self._name)
        except BaseException:
            wire.close()
            raise
        self.sock = Line(wire, self._watch)


class Line:
    """What http.client takes for a socket.

    Args:
        wire: The socket.
        watch: What its reads heed.
    """

    def __init__(self, wire: socket.socket, watch: Watch) -> None:
        self._wire, self._watch = wire, watch
        self._poll = select.poll()
        self._poll.register(wire, select.POLLIN)
        self._read_from = False

    def sendall(self, data: bytes) -> None:
        """Send a request."""
        self._wire.sendall(data)

    def makefile(self, _mode: str, *_: Any) -> io.BufferedReader:
        """The stream that an answer is read from, which closes the socket with itself."""
        self._read_from = True
        return io.BufferedReader(_Reading(self), _HEAD_BYTES)

    def receive(self, buffer: memoryview) -> int:
        """Wait for bytes; none at the end.

        Raises:
            OSError: The connection failed, or nothing came for too long.
            InterruptedInstallError: Something newer is wanted.
            TransientSourceError: The transfer took too long.
        """
        most = self._watch.allowed(min(len(buffer), CHUNK_BYTES))
        self._await()
        count = self._wire.recv_into(buffer[:most])
        self._watch.pace.spend(count)
        return count

    def close(self) -> None:
        """Close the socket, unless an answer is still read from it."""
        if not self._read_from:
            self.end()

    def end(self) -> None:
        """Close the socket."""
        self._wire.close()

    def _await(self) -> None:
        waits_since = self._watch.clock()
        while not (self._is_pending() or self._poll.poll(LOOK_SECONDS * 1000)):
            self._watch.check()
            if self._watch.clock() - waits_since > self._watch.stall:
                raise TimeoutError("nothing came for too long")

    def _is_pending(self) -> bool:
        # what TLS has unpacked already is not seen by poll
        return isinstance(self._wire, ssl.SSLSocket) and self._wire.pending() > 0


class _Reading(io.RawIOBase):
    def __init__(self, line: Line) -> None:
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._line.receive(buffer)

    def close(self) -> None:
        self._line.end()
        super().close()

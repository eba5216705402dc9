"""A TCP proxy on loopback that does to connections what bad networks do.

Each connection takes the next :class:`Toxic` of a list; when the list is at its end, bytes just
pass. Times are short: a test's patience is, too.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no seconds: closing sends RST."""


class Kind(StrEnum):
    """What happens to the bytes of an answer."""

    PASS = "pass"
    CUT = "cut"
    RESET = "reset"
    STALL = "stall"
    HALF_OPEN = "half-open"
    SLICE = "slice"
    SLOW = "slow"
    FLIP = "flip"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Toxic:
    """One kind, after ``after`` bytes of the answer; ``size`` is that of the slices."""

    kind: Kind
    after: int = 0
    size: int = 1000


@dataclass
class ToxicProxy:
    """Where it listens, what it will do, and how many bytes of answers it passed on."""

    target: int
    port: int = 0
    toxics: list[Toxic] = field(default_factory=list)
    connections: int = 0
    passed: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def next_toxic(self) -> Toxic:
        self.connections += 1
        return self.toxics.pop(0) if self.toxics else Toxic(Kind.PASS)

    def serve(self, near: socket.socket, toxic: Toxic) -> None:
        """Pass one connection on until its toxic or either side ends it."""
        if toxic.kind is Kind.REFUSE:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            return
        with socket.create_connection(("127.0.0.1", self.target), timeout=5) as far:
            left = toxic.after
            while not self.stopping.is_set():
                ready, _, _ = select.select([near, far], [], [], 0.02)
                if near in ready:
                    asked = near.recv(65536)
                    if not asked:
                        return
                    far.sendall(asked)
                if far in ready:
                    data = far.recv(65536 if toxic.kind is not Kind.SLICE else toxic.size)
                    if not data:
                        return
                    left = self._pass_on(near, data, toxic, left)
                    if left < 0:
                        return

    def _pass_on(self, near: socket.socket, data: bytes, toxic: Toxic, left: int) -> int:
        """Send ``data`` on as the toxic has it; what is left until it works, -1 at the end."""
        if toxic.kind in (Kind.PASS, Kind.SLICE) or len(data) <= left:
            self._send(near, data)
            return max(0, left - len(data))
        self._send(near, data[:left])
        rest = data[left:]
        match toxic.kind:
            case Kind.SLOW:
                for at in range(0, len(rest), toxic.size):
                    if self.stopping.wait(0.002):
                        return -1
                    self._send(near, rest[at : at + toxic.size])
                return 0
            case Kind.FLIP:
                self._send(near, bytes([rest[0] ^ 1]) + rest[1:])
                return 1 << 60
            case Kind.RESET:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            case Kind.STALL | Kind.HALF_OPEN:
                if toxic.kind is Kind.HALF_OPEN:
                    near.shutdown(socket.SHUT_WR)
                self._wait_for_the_client(near)
        return -1

    def _send(self, near: socket.socket, data: bytes) -> None:
        near.sendall(data)
        self.passed += len(data)

    def _wait_for_the_client(self, near: socket.socket) -> None:
        poll = select.poll()
        poll.register(near, select.POLLRDHUP | select.POLLHUP)
        while not self.stopping.is_set() and not poll.poll(20):
            pass


@contextmanager
def toxic_proxy(target: int, toxics: list[Toxic] | None = None) -> Iterator[ToxicProxy]:
    """A proxy for the port ``target`` of this machine, gone after the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = ToxicProxy(target, listener.getsockname()[1], toxics or [])
        listener.settimeout(0.02)
        threads: list[threading.Thread] = []

        def one(near: socket.socket, toxic: Toxic) -> None:
            with near, contextlib.suppress(OSError):
                near.settimeout(5)
                proxy.serve(near, toxic)

        def accept() -> None:
            while not proxy.stopping.is_set():
                try:
                    near, _ = listener.accept()
                except TimeoutError:
                    continue
                threads.append(threading.Thread(target=one, args=(near, proxy.next_toxic())))
                threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield proxy
        finally:
            proxy.stopping.set()
            accepting.join()
            for thread in threads:
                thread.join()

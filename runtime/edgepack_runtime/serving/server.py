"""uvicorn inside a loop that is already running: a Unix socket, TCP behind a guard, operations.

Source of the limits that uvicorn leaves to others: its httptools protocol bounds neither the size
of a request's head nor how long it takes to arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edgepack_contract.errors import ConfigError
from edgepack_contract.limits import LIMITS
from edgepack_contract.loopback import is_loopback
from edgepack_runtime.config import OpsConfig, ServeConfig
from edgepack_runtime.serving.access import Guard
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.asgi import Asgi
from edgepack_runtime.serving.ops import OpsOnly

HEAD_SECONDS = 10.0
IDLE_SECONDS = 75
GRACE_SECONDS = 10
MOST_CONNECTIONS = 512
OPS_CONNECTIONS = 64
REFUSED_WITH_WORDS = 64
"""So many callers more are told 503; those beyond are hung up on."""

BACKLOG = 128
MOST_PORT = 65_535
SOCKET_MODE = 0o660
NO_OPS = OpsConfig()


class RunningServer:
    """Listeners that listen.

    Attributes:
        port: The TCP port of predictions, None without TCP.
        ops_port: The TCP port of the operations listener, None without one.
        unix_socket: The path of the Unix socket, None without one.
    """

    def __init__(
        self, listeners: list[_Listener], tasks: list[asyncio.Task[None]], guard: Guard
    ) -> None:
        ports = {listener.kind: listener.port for listener in listeners}
        self.port = ports.get(Kind.TCP)
        self.ops_port = ports.get(Kind.OPS)
        self.unix_socket = next((one.path for one in listeners if one.path is not None), None)
        self._servers = [listener.server for listener in listeners]
        self._tasks = tasks
        self._guard = guard
        self._inode = self.unix_socket.stat().st_ino if self.unix_socket is not None else None

    def reload(self) -> None:
        """Read the certificate and the token again, for new connections and requests.

        Raises:
            ConfigError: See :meth:`Guard.reload`; the old ones stay.
        """
        self._guard.reload()

    async def wait(self) -> None:
        """Return when the listeners have ended; raise what ended one."""
        await asyncio.shield(asyncio.gather(*self._tasks))

    async def stop(self) -> None:
        """Take no more connections, finish what is in flight, end. Idempotent."""
        for server in self._servers:
            server.should_exit = True
        await asyncio.gather(*self._tasks)
        if self.unix_socket is not None:
            _unlink(self.unix_socket, self._inode)


async def serve(
    app: App,
    *,
    unix_socket: Path | None = None,
    host: str | None = None,
    port: int = 0,
    guard: Guard | None = None,
    ops: OpsConfig = NO_OPS,
    insecure: bool = False,
) -> RunningServer:
    """Begin to serve in the running loop.

    Args:
        app: What answers.
        unix_socket: Where to put a Unix socket of mode 0660, which is all its protection; one that
            is there is replaced.
        host: Where to serve by TCP, None for no TCP. Off loopback ``guard`` must have TLS and a
            token.
        port: The TCP port; 0 takes a free one, which :attr:`RunningServer.port` tells.
        guard: What callers by TCP must bring; None for nothing.
        ops: The operations listener, which is plain everywhere.
        insecure: Serve off loopback without them all the same; somebody gave a reason.

    Raises:
        ConfigError: ``host`` is not loopback and ``guard`` not enough (code
            ``insecure-listener``), there is nowhere to listen, or a place cannot be listened at
            (code ``cannot-listen``).
    """
    guard = guard or Guard(ServeConfig())
    if host is not None and not (is_loopback(host) or guard.complete or insecure):
        raise ConfigError(
            f"refusing to serve predictions on {host} without TLS and a token; give both, or use "
            '"127.0.0.1" or a Unix socket',
            code="insecure-listener",
        )
    wanted = []
    if unix_socket is not None:
        wanted.append(_Wanted(Kind.UNIX, unix_socket, app))
    if host is not None:
        wanted.append(_Wanted(Kind.TCP, (host, port), guard.before(app), guard.tls))
    if ops.host is not None:
        wanted.append(_Wanted(Kind.OPS, (ops.host, ops.port), OpsOnly(app)))
    listeners = _bind(wanted)
    tasks = [asyncio.create_task(one.serve(), name=f"http-{one.kind}") for one in listeners]
    await _until_listening([listener.server for listener in listeners], tasks)
    return RunningServer(listeners, tasks, guard)


class Kind(StrEnum):
    """The listeners of a daemon."""

    UNIX = "unix"
    TCP = "tcp"
    OPS = "ops"


@dataclass(frozen=True, slots=True)
class _Wanted:
    kind: Kind
    where: Path | tuple[str, int]
    app: Asgi
    tls: ssl.SSLContext | None = None


class _Listener:
    """A bound socket and the server that will answer on it.

    Each has a server of its own, so that who fills one listener does not fill the others.
    """

    def __init__(self, wanted: _Wanted) -> None:
        where = wanted.where
        most = OPS_CONNECTIONS if wanted.kind is Kind.OPS else MOST_CONNECTIONS
        self.kind = wanted.kind
        self.path = where if isinstance(where, Path) else None
        self.socket = _bind_unix(where) if isinstance(where, Path) else _bind_tcp(*where)
        self.socket.most = most + REFUSED_WITH_WORDS
        self.port = None if self.path is not None else int(self.socket.getsockname()[1])
        self.server = _Server(_config(wanted.app, most), wanted.tls)

    async def serve(self) -> None:
        await self.server.serve(sockets=[self.socket])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn's own has no bound for how long a TLS handshake and its end may take
        seconds = HEAD_SECONDS if self._tls is not None else None
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                self._protocol,
                sock=bound,
                backlog=BACKLOG,
                ssl=self._tls,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=seconds,
            )
            for bound in sockets or []
        ]
        self.started = True
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # the daemon has its own order of shutting down, of which this server is one part
        yield

    def _protocol(self) -> asyncio.Protocol:
        return _BoundedHead(self.config, self.server_state, {})


class _BoundedHead(HttpToolsProtocol):
    """Bounds the head of a request: its bytes, and the time until it is complete."""

    _head_bytes = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # a head that begins in the middle of these bytes is counted from the next ones on
        counted = len(data) if self._in_head else 0
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += counted
        if self._head_bytes > LIMITS.request_header_bytes:
            self.send_400_response("The head of the request is too large.")
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_too_slow)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > LIMITS.request_header_bytes:
            # httptools turns this into a parser error, to which uvicorn answers 400 and hangs up
            raise ValueError("the head of the request is too large")
        self._in_head, self._head_bytes = False, 0
        self._cancel_timer()
        super().on_headers_complete()

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._in_head and not self.transport.is_closing():
            self.transport.close()

    def _cancel_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _config(app: Asgi, most_connections: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_BoundedHead,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=most_connections,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


async def _until_listening(servers: list[_Server], tasks: list[asyncio.Task[None]]) -> None:
    everything = asyncio.create_task(_all_listening(servers))
    await asyncio.wait({everything, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    if not everything.done():
        everything.cancel()
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)
        raise ConfigError("the server ended before it listened", code="cannot-listen")


async def _all_listening(servers: list[_Server]) -> None:
    for server in servers:
        await server.listening.wait()


def _bind(wanted: list[_Wanted]) -> list[_Listener]:
    listeners: list[_Listener] = []
    for one in wanted:
        try:
            listeners.append(_Listener(one))
        except OSError as error:
            for listener in listeners:
                listener.socket.close()
            raise ConfigError(
                f"cannot listen at {_place(one.where)}: {error}", code="cannot-listen"
            ) from error
    if not listeners:
        raise ConfigError("neither a Unix socket nor a host to serve on", code="cannot-listen")
    return listeners


def _place(where: Path | tuple[str, int]) -> str:
    return str(where) if isinstance(where, Path) else f"{where[0]}:{where[1]}"


class _BoundedSocket(socket.socket):
    """A listening socket that hangs up on callers when ``most`` connections are open.

    asyncio takes every caller, also those that never finish a handshake; file descriptors end, and
    installing and telemetry need some too.
    """

    most = MOST_CONNECTIONS
    _open: frozenset[socket.socket] = frozenset()

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        self._open = frozenset(one for one in self._open if one.fileno() != -1)
        if len(self._open) >= self.most:
            connection.close()
            # asyncio goes on with the next caller
            raise ConnectionAbortedError
        self._open |= {connection}
        return connection, address


def _bind_tcp(host: str, port: int) -> _BoundedSocket:
    if not 0 <= port <= MOST_PORT:
        # getaddrinfo would take the lower 16 bits of it, and serve where nobody looks
        raise OSError(errno.EINVAL, f"a port is a number from 0 to {MOST_PORT}")
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = _BoundedSocket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _bind_unix(path: Path) -> _BoundedSocket:
    """Bind beside the path and rename: nobody finds the socket before it has its mode."""
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise FileExistsError(f"{path} is there and is not a socket")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    listener = _BoundedSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        aside.unlink(missing_ok=True)
        listener.bind(str(aside))
        aside.chmod(SOCKET_MODE)
        aside.rename(path)
    except OSError:
        listener.close()
        aside.unlink(missing_ok=True)
        raise
    return listener


def _unlink(path: Path, inode: int | None) -> None:
    # a daemon that took the path over in the meantime keeps its socket
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()

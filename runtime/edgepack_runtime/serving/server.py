"""uvicorn inside a loop that is already running: a Unix socket, loopback, and nothing else.

Source of the limits that uvicorn leaves to others: its httptools protocol bounds neither the size
of a request's head nor how long it takes to arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edgepack_contract.errors import ConfigError
from edgepack_contract.limits import LIMITS
from edgepack_contract.loopback import is_loopback
from edgepack_runtime.serving.app import App

HEAD_SECONDS = 10.0
IDLE_SECONDS = 75
GRACE_SECONDS = 10
MOST_CONNECTIONS = 512
BACKLOG = 128
MOST_PORT = 65_535
SOCKET_MODE = 0o660


class RunningServer:
    """A server that listens.

    Attributes:
        port: The TCP port, None without TCP.
        unix_socket: The path of the Unix socket, None without one.
    """

    def __init__(
        self, server: _Server, task: asyncio.Task[None], port: int | None, unix_socket: Path | None
    ) -> None:
        self.port = port
        self.unix_socket = unix_socket
        self._server = server
        self._task = task
        self._inode = unix_socket.stat().st_ino if unix_socket is not None else None

    async def wait(self) -> None:
        """Return when the server has ended; raise what ended it."""
        await asyncio.shield(self._task)

    async def stop(self) -> None:
        """Take no more connections, finish what is in flight, end. Idempotent."""
        self._server.should_exit = True
        await self._task
        if self.unix_socket is not None:
            _unlink(self.unix_socket, self._inode)


async def serve(
    app: App, *, unix_socket: Path | None = None, host: str | None = None, port: int = 0
) -> RunningServer:
    """Begin to serve in the running loop.

    Args:
        app: What answers.
        unix_socket: Where to put a Unix socket of mode 0660; one that is there is replaced.
        host: A loopback address or ``localhost``, None for no TCP.
        port: The TCP port; 0 takes a free one, which :attr:`RunningServer.port` tells.

    Raises:
        ConfigError: ``host`` is not loopback (code ``insecure-listener``), there is nowhere to
            listen, or a place cannot be listened at (code ``cannot-listen``).
    """
    if host is not None and not is_loopback(host):
        raise ConfigError(
            f"refusing to serve predictions on {host}: that needs TLS and a token, which this "
            'version has not; use "127.0.0.1" or a Unix socket',
            code="insecure-listener",
        )
    sockets = _bind(unix_socket, host, port)
    server = _Server(_config(app))
    task = asyncio.create_task(server.serve(sockets=sockets), name="http-server")
    await _until_listening(server, task)
    return RunningServer(server, task, _tcp_port(sockets), unix_socket)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # the daemon has its own order of shutting down, of which this server is one part
        yield


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


def _config(app: Any) -> uvicorn.Config:
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
        backlog=BACKLOG,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


async def _until_listening(server: _Server, task: asyncio.Task[None]) -> None:
    listening = asyncio.create_task(server.listening.wait())
    await asyncio.wait({listening, task}, return_when=asyncio.FIRST_COMPLETED)
    if not server.listening.is_set():
        listening.cancel()
        await task
        raise ConfigError("the server ended before it listened", code="cannot-listen")


def _bind(unix_socket: Path | None, host: str | None, port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        if unix_socket is not None:
            sockets.append(_bind_unix(unix_socket))
        if host is not None:
            sockets.append(_bind_tcp(host, port))
    except OSError as error:
        for bound in sockets:
            bound.close()
        where = unix_socket if not sockets and unix_socket is not None else f"{host}:{port}"
        raise ConfigError(f"cannot listen at {where}: {error}", code="cannot-listen") from error
    if not sockets:
        raise ConfigError("neither a Unix socket nor a host to serve on", code="cannot-listen")
    return sockets


def _bind_tcp(host: str, port: int) -> socket.socket:
    if not 0 <= port <= MOST_PORT:
        # getaddrinfo would take the lower 16 bits of it, and serve where nobody looks
        raise OSError(errno.EINVAL, f"a port is a number from 0 to {MOST_PORT}")
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _bind_unix(path: Path) -> socket.socket:
    """Bind beside the path and rename: nobody finds the socket before it has its mode."""
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise FileExistsError(f"{path} is there and is not a socket")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
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


def _tcp_port(sockets: list[socket.socket]) -> int | None:
    for bound in sockets:
        if bound.family != socket.AF_UNIX:
            return int(bound.getsockname()[1])
    return None


def _unlink(path: Path, inode: int | None) -> None:
    # a daemon that took the path over in the meantime keeps its socket
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()

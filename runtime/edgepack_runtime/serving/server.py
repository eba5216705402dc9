"""uvicorn inside a loop that is already running: a Unix socket, TCP behind a guard, operations."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import uvicorn

from edgepack_contract.errors import ConfigError
from edgepack_contract.loopback import is_loopback
from edgepack_runtime.config import OpsConfig, ServeConfig
from edgepack_runtime.serving.access import Guard
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.asgi import CLOSE, Asgi
from edgepack_runtime.serving.fast import Front
from edgepack_runtime.serving.head import HEAD_SECONDS
from edgepack_runtime.serving.ops import OpsOnly
from edgepack_runtime.serving.sockets import (
    MOST_CONNECTIONS,
    PRIVATE_MODE,
    SOCKET_MODE,
    bind_tcp,
    bind_unix,
    unlink,
)
from edgepack_runtime.serving.upgrades import PlainAnswers

IDLE_SECONDS = 75
GRACE_SECONDS = ServeConfig().grace_seconds
LINGER_SECONDS = 0.5
LINGER_STEP_SECONDS = 0.01
ACCEPT_TURNS = 3
OPS_CONNECTIONS = 64
REFUSED_WITH_WORDS = 64
"""So many callers more are told 503; those beyond are hung up on."""

BACKLOG = 128
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
        self._kinds = [listener.kind for listener in listeners]
        self._tasks = tasks
        self._guard = guard
        self._inode = self.unix_socket.stat().st_ino if self.unix_socket is not None else None

    def reload(self, config: ServeConfig | None = None) -> None:
        """Read the certificate and the token again, for new connections and requests.

        Raises:
            ConfigError: See :meth:`Guard.reload`; the old ones stay.
        """
        self._guard.reload(config)

    async def wait(self) -> None:
        """Return when the listeners have ended; raise what ended one."""
        await asyncio.shield(asyncio.gather(*self._tasks))

    async def stop(self) -> None:
        """Take no more connections, finish what is in flight, end. Idempotent.

        A connection that stands is answered what it asks for :data:`LINGER_SECONDS` more, and told
        that it ends with that answer (RFC 9112, 9.6), so that no request crosses its end. The
        operations listener tells until then that the daemon is not ready.
        """
        for ops in (False, True):
            await self._end(Kind.OPS, is_it=ops)
        if self.unix_socket is not None:
            unlink(self.unix_socket, self._inode)

    async def _end(self, kind: Kind, *, is_it: bool) -> None:
        places = [n for n, one in enumerate(self._kinds) if (one is kind) is is_it]
        for place in places:
            self._servers[place].should_exit = True
        await asyncio.gather(*(self._tasks[place] for place in places))

    def hurry(self) -> None:
        """Have :meth:`stop` cut what is in flight."""
        for server in self._servers:
            server.hurry()


async def serve(
    app: App,
    *,
    unix_socket: Path | None = None,
    host: str | None = None,
    port: int = 0,
    guard: Guard | None = None,
    ops: OpsConfig = NO_OPS,
    insecure: bool = False,
    grace_seconds: int = GRACE_SECONDS,
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
        grace_seconds: How long what is in flight may take when it is stopped.

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
        front = Front(app.predictions, Guard(ServeConfig()))
        wanted.append(_Wanted(Kind.UNIX, unix_socket, app, front=front))
    if host is not None:
        front = Front(app.predictions, guard)
        wanted.append(_Wanted(Kind.TCP, (host, port), guard.before(app), guard.tls, front))
    if ops.host is not None:
        wanted.append(_Wanted(Kind.OPS, (ops.host, ops.port), OpsOnly(app)))
    return await _begin(wanted, guard, grace_seconds)


async def serve_privately(app: Asgi, path: Path) -> RunningServer:
    """Serve an application to this user and root only, on a Unix socket of mode 0600.

    Args:
        app: What answers.
        path: Where; a socket that is there is replaced.

    Raises:
        ConfigError: The path cannot be listened at (code ``cannot-listen``).
    """
    return await _begin([_Wanted(Kind.PRIVATE, path, app)], Guard(ServeConfig()), GRACE_SECONDS)


class Kind(StrEnum):
    """The listeners of a daemon."""

    UNIX = "unix"
    TCP = "tcp"
    OPS = "ops"
    PRIVATE = "private"


@dataclass(frozen=True, slots=True)
class _Wanted:
    kind: Kind
    where: Path | tuple[str, int]
    app: Asgi
    tls: ssl.SSLContext | None = None
    front: Front | None = None


class _Listener:
    """A bound socket and the server that will answer on it.

    Each has a server of its own, so that who fills one listener does not fill the others.
    """

    def __init__(self, wanted: _Wanted, grace_seconds: int) -> None:
        where = wanted.where
        most = MOST_CONNECTIONS if wanted.kind in (Kind.UNIX, Kind.TCP) else OPS_CONNECTIONS
        self.kind = wanted.kind
        self.path = where if isinstance(where, Path) else None
        mode = PRIVATE_MODE if wanted.kind is Kind.PRIVATE else SOCKET_MODE
        self.socket = bind_unix(where, mode=mode) if isinstance(where, Path) else bind_tcp(*where)
        self.socket.most = most + REFUSED_WITH_WORDS
        self.port = None if self.path is not None else int(self.socket.getsockname()[1])
        self.server = _Server(_config(wanted.app, most, grace_seconds), wanted.tls, wanted.front)

    async def serve(self) -> None:
        await self.server.serve(sockets=[self.socket])


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, tls: ssl.SSLContext | None, front: Front | None
    ) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._tls = tls
        self._front = front

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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # who is in the backlog has been let in by the kernel already, and would be reset
        for _ in range(ACCEPT_TURNS):
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        state, loop = self.server_state, asyncio.get_running_loop()
        # uvicorn puts these on every answer, and closes the connection after one that says so
        state.default_headers = [*state.default_headers, CLOSE]
        until = loop.time() + LINGER_SECONDS
        # uvicorn keeps a set, and says nothing when it becomes empty
        while state.connections and loop.time() < until and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(LINGER_STEP_SECONDS)
        await super().shutdown(sockets)

    def hurry(self) -> None:
        self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # the daemon has its own order of shutting down, of which this server is one part
        yield

    def _protocol(self) -> asyncio.Protocol:
        protocol = PlainAnswers(self.config, self.server_state, {})
        protocol.front = self._front
        return protocol


async def _begin(wanted: list[_Wanted], guard: Guard, grace_seconds: int) -> RunningServer:
    listeners = _bind(wanted, grace_seconds)
    tasks = [asyncio.create_task(one.serve(), name=f"http-{one.kind}") for one in listeners]
    await _until_listening([listener.server for listener in listeners], tasks)
    return RunningServer(listeners, tasks, guard)


def _config(app: Asgi, most_connections: int, grace_seconds: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=PlainAnswers,
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
        timeout_graceful_shutdown=grace_seconds,
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


def _bind(wanted: list[_Wanted], grace_seconds: int) -> list[_Listener]:
    listeners: list[_Listener] = []
    for one in wanted:
        try:
            listeners.append(_Listener(one, grace_seconds))
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

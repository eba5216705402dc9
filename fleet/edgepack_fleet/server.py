"""The HTTP server around the service: one socket, one uvicorn, one line when it listens."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from edgepack_contract.errors import ConfigError
from edgepack_contract.gate import REASON_VARIABLE, admit
from edgepack_contract.loopback import is_loopback
from edgepack_contract.message_types import prepare_types
from edgepack_fleet.admission import gather_facts
from edgepack_fleet.api.app import build_app
from edgepack_fleet.api.context import Context
from edgepack_fleet.api.problems import refusal
from edgepack_fleet.config import FleetConfig, HttpConfig, url_of
from edgepack_fleet.security import security_gate
from edgepack_fleet.service import FleetService
from edgepack_fleet.wallclock import wall_ms

logger = logging.getLogger(__name__)

BACKLOG = 2048
GRACEFUL_SECONDS = 5
UNIX_MODE = 0o660


class _Server(uvicorn.Server):
    """Tells when it listens, and lets the rest of the service stop after it."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_ready: Callable[[], None],
        on_hangup: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_hangup = on_hangup

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at the first signal; unlike uvicorn's own, do not raise it again afterwards."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        loop.add_signal_handler(signal.SIGHUP, self._reload, loop)
        yield

    def _reload(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use the certificate as it is now for new connections; let the service read its keys."""
        config = self.config
        if config.ssl is not None and config.ssl_certfile is not None:
            try:
                config.ssl.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
            except OSError as error:
                logger.error("the certificate is not taken: %s", error)
        loop.run_in_executor(None, self._on_hangup)


def serve(config: FleetConfig, announce: Callable[[str], None], *, source: str) -> None:
    """Run the service until SIGTERM or SIGINT; SIGHUP reads keys, keyring and certificate anew.

    Args:
        config: What it was told.
        announce: Called with the public URL once requests are answered.
        source: The configuration's file, for commands that are told to people.

    Raises:
        ConfigError: The configuration is unsafe, or the address cannot be bound.
        SigningKeyError, UntrustedDocumentError, MalformedDocumentError, StorageError: See
            :class:`FleetService`.
    """
    prepare_types()
    facts = gather_facts(config, source=source, now_ms=wall_ms())
    waiver = admit(security_gate(facts), os.environ.get(REASON_VARIABLE))
    listener = bind(config.http)
    with contextlib.closing(listener):
        url = public_url(config.http, listener)
        service = FleetService(config, public_url=url, waiver=waiver)
        server = _make_server(service, lambda: announce(url))
        try:
            service.start()
            asyncio.run(server.serve(sockets=[listener]))
        finally:
            service.stop()


def bind(http: HttpConfig) -> socket.socket:
    """Bind the listener: the Unix socket if one is set, else host and port.

    Raises:
        ConfigError: It is taken, or not ours to bind.
    """
    try:
        if http.unix is not None:
            return _bind_unix(Path(http.unix))
        family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
        return socket.create_server((http.host, http.port), family=family, backlog=BACKLOG)
    except OSError as error:
        where = http.unix or f"{http.host}:{http.port}"
        raise ConfigError(f"cannot listen on {where}: {error.strerror}", code="bind") from error


def public_url(http: HttpConfig, listener: socket.socket) -> str:
    """Where devices reach the service: as configured, or the address that was bound.

    Raises:
        ConfigError: It listens on a Unix socket or on every address, so that nobody can guess by
            which devices reach it.
    """
    if http.public_url is not None:
        return http.public_url.rstrip("/")
    if http.unix is not None:
        raise ConfigError("with http.unix, http.public_url must say how devices reach the service")
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        raise ConfigError(
            f"{host} is every address of this machine, and none that devices can be told: set "
            "http.public_url to the https address by which they reach the service",
            code="no-public-url",
        )
    return url_of(http, host, port)


def _bind_unix(path: Path) -> socket.socket:
    if path.is_socket():
        path.unlink()  # of an earlier run; the database's lock keeps two services apart
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(UNIX_MODE)
    listener.listen(BACKLOG)
    return listener


class _OnlyProxies:
    """Answers nobody but the proxies: whoever goes around them has no TLS."""

    def __init__(self, app: ASGIApp, networks: Sequence[str]) -> None:
        self._app = app
        self._networks = [ipaddress.ip_network(network) for network in networks]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and scope["path"] != "/healthz" and not self._is_proxy(scope):
            words = "this address answers its proxies only; use the public address of the service"
            answer = refusal(scope["path"], HTTPStatus.FORBIDDEN, "not-a-proxy", words)
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_proxy(self, scope: Scope) -> bool:
        peer = ipaddress.ip_address(scope["client"][0].partition("%")[0])
        if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return any(peer in network for network in self._networks)


def _application(context: Context) -> ASGIApp:
    http, app = context.config.http, build_app(context)
    bare = http.unix is None and not is_loopback(http.host) and http.tls_certificate is None
    return _OnlyProxies(app, http.trusted_proxies) if bare and http.behind_proxy else app


def _make_server(service: FleetService, on_ready: Callable[[], None]) -> _Server:
    http = service.config.http
    context = Context(
        config=service.config,
        database=service.database,
        bundles=service.bundles,
        writer=service.writer,
        keeper=service.keeper,
        wake=service.wake,
        now_ms=service.now_ms,
        # a stream that never ends would hold up the shutdown that begins with the signal
        is_stopping=lambda: server.should_exit or service.is_stopping(),
        counters=service.counters,
        waiver=service.waiver,
        refused=service.ingest.refused,
    )
    config = uvicorn.Config(
        _application(context),
        access_log=False,
        log_config=None,
        server_header=False,
        # uvicorn would take any local client's word for where it comes from
        proxy_headers=False,
        ssl_certfile=http.tls_certificate,
        ssl_keyfile=http.tls_key,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
    server = _Server(config, on_ready=on_ready, on_hangup=service.reload)
    return server

"""``edgepack healthcheck``: is the daemon on this machine well; for probes of containers.

Standard library and a few lines of ours: a probe runs every few seconds on a small machine.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from http.client import HTTPConnection
    from ssl import SSLContext

SECONDS = 3.0
CONFIG_BYTES = 256 * 1024
DEFAULT = "http://127.0.0.1:8000"
SERVE_PORT, OPS_PORT = 8000, 9464
CONTROL_SOCKET = "control.sock"
UNHEALTHY = 1


@dataclass(frozen=True)
class Place:
    """Where a daemon answers; ``known`` is whether its certificate has to be one that counts."""

    host: str = "localhost"
    port: int | None = None
    tls: bool = False
    known: bool = True
    unix_socket: str | None = None
    path: str = ""

    def __str__(self) -> str:
        if self.unix_socket is not None:
            return self.unix_socket
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{'https' if self.tls else 'http'}://{host}{port}{self.path}"


@click.command()
@click.option("--url", help=f"Where the daemon answers; {DEFAULT} when nothing is said.")
@click.option("--unix-socket", help="The daemon's Unix socket.")
@click.option("--config", type=click.Path(path_type=Path), help="The daemon's configuration.")
@click.option("--ready/--live", help="Whether every slot has a model, or only whether it lives.")
def command(*, url: str | None, unix_socket: str | None, config: Path | None, ready: bool) -> int:
    """Ask a daemon whether it is well: exit code 0 when it is, 1 when it is not.

    With an https --url and a private authority, SSL_CERT_FILE names that authority's certificate.

    Example: edgepack healthcheck --config /etc/edgepack/device.toml --ready
    """
    if sum(one is not None for one in (url, unix_socket, config)) > 1:
        raise click.UsageError("give one of --url, --unix-socket and --config")
    if config is not None:
        place = of_config(_read(config), os.environ, config.parent)
    elif unix_socket is not None:
        place = Place(unix_socket=unix_socket)
    else:
        place = of_url(url or DEFAULT)
    trouble = ask(place, "/v2/health/ready" if ready else "/v2/health/live")
    if trouble is not None:
        click.echo(f"not well: {place}: {trouble}", err=True)
        return UNHEALTHY
    click.echo("ready" if ready else "live")
    return 0


def of_url(url: str) -> Place:
    """The place of a URL.

    Raises:
        click.UsageError: It is not one of http or https.
    """
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise click.UsageError(f"--url {url}: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise click.UsageError(f"--url {url} is not an http or https URL, such as {DEFAULT}")
    return Place(host, port, tls=parts.scheme == "https", path=parts.path.rstrip("/"))


def of_config(table: Mapping[str, Any], environ: Mapping[str, str], base: Path) -> Place:
    """The easiest way in that a daemon's configuration tells: operations, Unix socket, TCP.

    With a free port that is the control socket, which is for the daemon's user and root.

    Args:
        table: The decoded TOML.
        environ: The ``EDGEPACK_*`` variables in it win, as they do for the daemon.
        base: What a relative path is relative to.

    Raises:
        click.UsageError: It serves on a free port that nobody knows beforehand.
    """

    def setting(section: str, key: str) -> Any:
        inner = table.get(section)
        told = inner.get(key) if isinstance(inner, Mapping) else None
        return environ.get(f"EDGEPACK_{section}_{key}".upper(), told)

    ops_host, unix_socket = setting("ops", "host"), setting("serve", "unix_socket")
    if ops_host:
        return Place(_here(ops_host), _port(setting("ops", "port"), OPS_PORT))
    if unix_socket:
        return Place(unix_socket=str(base / str(unix_socket)))
    state_dir = environ.get("EDGEPACK_STATE_DIR", table.get("state_dir"))
    if state_dir and str(setting("serve", "port")) == "0":
        # nobody knows the port beforehand, but the daemon's own user can ask here
        return Place(unix_socket=str(base / str(state_dir) / CONTROL_SOCKET))
    # It asks its own machine, sends no secret and learns one bit: any certificate will do.
    return Place(
        _here(setting("serve", "host") or "127.0.0.1"),
        _port(setting("serve", "port"), SERVE_PORT),
        tls=bool(setting("serve", "tls_certificate")),
        known=False,
    )


def ask(place: Place, path: str) -> str | None:
    """Ask one question of a daemon: None when the answer is yes, else what is wrong."""
    from http.client import HTTPException

    connection = _connection(place)
    try:
        if place.unix_socket is not None:
            connection.sock = _connect_unix(place.unix_socket)
        connection.request("GET", place.path + path)
        status = connection.getresponse().status
    except (OSError, HTTPException, ValueError) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return None if status == 200 else f"{path} answered {status}"


def _connection(place: Place) -> HTTPConnection:
    import http.client

    if not place.tls:
        return http.client.HTTPConnection(place.host, place.port, timeout=SECONDS)
    import ssl

    # loading the system's authorities costs more than everything else here together
    context = ssl.create_default_context() if place.known else _any_certificate()
    return http.client.HTTPSConnection(place.host, place.port, timeout=SECONDS, context=context)


def _any_certificate() -> SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _connect_unix(path: str) -> socket.socket:
    from edgepack_runtime.serving.sockets import short_path

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(SECONDS)
    try:
        with short_path(Path(path)) as address:
            connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        with path.open("rb") as stream:
            table = tomllib.loads(stream.read(CONFIG_BYTES).decode())
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise click.UsageError(f"{path} is not TOML: {error}") from error
    return table


def _here(host: object) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(host), str(host))  # noqa: S104


def _port(given: object, default: int) -> int:
    text = str(default if given is None else given)
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) <= 65_535):
        raise click.UsageError(f"port {text[:40]} cannot be asked; name the daemon with --url")
    return int(text)

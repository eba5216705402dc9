"""Listening sockets: TCP and Unix, each with a bound on open connections."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgepack_contract.loopback import is_loopback

MOST_CONNECTIONS = 512
SHARES = 4
"""One address may have a quarter of the connections of a listener."""

MOST_PORT = 65_535
SOCKET_MODE = 0o660
PRIVATE_MODE = 0o600
SUN_PATH_BYTES = 108
_IPV6_NETWORK = 64


class BoundedSocket(socket.socket):
    """A listening socket that hangs up on callers when ``most`` connections are open.

    asyncio takes every caller, also those that never finish a handshake; file descriptors end, and
    installing and telemetry need some too.
    """

    most = MOST_CONNECTIONS
    _open: Mapping[socket.socket, str] = MappingProxyType({})

    def accept(self) -> tuple[socket.socket, Any]:
        """Take the next caller, or hang up on it."""
        connection, address = super().accept()
        held = {one: peer for one, peer in self._open.items() if one.fileno() != -1}
        self._open, peer = held, _peer(address)
        if len(self._open) >= self.most or self._has_its_share(peer):
            connection.close()
            # asyncio goes on with the next caller
            raise ConnectionAbortedError
        held[connection] = peer
        return connection, address

    def _has_its_share(self, peer: str) -> bool:
        """Whether one address has as many connections as it may: whoever is at it shows later."""
        if not peer or is_loopback(peer):
            return False
        return sum(one == peer for one in self._open.values()) >= self.most // SHARES


def _peer(address: Any) -> str:
    """Who is counted: an IPv4 address, a network of IPv6; nobody on a Unix socket."""
    if not isinstance(address, tuple):
        return ""
    found = ipaddress.ip_address(str(address[0]).partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        if not found.is_loopback:
            # one machine has all the addresses of its network to choose from
            return str(ipaddress.ip_network((found, _IPV6_NETWORK), strict=False).network_address)
    return str(found)


def bind_tcp(host: str, port: int) -> BoundedSocket:
    """A TCP socket at an address.

    Raises:
        OSError: The place is taken, or is none.
    """
    if not 0 <= port <= MOST_PORT:
        # getaddrinfo would take the lower 16 bits of it, and serve where nobody looks
        raise OSError(errno.EINVAL, f"a port is a number from 0 to {MOST_PORT}")
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = BoundedSocket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def bind_unix(path: Path, *, mode: int = SOCKET_MODE) -> BoundedSocket:
    """Bind beside the path and rename: nobody finds the socket before it has its mode.

    Args:
        path: Where; a socket that is there is replaced.
        mode: Who may connect.

    Raises:
        OSError: The place is taken by something else, or cannot be written.
    """
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise FileExistsError(f"{path} is there and is not a socket")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    listener = BoundedSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        aside.unlink(missing_ok=True)
        with short_path(aside) as address:
            listener.bind(address)
        aside.chmod(mode)
        aside.rename(path)
    except OSError:
        listener.close()
        aside.unlink(missing_ok=True)
        raise
    return listener


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name of a Unix socket that fits ``sun_path`` (unix(7)), however deep its folder is.

    Raises:
        OSError: There is no such folder.
    """
    if len(os.fsencode(path)) < SUN_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def unlink(path: Path, inode: int | None) -> None:
    """Remove a socket, if it is the one with that inode."""
    # a daemon that took the path over in the meantime keeps its socket
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()

"""Ports of this machine for processes that are told theirs before they start."""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path

FIRST = 10_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 100


def free_port() -> int:
    """A TCP port on loopback that nothing uses, and that the system gives to nobody by itself.

    One of the system's own choice could go to somebody else before its server listens, or while
    that server is started anew.

    Raises:
        OSError: None is free.
    """
    end = _first_ephemeral()
    for _ in range(_TRIES):
        port = FIRST + secrets.randbelow(end - FIRST) if end > FIRST else 0
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)) as server:
            found: int = server.getsockname()[1]
            return found
    raise OSError(f"no port of 127.0.0.1 from {FIRST} to {end} is free")


def _first_ephemeral() -> int:
    try:
        return int(_EPHEMERAL.read_text(encoding="ascii").split()[0])
    except OSError:
        return 0

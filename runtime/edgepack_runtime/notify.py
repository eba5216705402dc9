"""What a service manager is told: the sd_notify protocol, over one datagram socket.

Source: systemd's sd_notify(3) and sd_watchdog_enabled(3). Without ``NOTIFY_SOCKET`` all of it does
nothing.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, MutableMapping

logger = logging.getLogger(__name__)

_MICRO = 1_000_000


class Notifier:
    """Tells the service manager how the daemon is. Never waits, never fails.

    Args:
        address: The path of its socket, or ``@name`` of an abstract one; None for nobody to tell.
        watchdog_seconds: It restarts a daemon that was silent for so long; None for never.
        monotonic_ns: The machine's monotonic clock.
    """

    def __init__(
        self,
        address: str | None = None,
        watchdog_seconds: float | None = None,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._address = "\0" + address[1:] if address and address[0] == "@" else address
        self.watchdog_seconds = watchdog_seconds
        self._monotonic_ns = monotonic_ns
        self._failed = False

    def ready(self, words: str) -> None:
        """It serves, or takes up its work again after a reload."""
        self._tell("READY=1", _status(words))

    def status(self, words: str) -> None:
        """What it does, for ``systemctl status``."""
        self._tell(_status(words))

    def alive(self) -> None:
        """It works."""
        self._tell("WATCHDOG=1")

    def reloading(self) -> None:
        """It reads its configuration again; :meth:`ready` ends that."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={self._monotonic_ns() // 1000}")

    def stopping(self, words: str) -> None:
        """It ends."""
        self._tell("STOPPING=1", _status(words))

    def extend(self, seconds: float) -> None:
        """Starting or stopping takes so long from now on."""
        self._tell(f"EXTEND_TIMEOUT_USEC={round(seconds * _MICRO)}")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._failed:
                words = "the service manager cannot be told how the daemon is: %s"
                logger.warning(words, error, extra={"event": "notify_failed"})
            self._failed = True


def notifier(environ: MutableMapping[str, str], pid: int) -> Notifier:
    """The service manager that the environment names; children shall not find it there.

    Args:
        environ: The environment; what is read is removed from it.
        pid: This process.
    """
    address = environ.pop("NOTIFY_SOCKET", None)
    period, whose = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(pid))
    watched = period.isascii() and period.isdigit() and int(period) > 0 and whose == str(pid)
    return Notifier(address, int(period) / _MICRO if watched else None)


def _status(words: str) -> str:
    return "STATUS=" + " ".join(words.split())

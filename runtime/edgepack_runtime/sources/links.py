"""Which cap holds for a host: that of the network interface by which the system would reach it.

The system itself is asked (a UDP socket is given the address, and nothing is sent), so policy
routes and tunnels count as it sees them. A tunnel is an interface of its own.
"""

from __future__ import annotations

import array
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from edgepack_runtime.config import DownloadConfig
from edgepack_runtime.errors import WaitingSourceError
from edgepack_runtime.sources.pace import Pace

_SIOCGIFCONF = 0x8912
_NAME_BYTES = 16
_IFREQ_BYTES = _NAME_BYTES + 8 + 2 * struct.calcsize("P")
_ADDRESS_AT = _NAME_BYTES + 4
"""Behind the name: family and port, two bytes each."""

_MAX_ADDRESSES = 1024
_IF_INET6 = Path("/proc/net/if_inet6")


class Links:
    """The caps of a device, shared by all its slots. Safe between threads.

    Args:
        config: The caps and the metered interfaces.
        interface: The name of the interface that leads to a host and port, None when unknown.
    """

    def __init__(
        self, config: DownloadConfig, interface: Callable[[str, int], str | None] | None = None
    ) -> None:
        self._interface = interface or interface_to
        self._config = config
        self._free, self._metered = Pace(), Pace()
        self.reconfigure(config)

    def reconfigure(self, config: DownloadConfig) -> None:
        """Take other caps, also for what is under way."""
        self._config = config
        self._free.set_rate(config.bytes_per_second)
        self._metered.set_rate(config.metered_bytes_per_second)

    def pace(self, host: str, port: int) -> Pace:
        """The cap of what comes from a host, or by a proxy from that.

        Raises:
            WaitingSourceError: It would come over a metered link, where nothing may.
        """
        config = self._config
        if not config.metered:
            return self._free
        name = self._interface(host, port)
        if name not in config.metered:
            return self._free
        if not config.metered_bytes_per_second:
            raise WaitingSourceError(
                f"waits for an unmetered link: {host} would be reached by {name}, which "
                "download.metered names and download.metered_bytes_per_second closes"
            )
        return self._metered


def interface_to(host: str, port: int) -> str | None:
    """The interface by which ``host`` would be reached now, None when it would not."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                local = str(probe.getsockname()[0])
        except OSError:
            continue
        return interface_of(local)
    return None


def interface_of(address: str) -> str | None:
    """The interface that has a local address, None when none has."""
    try:
        wanted = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if wanted.is_loopback:
        return "lo"
    found = _addresses_6() if wanted.version == 6 else _addresses_4()
    return found.get(wanted.packed)


def _addresses_4() -> dict[bytes, str]:
    """Interfaces by address, from the ioctl that lists every address (netdevice(7))."""
    room = array.array("B", bytes(_MAX_ADDRESSES * _IFREQ_BYTES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        told = fcntl.ioctl(
            probe.fileno(), _SIOCGIFCONF, struct.pack("iP", len(room), room.buffer_info()[0])
        )
    (size,) = struct.unpack_from("i", told)
    entries = (room[at : at + _IFREQ_BYTES].tobytes() for at in range(0, size, _IFREQ_BYTES))
    return {one[_ADDRESS_AT : _ADDRESS_AT + 4]: _name(one) for one in entries}


def _name(entry: bytes) -> str:
    # an alias, "eth0:1", is of the same link
    return entry[:_NAME_BYTES].partition(b"\0")[0].decode("ascii", "replace").partition(":")[0]


def _addresses_6() -> dict[bytes, str]:
    """Interfaces by address, from proc(5): address, number, prefix, scope, flags, name."""
    try:
        with _IF_INET6.open("rb") as stream:
            lines = stream.read(_MAX_ADDRESSES * 64).decode("ascii", "replace").splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {bytes.fromhex(row[0]): row[5] for row in rows if len(row) == 6}

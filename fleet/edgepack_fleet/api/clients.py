"""Which machine a request comes from, as far as that can be known."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

UNKNOWN = "local"
"""The address of a client on a Unix socket, which has none."""


def client_address(peer: str | None, forwarded: Sequence[str], trusted: Sequence[IPNetwork]) -> str:
    """The address of the client behind the proxies that are trusted.

    Args:
        peer: The address of the connection; None on a Unix socket, whose other end is a proxy of
            this machine when there are trusted proxies at all.
        forwarded: The values of ``X-Forwarded-For``, in order.
        trusted: Whose word is taken. Without any, the header is ignored: anybody can send it.

    Returns:
        The last hop that is not a trusted proxy, or the last one that could be read.
    """
    known = peer if peer is not None else UNKNOWN
    if not trusted or (peer is not None and not _is_in(peer, trusted)):
        return known
    hops = [hop.strip() for value in forwarded for hop in value.split(",")]
    for hop in reversed(hops):
        address = _parse(hop)
        if address is None:
            return known
        known = str(address)
        if not _is_in(known, trusted):
            return known
    return known


def rate_key(address: str) -> str:
    """What an address is counted under: a /64 of IPv6 is one household, with 2^64 addresses."""
    parsed = _parse(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
    return address if parsed is None else str(parsed)


def _is_in(address: str, networks: Sequence[IPNetwork]) -> bool:
    parsed = _parse(address)
    return parsed is not None and any(parsed in network for network in networks)


def _parse(text: str) -> IPAddress | None:
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return parsed if mapped is None else mapped

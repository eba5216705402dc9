"""The proxy that the environment names: ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``.

Only what leaves this machine goes by one, and that is https: the proxy is asked to CONNECT and sees
neither paths nor credentials. ``NO_PROXY`` holds hosts, domains and networks (``10.0.0.0/8``).
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from edgepack_contract.errors import ConfigError
from edgepack_contract.loopback import is_loopback


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; ``headers`` are for it alone, and hold its password."""

    host: str
    port: int
    headers: Mapping[str, str] = field(repr=False)


def proxy_for(host: str) -> Proxy | None:
    """The proxy by which ``host`` is reached, None when it is asked directly.

    Raises:
        ConfigError: The environment names one of another kind (code ``bad-proxy``).
    """
    proxies = getproxies_environment()
    address = proxies.get("https") or proxies.get("all")
    if not address or is_loopback(host) or _is_excepted(host, proxies):
        return None
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        if parts.scheme == "http" and parts.hostname and parts.port != 0:
            return Proxy(parts.hostname, parts.port or 80, _headers(parts))
    except ValueError:
        pass
    # not repeated: it may hold a password
    raise ConfigError("HTTPS_PROXY is not of the form http://HOST:PORT", code="bad-proxy")


def _is_excepted(host: str, proxies: Mapping[str, str]) -> bool:
    if proxy_bypass(host, dict(proxies)):
        return True
    return any(_is_within(host, one.strip()) for one in proxies.get("no", "").split(","))


def _is_within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}

"""From the address in a wish to the source that stands behind it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgepack_contract.loopback import is_loopback
from edgepack_runtime.sources.archive import ArchiveSource
from edgepack_runtime.sources.registry import RegistrySource, checked_url
from edgepack_runtime.sources.source import Credentials, Source


@dataclass(frozen=True, slots=True)
class FleetHost:
    """The fleet service as a source: the only host that is shown who this device is.

    Attributes:
        url: The service's address; None for one on loopback.
        credentials: Who this device is.
        tls: Makes the TLS context by which the service is believed.
        others_tls: The same for every other host.
    """

    url: str | None
    credentials: Credentials
    tls: Callable[[], ssl.SSLContext]
    others_tls: Callable[[], ssl.SSLContext]

    def has(self, address: str) -> bool:
        """Whether an address is of this host."""
        host = urlsplit(address).hostname or ""
        fleet = "localhost" if self.url is None else urlsplit(self.url).hostname or ""
        return host == fleet or (is_loopback(host) and is_loopback(fleet))


def open_source(address: str, *, fleet: FleetHost | None = None) -> Source:
    """The source at an address: an absolute path is a bundle file, a URL a registry's repository.

    Any host may be asked by https; none but the fleet's learns who asks.

    Raises:
        ConfigError: The URL is malformed or insecure.
        SourceError: The file cannot be read.
        MalformedBundleError: The file is not a bundle.
    """
    if address.startswith("/"):
        return ArchiveSource.open(Path(address))
    secure = checked_url(address).scheme == "https"
    if fleet is None:
        return RegistrySource(address)
    if not fleet.has(address):
        return RegistrySource(address, tls=fleet.others_tls() if secure else None)
    tls = fleet.tls() if secure else None
    return RegistrySource(address, credentials=fleet.credentials, tls=tls)

"""From the address in a wish to the source that stands behind it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from edgepack_contract.clock import TrustedClock
from edgepack_contract.errors import SourceError
from edgepack_contract.limits import LIMITS
from edgepack_contract.loopback import is_loopback
from edgepack_contract.small_files import read_small
from edgepack_contract.tls import client_context, read_authorities
from edgepack_runtime.config import DownloadConfig, RegistryConfig
from edgepack_runtime.sources.addresses import checked_url
from edgepack_runtime.sources.archive import ArchiveSource
from edgepack_runtime.sources.links import Links
from edgepack_runtime.sources.registry import Manner, RegistrySource
from edgepack_runtime.sources.source import Credentials, Source


@dataclass(frozen=True, slots=True)
class FleetHost:
    """The fleet service as a source: the only host that is shown who this device is.

    Attributes:
        url: The service's address; None for one on loopback.
        credentials: Who this device is.
        tls: Makes the TLS context by which the service is believed.
    """

    url: str | None
    credentials: Credentials
    tls: Callable[[], ssl.SSLContext]

    def has(self, address: str) -> bool:
        """Whether an address is of this host."""
        host = urlsplit(address).hostname or ""
        fleet = "localhost" if self.url is None else urlsplit(self.url).hostname or ""
        return host == fleet or (is_loopback(host) and is_loopback(fleet))


class Sources:
    """Opens the sources of a device. Safe between threads.

    Args:
        config: The caps, and the registries that know this device.
        fleet: The fleet service, None without one.
        clock: The time by which certificates are judged; None for the system's.
        manner: How registries are asked, but for what follows from ``config``.
    """

    def __init__(
        self,
        config: DownloadConfig | None = None,
        *,
        fleet: FleetHost | None = None,
        clock: TrustedClock | None = None,
        manner: Manner | None = None,
    ) -> None:
        self._config = config or DownloadConfig()
        self._fleet, self._clock = fleet, clock
        self._links = Links(self._config)
        self._manner = replace(manner or Manner(), links=self._links, tls=self._tls)

    def reconfigure(self, config: DownloadConfig) -> None:
        """Take other caps at once, and other registries at the next opening."""
        self._config = config
        self._links.reconfigure(config)

    def open(self, address: str) -> Source:
        """The source at an address: a path is a bundle file, a URL a registry's repository.

        Any host may be asked by https. The fleet's alone learns which device asks, and those of
        the configuration the user that it names for them. Password files are read each time.

        Raises:
            ConfigError: The URL is malformed or insecure.
            SourceError: The file, or the password of the registry, cannot be read.
            MalformedBundleError: The file is not a bundle.
        """
        if address.startswith("/"):
            return ArchiveSource.open(Path(address))
        url = checked_url(address)
        known = self._registry(url.netloc)
        if known is not None and known.user is not None:
            return RegistrySource(address, credentials=_credentials(known), manner=self._manner)
        if self._fleet is not None and self._fleet.has(address):
            credentials, tls = self._fleet.credentials, self._fleet.tls
            manner = replace(self._manner, tls=self._fleet_tls(url.netloc, tls))
            return RegistrySource(address, credentials=credentials, eager=True, manner=manner)
        return RegistrySource(address, manner=self._manner)

    def _registry(self, netloc: str) -> RegistryConfig | None:
        return next((one for one in self._config.registries if one.host == netloc), None)

    def _tls(self, netloc: str) -> ssl.SSLContext:
        known = self._registry(netloc)
        authorities = read_authorities(Path(known.ca)) if known and known.ca else []
        return client_context(authorities, clock=self._clock)

    def _fleet_tls(
        self, fleet: str, tls: Callable[[], ssl.SSLContext]
    ) -> Callable[[str], ssl.SSLContext]:
        # blobs may be redirected to a host that the fleet's authorities do not vouch for
        return lambda netloc: tls() if netloc == fleet else self._tls(netloc)


def _credentials(registry: RegistryConfig) -> Credentials | None:
    user, path = registry.user, registry.password_file
    if user is None:
        return None
    if path is None:
        return Credentials(user, "")
    try:
        raw = read_small(Path(path), LIMITS.key_file_bytes)
        password = raw.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"the password of {registry.host} cannot be read from {path}: "
            f"{getattr(error, 'strerror', None) or 'it is not text'}",
            code="no-password",
        ) from error
    if len(raw) > LIMITS.key_file_bytes or not password.isprintable():
        raise SourceError(f"{path} does not hold one password on one line", code="no-password")
    return Credentials(user, password)

"""Which addresses a device asks for bundles, and where it lets itself be sent. Pure."""

from __future__ import annotations

from urllib.parse import SplitResult, urljoin, urlsplit

from edgepack_contract.errors import ConfigError, SourceError
from edgepack_contract.loopback import is_loopback


def checked_url(url: str) -> SplitResult:
    """The parts of the address of a repository.

    Raises:
        ConfigError: It is of another form, or plain http to another machine.
    """
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
    except ValueError as error:
        raise ConfigError(f"{url[:120]!r} is not a URL: {error}", code="bad-source") from error
    named = parts.hostname and parts.path.strip("/") and port_ok
    plain = not (parts.username or parts.query or parts.fragment)
    if parts.scheme not in ("http", "https") or not named or not plain:
        raise ConfigError(
            f"{url[:120]!r} is not of the form https://HOST[:PORT]/REPOSITORY", code="bad-source"
        )
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ConfigError(
            f"{url[:120]!r} is plain http to another machine; use https", code="insecure-source"
        )
    return parts


def same_host(one: SplitResult, other: SplitResult) -> bool:
    """Whether one server answers at both."""
    return (one.scheme, one.netloc) == (other.scheme, other.netloc)


def redirected(here: SplitResult, location: str, *, elsewhere: bool) -> SplitResult:
    """Where a redirect leads: to the same server, or, for blobs, to an object store by https.

    A store is never on this machine, unless the registry is too.

    Args:
        here: What was asked.
        location: The ``Location`` of the answer.
        elsewhere: Whether another server may have it.

    Raises:
        SourceError: It leads where it must not (code ``bad-redirect``).
    """
    try:
        there = urlsplit(urljoin(here.geturl(), location))
        named = there.hostname is not None and (there.port is None or there.port > 0)
    except ValueError:
        there, named = here, False
    if named and same_host(there, here):
        return there
    if not elsewhere:
        raise SourceError(
            f"{here.netloc} redirects to {there.netloc[:80]!r}; only itself is allowed",
            code="bad-redirect",
        )
    if not named or there.username or not _is_safe(here, there):
        raise SourceError(
            f"{here.netloc} redirects to {there.scheme[:10]}://{there.netloc[:80]}, and "
            "only another host by https is allowed",
            code="bad-redirect",
        )
    return there


def _is_safe(here: SplitResult, there: SplitResult) -> bool:
    if is_loopback(there.hostname or ""):
        plain = there.scheme == "http" and here.scheme == "http"
        return is_loopback(here.hostname or "") and (there.scheme == "https" or plain)
    return there.scheme == "https"

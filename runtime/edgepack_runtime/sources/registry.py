"""The pull half of an OCI registry.

Source: OCI distribution specification 1.1, "pull".
"""

from __future__ import annotations

import http.client
import io
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import SplitResult, urljoin, urlsplit

from edgepack_contract.errors import ConfigError, MalformedBundleError, SourceError
from edgepack_contract.limits import LIMITS
from edgepack_contract.loopback import is_loopback
from edgepack_contract.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from edgepack_contract.tls import tls_trouble
from edgepack_runtime.errors import TransientSourceError
from edgepack_runtime.sources.source import CHUNK_BYTES, Credentials, Patience, skip

MAX_REDIRECTS = 3
_RETRYABLE = frozenset({408, 425, 429})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class RegistrySource:
    """One repository of an OCI registry.

    Args:
        url: ``http(s)://HOST[:PORT]/REPOSITORY``; plain http on loopback only.
        credentials: Sent with every request to this host, and to no other.
        tls: How certificates are checked; None for the system's way.
        patience: When to give up.
        clock: Monotonic seconds.

    Raises:
        ConfigError: The URL is of another form, or plain http to another machine.
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials | None = None,
        tls: ssl.SSLContext | None = None,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = checked_url(url)
        self._repository = self._url.path.strip("/")
        self._credentials = credentials
        self._tls = tls
        self._patience = patience or Patience()
        self._clock = clock

    def resolve(self, reference: str) -> bytes | None:
        """See :class:`~edgepack_contract.bundle.BlobSource`.

        Raises:
            TransientSourceError: It does not answer now.
            SourceError: It refuses.
        """
        accept = f"{INDEX_TYPE}, {MANIFEST_TYPE}"
        target = f"/v2/{self._repository}/manifests/{reference}"
        deadline = self._clock() + self._patience.deadline(LIMITS.manifest_bytes)
        response = self._get(target, {"Accept": accept}, missing_ok=True)
        if response is None:
            return None
        with _Body(response, deadline, self._clock) as body:
            return _read_bounded(body, LIMITS.manifest_bytes, what=f"manifest {reference[:80]}")

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """See :class:`~edgepack_contract.bundle.BlobSource`."""
        return self.open_blob_at(descriptor, 0)

    def open_blob_at(self, descriptor: Descriptor, offset: int) -> BinaryIO:
        """See :class:`Source`.

        Raises:
            TransientSourceError: It does not answer now.
            SourceError: It refuses, or has not got the blob.
        """
        deadline = self._clock() + self._patience.deadline(descriptor.size - offset)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = self._get(f"/v2/{self._repository}/blobs/{descriptor.digest}", headers)
        if response is None:
            raise _failed(self._url, 404, descriptor.digest)
        stream = io.BufferedReader(_Body(response, deadline, self._clock))
        if offset and response.status != http.HTTPStatus.PARTIAL_CONTENT:
            # a server may ignore Range (RFC 9110, 14.2); then the beginning comes once more
            skip(stream, offset)
        elif offset and not _starts_at(response, offset):
            stream.close()
            raise SourceError(
                f"{self._url.netloc} sent another range than {offset}-", code="bad-range"
            )
        return stream

    def close(self) -> None:
        """Nothing is kept open between requests."""

    def _get(
        self, target: str, headers: dict[str, str], *, missing_ok: bool = False
    ) -> _Answer | None:
        for _ in range(MAX_REDIRECTS + 1):
            response = self._ask(target, headers)
            if response.status in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
                _check_plain(response, self._url)
                return response
            response.close()
            if response.status in _REDIRECTS:
                target = self._redirected(target, response)
            elif response.status == http.HTTPStatus.NOT_FOUND and missing_ok:
                return None
            else:
                raise _failed(self._url, response.status, target)
        raise SourceError(f"{self._url.netloc} redirects without end", code="bad-redirect")

    def _ask(self, target: str, headers: dict[str, str]) -> _Answer:
        connection = self._connect()
        sent = {"Accept-Encoding": "identity", "Connection": "close", **headers}
        if self._credentials:
            sent["Authorization"] = self._credentials.header
        try:
            connection.request("GET", target, headers=sent)
            return _Answer(connection, connection.getresponse())
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise _unreachable(self._url, error) from error

    def _connect(self) -> http.client.HTTPConnection:
        host, stall = self._url.hostname or "", self._patience.stall_seconds
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, self._url.port, timeout=stall)
        tls = self._tls or ssl.create_default_context()
        return http.client.HTTPSConnection(host, self._url.port, timeout=stall, context=tls)

    def _redirected(self, target: str, response: _Answer) -> str:
        base = f"{self._url.scheme}://{self._url.netloc}"
        there = urlsplit(urljoin(base + target, response.header("Location")))
        if (there.scheme, there.netloc) != (self._url.scheme, self._url.netloc):
            raise SourceError(
                f"{self._url.netloc} redirects to {there.netloc[:80]!r}; only itself is allowed",
                code="bad-redirect",
            )
        return there.path + (f"?{there.query}" if there.query else "")


@dataclass(frozen=True, slots=True)
class _Answer:
    """A response and the connection it came by, which end together."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse

    @property
    def status(self) -> int:
        return self.response.status

    def header(self, name: str) -> str:
        return self.response.headers.get(name, "")

    def close(self) -> None:
        self.response.close()
        self.connection.close()


class _Body(io.RawIOBase):
    """A response's bytes until its deadline; an early end is an error, not an end."""

    def __init__(self, answer: _Answer, deadline: float, clock: Callable[[], float]) -> None:
        self._answer, self._response = answer, answer.response
        self._deadline, self._clock = deadline, clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        # read1 returns what one receive brought, so that the deadline is looked at in between
        if self._clock() > self._deadline:
            raise TransientSourceError("the source is too slow: its total time is over")
        try:
            data = self._response.read1(min(len(buffer), CHUNK_BYTES))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TransientSourceError(f"the source stopped half-way: {error!r}") from error
        if not data and self._response.length:
            raise TransientSourceError(
                f"the source ended {self._response.length} bytes early", code="truncated"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._answer.close()
        super().close()


def _read_bounded(stream: _Body, limit: int, *, what: str) -> bytes:
    with closing(io.BufferedReader(stream)) as reader:
        raw = reader.read(limit + 1)
    if len(raw) > limit:
        raise MalformedBundleError(f"{what} has more than {limit} bytes", code="too-large")
    return raw


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


def _check_plain(response: _Answer, url: SplitResult) -> None:
    encoding = response.header("Content-Encoding") or "identity"
    if encoding != "identity":
        response.close()
        raise SourceError(
            f"{url.netloc} sent Content-Encoding {encoding[:40]!r}, which was not asked for",
            code="bad-encoding",
        )


def _starts_at(response: _Answer, offset: int) -> bool:
    return response.header("Content-Range").startswith(f"bytes {offset}-")


def _failed(url: SplitResult, status: int, target: str) -> SourceError:
    words = f"{url.netloc} answered {status} for {target[:160]}"
    if status in _RETRYABLE or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return TransientSourceError(words)
    return SourceError(
        words, code="not-found" if status == http.HTTPStatus.NOT_FOUND else "refused"
    )


def _unreachable(url: SplitResult, error: Exception) -> SourceError:
    said = tls_trouble(error) if isinstance(error, OSError) else str(error)
    words = f"{url.netloc} is not reachable: {said}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return SourceError(words, code="bad-certificate")
    return TransientSourceError(words)

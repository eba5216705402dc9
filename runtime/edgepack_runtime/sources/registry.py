"""The pull half of an OCI registry.

Source: OCI distribution specification 1.1, "pull"; RFC 9110 for ranges, validators and codings.
Whatever comes is proven by digest or signature by whoever asked.
"""

from __future__ import annotations

import http.client
import io
import re
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import BinaryIO, cast
from urllib.parse import SplitResult

from edgepack_contract.errors import MalformedBundleError, SourceError
from edgepack_contract.limits import LIMITS
from edgepack_contract.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from edgepack_contract.tls import client_context, tls_trouble
from edgepack_runtime.config import DownloadConfig
from edgepack_runtime.errors import TransientSourceError
from edgepack_runtime.proxy import proxy_for
from edgepack_runtime.sources.addresses import checked_url, redirected, same_host
from edgepack_runtime.sources.line import Connection, Watch
from edgepack_runtime.sources.links import Links
from edgepack_runtime.sources.login import Login
from edgepack_runtime.sources.source import (
    CHUNK_BYTES,
    Credentials,
    Have,
    Incoming,
    Patience,
    never,
)

MAX_REDIRECTS = 3
_RETRYABLE = frozenset({408, 425, 429})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GZIP = frozenset({"gzip", "x-gzip"})
_CONTENT_RANGE = re.compile(r"\Abytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\Z")
_STRONG = re.compile(r'\A"[\x21\x23-\x7e]{1,256}"\Z')


@dataclass(frozen=True, slots=True)
class Manner:
    """How registries are asked.

    Attributes:
        links: The caps.
        tls: How the certificate of ``HOST[:PORT]`` is checked.
        patience: When to give up.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
    """

    links: Links = field(default_factory=lambda: Links(DownloadConfig()))
    tls: Callable[[str], ssl.SSLContext] = lambda _netloc: client_context([])
    patience: Patience = field(default_factory=Patience)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class RegistrySource:
    """One repository of an OCI registry.

    Args:
        url: ``http(s)://HOST[:PORT]/REPOSITORY``; plain http on loopback only.
        credentials: Who asks, when the registry wants to know.
        eager: Whether it is told before it asks.
        manner: How it is asked.

    Raises:
        ConfigError: The URL is of another form, or plain http to another machine.
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials | None = None,
        eager: bool = False,
        manner: Manner | None = None,
    ) -> None:
        self._url = checked_url(url)
        self._repository = self._url.path.strip("/")
        self._manner = manner or Manner()
        self.login = Login(
            self._url, self._repository, credentials, self._manner.clock, eager=eager
        )

    def resolve(self, reference: str) -> bytes | None:
        """See :class:`~edgepack_contract.bundle.BlobSource`.

        Raises:
            TransientSourceError: It does not answer now.
            SourceError: It refuses.
        """
        headers = {"Accept": f"{INDEX_TYPE}, {MANIFEST_TYPE}", "Accept-Encoding": "identity"}
        watch = self._watch(LIMITS.manifest_bytes)
        answer = self._get(f"manifests/{reference}", headers, watch)
        if answer.status == HTTPStatus.NOT_FOUND:
            answer.close()
            return None
        self._check(answer, reference)
        self._check_plain(answer)
        what = f"manifest {reference[:80]}"
        return _read_bounded(answer, LIMITS.manifest_bytes, what=what)

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """See :class:`~edgepack_contract.bundle.BlobSource`."""
        incoming = self._fetch_plain(descriptor, 0, never)
        return io.BufferedReader(cast("io.RawIOBase", incoming.stream))

    def fetch(
        self, descriptor: Descriptor, have: Have, interrupted: Callable[[], bool]
    ) -> Incoming:
        """See :class:`Source`. A prefix that it knows nothing of is left to be fetched anew.

        Raises:
            TransientSourceError: It does not answer now.
            SourceError: It refuses, or has not got the blob.
            InterruptedInstallError: It was asked to stop.
        """
        if have.packable:
            incoming = self._fetch_packed(descriptor, have, interrupted)
            if incoming is not None:
                return incoming
        return self._fetch_plain(descriptor, have.plain, interrupted)

    def close(self) -> None:
        """Nothing is kept open between requests."""

    def _fetch_plain(
        self, descriptor: Descriptor, offset: int, interrupted: Callable[[], bool]
    ) -> Incoming:
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        watch = self._watch(descriptor.size - offset, interrupted)
        answer = self._get(f"blobs/{descriptor.digest}", headers, watch)
        if offset and answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            answer.close()
            return self._fetch_plain(descriptor, 0, interrupted)
        self._check(answer, descriptor.digest)
        self._check_plain(answer)
        if answer.status == HTTPStatus.PARTIAL_CONTENT:
            self._check_range(answer, offset, descriptor.size)
        else:
            # a server may ignore Range (RFC 9110, 14.2); then the beginning comes once more
            offset, watch.deadline = 0, self._watch(descriptor.size).deadline
        return Incoming(_Body(answer), start=offset, total=descriptor.size)

    def _fetch_packed(
        self, descriptor: Descriptor, have: Have, interrupted: Callable[[], bool]
    ) -> Incoming | None:
        """The compressed copy or its rest; None when this source has none that helps."""
        headers = {"Accept-Encoding": "gzip, identity;q=0.5"}
        offset = have.packed if have.etag else 0
        if offset:
            headers |= {"Range": f"bytes={offset}-", "If-Range": have.etag}
        watch = self._watch(descriptor.size, interrupted)
        answer = self._get(f"blobs/{descriptor.digest}", headers, watch)
        packed, etag = answer.header("Content-Encoding").lower() in _GZIP, answer.header("ETag")
        partial = answer.status == HTTPStatus.PARTIAL_CONTENT
        if answer.status == HTTPStatus.OK and not packed and not have.plain:
            self._check_plain(answer)
            return Incoming(_Body(answer), total=descriptor.size)
        # without a strong validator a copy that was cut could only be begun again
        usable = packed and _STRONG.match(etag) is not None
        if partial:
            usable = usable and etag == have.etag and _range_of(answer)[0] == offset
        total = _total(answer)
        if not (answer.status == HTTPStatus.OK or partial) or not usable:
            answer.close()
            return None
        if total is not None and total >= descriptor.size:
            answer.close()
            return None
        start = offset if partial else 0
        return Incoming(_Body(answer), start=start, total=total, packed=True, etag=etag)

    def _watch(self, size: int, interrupted: Callable[[], bool] = never) -> Watch:
        manner = self._manner
        return Watch(
            deadline=manner.clock() + manner.patience.deadline(size),
            stall=manner.patience.stall_seconds,
            interrupted=interrupted,
            clock=manner.clock,
            sleep=manner.sleep,
        )

    def _get(self, what: str, headers: Mapping[str, str], watch: Watch) -> _Answer:
        """The answer of the registry, or of the store that it sends to; of any status."""
        here = self._url._replace(path=f"/v2/{self._repository}/{what}")
        answer = self._ask(here, headers, watch, self.login.header())
        if answer.status == HTTPStatus.UNAUTHORIZED:
            challenge = answer.header("WWW-Authenticate")
            answer.close()
            if not self.login.answer(challenge, self._small):
                raise _failed(self._url, answer.status, what)
            answer = self._ask(here, headers, watch, self.login.header())
        for _ in range(MAX_REDIRECTS):
            if answer.status not in _REDIRECTS:
                return answer
            answer.close()
            blob = what.startswith("blobs/sha256:")
            here = redirected(here, answer.header("Location"), elsewhere=blob)
            shown = self.login.header() if same_host(here, self._url) else None
            answer = self._ask(here, headers, watch, shown)
        if answer.status not in _REDIRECTS:
            return answer
        answer.close()
        raise SourceError(f"{self._url.netloc} redirects without end", code="bad-redirect")

    def _small(self, url: SplitResult, authorization: str | None) -> bytes:
        watch = self._watch(LIMITS.message_bytes)
        answer = self._ask(url, {"Accept-Encoding": "identity"}, watch, authorization)
        if answer.status != HTTPStatus.OK:
            answer.close()
            raise _failed(url, answer.status, "a token")
        return _read_bounded(answer, LIMITS.message_bytes, what=f"the token of {url.netloc}")

    def _ask(
        self, url: SplitResult, headers: Mapping[str, str], watch: Watch, shown: str | None
    ) -> _Answer:
        target = url.path + (f"?{url.query}" if url.query else "")
        sent = {"Connection": "close", **headers}
        if shown is not None:
            sent["Authorization"] = shown
        connection = self._connection(url, watch)
        try:
            connection.request("GET", target, headers=sent)
            return _Answer(connection, connection.getresponse())
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise _unreachable(url, error) from error
        except BaseException:
            connection.close()
            raise

    def _connection(self, url: SplitResult, watch: Watch) -> Connection:
        host, secure = url.hostname or "", url.scheme == "https"
        port = url.port or (http.client.HTTPS_PORT if secure else http.client.HTTP_PORT)
        proxy = proxy_for(host)
        near, gate = (proxy.host, proxy.port) if proxy else (host, port)
        watch.pace = self._manner.links.pace(near, gate)
        tls = self._manner.tls(url.netloc) if secure else None
        return Connection(host, port, watch, tls=tls, proxy=proxy)

    def _check(self, answer: _Answer, what: str) -> None:
        if answer.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            answer.close()
            raise _failed(self._url, answer.status, what)

    def _check_plain(self, answer: _Answer) -> None:
        encoding = answer.header("Content-Encoding") or "identity"
        if encoding != "identity":
            answer.close()
            raise SourceError(
                f"{self._url.netloc} sent Content-Encoding {encoding[:40]!r}, which was not asked "
                "for",
                code="bad-encoding",
            )

    def _check_range(self, answer: _Answer, offset: int, size: int) -> None:
        start, total = _range_of(answer)
        if start != offset or total not in (size, None):
            said = answer.header("Content-Range")
            answer.close()
            raise SourceError(
                f"{self._url.netloc} sent another range than {offset}- of {size}: {said[:80]!r}",
                code="bad-range",
            )


@dataclass(frozen=True, slots=True)
class _Answer:
    """A response and the connection it came by, which end together."""

    connection: Connection
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
    """A response's bytes as they come; an early end is an error, not an end."""

    def __init__(self, answer: _Answer) -> None:
        self._answer, self._response = answer, answer.response

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            # read1 returns what one receive brought
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


def _read_bounded(answer: _Answer, limit: int, *, what: str) -> bytes:
    with closing(io.BufferedReader(_Body(answer))) as reader:
        raw = reader.read(limit + 1)
    if len(raw) > limit:
        raise MalformedBundleError(f"{what} has more than {limit} bytes", code="too-large")
    return raw


def _range_of(answer: _Answer) -> tuple[int | None, int | None]:
    """The first byte that comes and the size of the whole; None for what is not said."""
    found = _CONTENT_RANGE.match(answer.header("Content-Range"))
    if found is None:
        return None, None
    return int(found[1]), None if found[3] == "*" else int(found[3])


def _total(answer: _Answer) -> int | None:
    if answer.status == HTTPStatus.PARTIAL_CONTENT:
        return _range_of(answer)[1]
    return answer.response.length


def _failed(url: SplitResult, status: int, what: str) -> SourceError:
    words = f"{url.netloc} answered {status} for {what[:160]}"
    if status in _RETRYABLE or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return TransientSourceError(words)
    if status == HTTPStatus.NOT_FOUND:
        return SourceError(words, code="not-found")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        hint = "give this device a user and password_file in download.registries, or let it pull"
        return SourceError(f"{words}; {hint}", code="refused")
    return SourceError(words, code="refused")


def _unreachable(url: SplitResult, error: Exception) -> SourceError:
    said = tls_trouble(error) if isinstance(error, OSError) else str(error)
    words = f"{url.netloc} is not reachable: {said}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return SourceError(words, code="bad-certificate")
    return TransientSourceError(words)

"""The device's few requests to the fleet service, on the standard library.

Every request is bounded in size and in time, follows no redirect, and goes through the proxy of the
environment (``HTTPS_PROXY``, ``NO_PROXY``) unless it stays on this machine.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

from edgepack_contract.canonical import parse_json
from edgepack_contract.errors import ConfigError, MalformedDocumentError
from edgepack_contract.limits import LIMITS
from edgepack_contract.loopback import is_loopback
from edgepack_contract.tls import tls_trouble
from edgepack_runtime.errors import (
    FleetBusyError,
    FleetError,
    FleetRefusedError,
    FleetUnavailableError,
    FleetUntrustedError,
)
from edgepack_runtime.proxy import proxy_for

_BUSY = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_DATES = frozenset({9, 10})
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL."""

_CODE = re.compile(r"\A[a-z0-9-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds: for the next byte, and for all of an answer."""

    stall_seconds: float = 15.0
    total_seconds: float = 60.0


class FleetClient:
    """Asks one fleet service.

    Args:
        url: ``https://HOST[:PORT]``, or plain http on loopback.
        tls: How its certificate is checked; not used for plain http.
        patience: When to give up.

    Raises:
        ConfigError: The URL is of another form, or plain http to another machine.
    """

    def __init__(self, url: str, *, tls: ssl.SSLContext, patience: Patience | None = None) -> None:
        self._url = _checked_url(url)
        self._tls = tls if self._url.scheme == "https" else None
        self._patience = patience or Patience()
        self._under_way: _Connection | None = None

    def cancel(self) -> None:
        """Let what another thread is asking fail soon."""
        if self._under_way is not None:
            self._under_way.cut()

    def get(self, path: str, *, max_bytes: int) -> bytes:
        """What is at ``path``.

        Raises:
            FleetError: See :meth:`post`.
        """
        return self._ask("GET", path, None, max_bytes)

    def post(self, path: str, body: bytes, *, max_bytes: int) -> bytes:
        """The answer to a JSON document.

        Raises:
            FleetUnavailableError: There is no answer now.
            FleetUntrustedError: It is not the one it should be.
            FleetRefusedError: The answer is no.
            MalformedDocumentError: The answer is larger than ``max_bytes``.
        """
        return self._ask("POST", path, body, max_bytes)

    def _ask(self, method: str, path: str, body: bytes | None, max_bytes: int) -> bytes:
        connection = self._under_way = self._connection()
        watch = threading.Timer(self._patience.total_seconds, connection.cut)
        watch.daemon = True
        watch.start()
        try:
            status, raw = _exchange(connection, method, path, body, max_bytes)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failed(error, too_slow=connection.was_cut) from error
        finally:
            watch.cancel()
            connection.close()
        return self._checked(status, raw, path, max_bytes)

    def _connection(self) -> _Connection:
        host, port = self._url.hostname or "", self._url.port or _port(self._url.scheme)
        proxy = proxy_for(host) if self._tls else None
        if proxy is None:
            return _Connection(host, port, self._tls, host, self._patience.stall_seconds)
        connection = _Connection(
            proxy.host, proxy.port, self._tls, host, self._patience.stall_seconds
        )
        connection.set_tunnel(host, port, proxy.headers)
        return connection

    def _failed(self, error: Exception, *, too_slow: bool) -> FleetError:
        where = f"the fleet service at {self._url.netloc}"
        if too_slow:
            return FleetUnavailableError(
                f"{where} took more than {self._patience.total_seconds:g} s to answer",
                code="fleet-slow",
            )
        if isinstance(error, ssl.SSLCertVerificationError):
            return _untrusted(where, error)
        words = tls_trouble(error) if isinstance(error, OSError) else repr(error)
        return FleetUnavailableError(
            f"{where} does not answer: {words}; check the address, the network and whether it runs"
        )

    def _checked(self, status: int, raw: bytes, path: str, max_bytes: int) -> bytes:
        if status == HTTPStatus.OK and len(raw) <= max_bytes:
            return raw
        if status == HTTPStatus.OK:
            raise MalformedDocumentError(
                f"{self._url.netloc} sent more than {max_bytes} bytes for {path}", code="too-large"
            )
        code, words = _problem(raw)
        said = f"the fleet service at {self._url.netloc} answered {status} for {path}"
        if status in _BUSY:
            raise FleetBusyError(f"{said}: {words or 'try again later'}")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise FleetUnavailableError(f"{said}: {words or 'try again later'}", code="fleet-busy")
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            raise FleetRefusedError(
                f"{said}, a redirect, which is never followed; give the address it has now",
                code="bad-redirect", status=status,
            )  # fmt: skip
        raise FleetRefusedError(f"{said}: {words or 'no reason given'}", code=code, status=status)


def unchecked() -> ssl.SSLContext:
    """TLS with anybody: only to fetch what proves itself, and never to send a secret."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class _Connection(http.client.HTTPConnection):
    """A connection, perhaps through a proxy, that another thread can cut at any point."""

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, name: str, stall_seconds: float
    ) -> None:
        super().__init__(host, port, timeout=stall_seconds)
        self._tls, self._name = tls, name
        self._wire: socket.socket | None = None
        self.was_cut = False

    def connect(self) -> None:
        super().connect()
        # remembered here: the base class forgets its socket as soon as an answer begins
        self._wire = self.sock
        if self._tls is None:
            return
        # apart from the handshake, which may take long, so that it can be cut too
        wrapped = self._tls.wrap_socket(
            self.sock, server_hostname=self._name, do_handshake_on_connect=False
        )
        self.sock = self._wire = wrapped
        if self.was_cut:
            raise TimeoutError("too late")
        wrapped.do_handshake()

    def cut(self) -> None:
        self.was_cut = True
        wire = self._wire or self.sock
        if wire is not None:
            with suppress(OSError):
                socket.socket.shutdown(wire, socket.SHUT_RDWR)


def _exchange(
    connection: _Connection, method: str, path: str, body: bytes | None, max_bytes: int
) -> tuple[int, bytes]:
    headers = {"Accept-Encoding": "identity", "Connection": "close"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    connection.request(method, path, body=body, headers=headers)
    with connection.getresponse() as response:
        raw = response.read(max_bytes + 1)
        if response.length and len(raw) <= max_bytes:
            raise http.client.IncompleteRead(b"", response.length)
        return response.status, raw


def _untrusted(where: str, error: ssl.SSLCertVerificationError) -> FleetUntrustedError:
    words = f"{where} does not prove that it is the fleet: {tls_trouble(error)}"
    if error.verify_code in _DATES:
        return FleetUntrustedError(words, code="clock-or-certificate")
    return FleetUntrustedError(f"{words}; if the address is right, somebody is in between")


def _problem(raw: bytes) -> tuple[str | None, str]:
    """The code and the words of a refusal (RFC 9457), made harmless; empty when it has none."""
    try:
        problem = parse_json(raw, what="refusal", max_bytes=LIMITS.message_bytes)
    except MalformedDocumentError:
        return None, ""
    if not isinstance(problem, dict):
        return None, ""
    code, words = str(problem.get("code", "")), str(problem.get("detail", ""))
    return code if _CODE.match(code) else None, printable(words)


def printable(words: str) -> str:
    """Words of somebody else, short and without what would confuse a terminal."""
    return "".join(one if one.isprintable() else " " for one in words[:500]).strip()


def _checked_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise ConfigError(f"{url[:120]!r} is not a URL: {error}", code="bad-fleet-url") from error
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in ("http", "https") or not named or extra:
        raise ConfigError(
            f"{url[:120]!r} is not of the form https://HOST[:PORT]", code="bad-fleet-url"
        )
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ConfigError(
            f"{url[:120]!r} is plain http to another machine; use https", code="bad-fleet-url"
        )
    return parts


def _port(scheme: str) -> int:
    return http.client.HTTPS_PORT if scheme == "https" else http.client.HTTP_PORT

"""How edgepack's clients check who they are talking to, and how its servers show who they are.

A clock that is wrong for certain (see :mod:`.clock`) cannot say that a certificate is not valid
*yet*, so a board that wakes up in 1970 can still connect; that one *has ended* is judged by a lower
bound of the time that no online key can move.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgepack_contract.clock import TrustedClock
from edgepack_contract.errors import ConfigError, EdgepackError
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_configured

_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL (x509_vfy.h), which Python has no name for."""

_HAS_EXPIRED = 10
"""X509_V_ERR_CERT_HAS_EXPIRED."""

_VERIFY_WORDS = {
    9: "its certificate is not valid yet; set this machine's clock, or issue the certificate anew",
    _HAS_EXPIRED: "its certificate has expired; renew it there, or set this machine's clock",
    18: "its certificate is signed by itself; name who signed it as authority (ca)",
    19: "its certificate is of an authority that is not trusted here; check the address and the ca",
    20: "its certificate is of an authority that is not trusted here; check the address and the ca",
    62: "its certificate is for other host names; use one of those, or issue it for this one",
    64: "its certificate is for other addresses; use one of those, or issue it for this one",
}
"""By the verify code of OpenSSL: what is wrong with the other side, and what to do."""

_REASON_WORDS = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS on this port; check the port",
    "UNSUPPORTED_PROTOCOL": "it speaks only versions of TLS before 1.2; update it",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate of this side, which shows none",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it refused the handshake; it may want a certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that our certificate has expired; renew it",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it says that our certificate is revoked; enrol again",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not accept our certificate; enrol again",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the authority of our certificate; enrol again",
}
"""By the reason of OpenSSL: what the other side said or did, and what to do."""


def client_context(
    authorities: Sequence[str],
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    clock: TrustedClock | None = None,
) -> ssl.SSLContext:
    """How a client checks a server, by TLS 1.2 or later, and what it shows to it.

    The host name is always checked. The clock is asked at each handshake, since it may be set in
    the meantime.

    Args:
        authorities: Certificates in PEM form of those who may vouch for the server; empty for those
            that the system trusts.
        certificate: The client's certificate.
        key: Its private key, without a passphrase.
        clock: The trusted time; None to believe the system's clock.

    Raises:
        ConfigError: An authority is not a certificate (code ``bad-authority``), or the client's
            certificate cannot be read or is not for its key (code ``bad-certificate``).
    """
    context = _ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    context.clock = clock
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if authorities:
        _trust(context, authorities)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if certificate is not None:
        _show(context, certificate, key)
    return context


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A server's TLS settings: 1.2 or newer, HTTP/1.1.

    Raises:
        ConfigError: The files cannot be read, are not PEM, or do not belong together (code
            ``bad-tls``).
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        size = max(path.stat().st_size for path in (certificate, key))
    except OSError as error:
        raise ConfigError(
            f"cannot read {error.filename}: {error.strerror}", code="bad-tls"
        ) from error
    try:
        if size > LIMITS.key_file_bytes:
            raise ValueError(f"one is larger than {LIMITS.key_file_bytes} bytes")
        # a key with a passphrase would otherwise ask for it on a terminal that nobody watches
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{certificate} and {key} are not a certificate and its key: {_ssl_words(error)}",
            code="bad-tls",
        ) from error
    return context


class FreshHandshake:
    """What paho takes for a TLS context: one is made anew for every connection.

    So a certificate that was renewed, or other authorities, need no restart.

    Args:
        make: Makes the context of the next connection.
    """

    check_hostname = True

    def __init__(self, make: Callable[[], ssl.SSLContext]) -> None:
        self._make = make

    def wrap_socket(self, plain: socket.socket, **options: Any) -> ssl.SSLSocket:
        """See :meth:`ssl.SSLContext.wrap_socket`; it shakes hands at once.

        Raises:
            OSError: There can be no TLS now; any other error would end paho's thread.
        """
        # paho would leave a socket open whose handshake failed
        options["do_handshake_on_connect"] = True
        try:
            return self._make().wrap_socket(plain, **options)
        except EdgepackError as error:
            plain.close()
            raise OSError(str(error)) from error
        except OSError:
            plain.close()
            raise


def read_authorities(path: Path) -> list[str]:
    """The certificates in a file, for :func:`client_context`.

    Raises:
        ConfigError: It cannot be read, or is too large for certificates (code ``bad-authority``).
    """
    raw = read_configured(path, LIMITS.keyring_bytes, code="bad-authority")
    if len(raw) > LIMITS.keyring_bytes:
        raise ConfigError(
            f"{path} has more than {LIMITS.keyring_bytes} bytes: not a file of certificates",
            code="bad-authority",
        )
    return [raw.decode("ascii", "replace")]


def tls_trouble(error: OSError) -> str:
    """What was wrong with a connection, in words that say what to do about it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        # only those of OpenSSL itself have a code
        words = _VERIFY_WORDS.get(
            getattr(error, "verify_code", 0), "its certificate cannot be trusted"
        )
        return f"{words} ({getattr(error, 'verify_message', error)})"
    if isinstance(error, TimeoutError):
        return "it does not answer in time; check the address and the port"
    if isinstance(error, ssl.SSLEOFError):
        return "it closed the connection without a word; it may not accept our certificate"
    if isinstance(error, ssl.SSLError):
        return _REASON_WORDS.get(error.reason or "", f"TLS failed: {error}")
    return error.strerror or str(error) or type(error).__name__


def _trust(context: ssl.SSLContext, authorities: Sequence[str]) -> None:
    try:
        context.load_verify_locations(cadata="\n".join(authorities))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"an authority is not a certificate in PEM form: {error}", code="bad-authority"
        ) from error


def _show(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        # OpenSSL would ask for a passphrase on the terminal
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise ConfigError(
            f"{certificate} and {key or certificate} are not a certificate in PEM form and its "
            f"key: {error.reason or error}",
            code="bad-certificate",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot read {certificate} or {key or certificate}: {error.strerror}",
            code="bad-certificate",
        ) from error


def _ssl_words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        return reason.replace("_", " ").lower() or "not PEM, or with a passphrase"
    return getattr(error, "strerror", None) or str(error)


class _ClientSocket(ssl.SSLSocket):
    """Refuses a server whose certificate has ended, where OpenSSL was told not to look."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - as inherited
        """See :meth:`ssl.SSLSocket.do_handshake`."""
        super().do_handshake(block)
        clock = self.context.clock if isinstance(self.context, _ClientContext) else None
        if clock is not None:
            _refuse_ended(self.getpeercert() or {}, clock.sure_ms())


class _ClientContext(ssl.SSLContext):
    """Asks the clock for each connection whether OpenSSL can judge dates by it."""

    sslsocket_class = _ClientSocket
    clock: TrustedClock | None = None

    def __init__(self, *_: Any) -> None:
        self._wrapping = threading.Lock()

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """See :meth:`ssl.SSLContext.wrap_socket`."""
        at_once = options.pop("do_handshake_on_connect", True)
        options["do_handshake_on_connect"] = False
        # OpenSSL copies the flags into the connection here; another thread may judge otherwise
        with self._wrapping:
            if self.clock is not None and self.clock.is_behind:
                self.verify_flags |= _NO_CHECK_TIME
            else:
                self.verify_flags &= ~_NO_CHECK_TIME
            wrapped = super().wrap_socket(*args, **options)
        if at_once:
            _shake_hands(wrapped)
        return wrapped


def _shake_hands(wrapped: ssl.SSLSocket) -> None:
    try:
        wrapped.do_handshake()
    except OSError:
        wrapped.close()
        raise


def _refuse_ended(peer: dict[str, Any], sure_ms: int) -> None:
    ended = ssl.cert_time_to_seconds(peer["notAfter"])
    if ended * 1000 >= sure_ms:
        return
    error = ssl.SSLCertVerificationError(
        1, f"certificate verify failed: the certificate ended {peer['notAfter']}"
    )
    error.verify_code = _HAS_EXPIRED
    error.verify_message = f"it ended {peer['notAfter']}"
    raise error

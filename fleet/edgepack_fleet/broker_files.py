"""Writes what a Mosquitto of this fleet needs: texts, certificates, keys, revoked certificates.

Doing it again changes nothing but what has to change: keys stay, certificates are issued again for
the same key when they end soon, when the hosts are others, when their authority is not believed
any more, or when asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from edgepack_contract.atomic import replacing_private
from edgepack_contract.certificates import (
    SERVER_DAYS,
    Authority,
    Issued,
    certificate_key,
    common_name,
    read_certificate,
)
from edgepack_contract.enrolment import renewal_due_ms
from edgepack_contract.errors import ConfigError, SigningKeyError
from edgepack_contract.keys import PrivateKey, PublicKey, read_private_key, write_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small
from edgepack_contract.topics import FLEET_NODE
from edgepack_fleet.mqtt_config import (
    ACCESS,
    AUTHORITIES,
    CONFIG,
    REVOKED,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    BrokerPlan,
    access_text,
    config_text,
)

CLIENT_CERTIFICATE = "fleet-client.pem"
CLIENT_KEY = "fleet-client.key"

PUBLIC_MODE, SECRET_MODE = 0o644, 0o600

Issue = Callable[[PublicKey], Issued]


@dataclass(frozen=True, slots=True)
class BrokerRequest:
    """What the files are for.

    ``own`` is a certificate and its key for the broker that somebody else has issued; ``on_broker``
    is the folder that the files will be in on the broker's machine.
    """

    tenant: str
    hosts: Sequence[str]
    port: int
    out: Path
    on_broker: PurePosixPath
    own: tuple[Path, Path] | None = None
    renew: bool = False


@dataclass(frozen=True, slots=True)
class Trusted:
    """Who may vouch for clients, who issues now, and the lists of what was taken back."""

    authority: Authority
    authorities: Sequence[bytes]
    revoked: bytes

    @property
    def certificates(self) -> list[x509.Certificate]:
        """Of those who may vouch for clients."""
        return [read_certificate(pem) for pem in self.authorities]


def write_broker_files(
    request: BrokerRequest, trusted: Trusted, *, now_ms: int
) -> list[tuple[str, str]]:
    """Write every file, and say of each what became of it.

    Raises:
        ConfigError: The folder cannot be written, or a certificate of one's own is not readable.
        SigningKeyError: A key that is there cannot be used.
    """
    out = request.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        plan = BrokerPlan(request.tenant, request.port, request.on_broker)
        return [
            _put(out / CONFIG, config_text(plan).encode()),
            _put(out / ACCESS, access_text(request.tenant).encode()),
            _put(out / AUTHORITIES, b"".join(trusted.authorities)),
            *_server(request, trusted, now_ms),
            _put(out / REVOKED, trusted.revoked),
            *_client(request, trusted, now_ms),
        ]
    except OSError as error:
        raise ConfigError(
            f"cannot write the broker's files: {error.filename}: {error.strerror}", code="no-folder"
        ) from error


def is_due(
    certificate: x509.Certificate,
    believed: Sequence[x509.Certificate],
    names: Sequence[str],
    *,
    now_ms: int,
) -> bool:
    """Whether a certificate must be issued again.

    It must when it is for other names, ends soon, or none of the authorities that are ``believed``
    issued it. One of an authority that has a successor stays for as long as both are believed:
    devices that have not heard of the successor could not connect.
    """
    if not any(_is_issued_by(certificate, one) for one in believed):
        return True
    begin = int(certificate.not_valid_before_utc.timestamp() * 1000)
    end = int(certificate.not_valid_after_utc.timestamp() * 1000)
    return _names(certificate) != set(names) or now_ms >= renewal_due_ms(begin, end)


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _names(certificate: x509.Certificate) -> set[str]:
    """Host names and addresses, or the common name of who connects."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return {common_name(certificate)}
    addresses = {str(address) for address in found.get_values_for_type(x509.IPAddress)}
    return addresses | set(found.get_values_for_type(x509.DNSName))


def _server(request: BrokerRequest, trusted: Trusted, now_ms: int) -> list[tuple[str, str]]:
    out = request.out
    if request.own is not None:
        certificate, key = (read_bounded(path) for path in request.own)
        return [
            _put(out / SERVER_CERTIFICATE, certificate),
            _put(out / SERVER_KEY, key, mode=SECRET_MODE),
        ]

    def issue(key: PublicKey) -> Issued:
        return trusted.authority.issue_server(key, hosts=request.hosts, now_ms=now_ms)

    return certify(out / SERVER_CERTIFICATE, out / SERVER_KEY, issue, lambda certificate: (
        request.renew or is_due(certificate, trusted.certificates, request.hosts, now_ms=now_ms)
    ))  # fmt: skip


def _client(request: BrokerRequest, trusted: Trusted, now_ms: int) -> list[tuple[str, str]]:
    out = request.out

    def issue(key: PublicKey) -> Issued:
        return issue_service(key, trusted.authority, now_ms=now_ms)

    return certify(out / CLIENT_CERTIFICATE, out / CLIENT_KEY, issue, lambda certificate: (
        request.renew or is_due(certificate, trusted.certificates, [FLEET_NODE], now_ms=now_ms)
    ))  # fmt: skip


def issue_service(key: PublicKey, authority: Authority, *, now_ms: int) -> Issued:
    """The certificate with which the service itself connects."""
    return authority.issue_client(key, name=FLEET_NODE, now_ms=now_ms, days=SERVER_DAYS)


def certify(
    path: Path, key_path: Path, issue: Issue, due: Callable[[x509.Certificate], bool]
) -> list[tuple[str, str]]:
    """Make a key and its certificate, or a new certificate for the key that is there.

    Once installed the key may belong to the broker's user alone, so it is read only when there is
    no certificate to take its public half from.
    """
    made = not key_path.exists()
    if made:
        write_private_key(key_path, PrivateKey.generate())
        path.unlink(missing_ok=True)
    old = read_certificate(read_bounded(path)) if path.exists() else None
    public = read_private_key(key_path).public if old is None else certificate_key(old)
    key_line = (key_path.name, "made" if made else "kept")
    if old is not None and not due(old):
        return [(path.name, f"kept, valid until {old.not_valid_after_utc:%Y-%m-%d}"), key_line]
    issued = issue(public)
    _put(path, issued.pem)
    ends = read_certificate(issued.pem).not_valid_after_utc
    return [(path.name, f"issued, valid until {ends:%Y-%m-%d}"), key_line]


def _put(path: Path, content: bytes, *, mode: int = PUBLIC_MODE) -> tuple[str, str]:
    if path.exists() and read_bounded(path) == content:
        return path.name, "unchanged"
    put_file(path, content, mode=mode)
    return path.name, "written"


def put_file(path: Path, content: bytes, *, mode: int = PUBLIC_MODE) -> None:
    """Replace a file as a whole; who reads it sees the old or the new one.

    Raises:
        OSError: The folder cannot be written.
    """
    with replacing_private(path) as stream:
        stream.write(content)
        os.fchmod(stream.fileno(), mode)


def read_bounded(path: Path) -> bytes:
    """Read a certificate, a key or a list of revoked certificates.

    Raises:
        ConfigError: It cannot be read.
        SigningKeyError: It is too large.
    """
    try:
        found = read_small(path, LIMITS.revocation_list_bytes)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", code="no-file") from error
    if len(found) > LIMITS.revocation_list_bytes:
        raise SigningKeyError(f"{path} is too large to be a file of this kind", code="too-large")
    return found

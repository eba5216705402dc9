"""X.509 for TLS: the authority of a fleet, certificates of devices and services, revocation.

Certificates carry no authority over models; they decide who may connect. All are P-256 (RFC 5280,
RFC 5480). A device's certificate names it as common name, which the broker makes its user name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgepack_contract.errors import ConfigError, MalformedDocumentError, SigningKeyError
from edgepack_contract.keys import PrivateKey, PublicKey
from edgepack_contract.limits import LIMITS

AUTHORITY_DAYS = 20 * 365
DEVICE_DAYS = 90
SERVER_DAYS = 825
"""The longest that common TLS clients accept of a private authority."""

REVOCATION_DAYS = 10 * 365
"""A broker refuses everybody once its list is out of date, so the list outlives most brokers."""

BACKDATED = timedelta(hours=1)
"""Clocks differ; a certificate must not be from the future for who checks it at once."""

MAX_COMMON_NAME = 64
"""ub-common-name of RFC 5280, appendix A.1."""

_UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion)
"""What the parser raises at bytes that are not what they should be."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was issued: PEM, its serial number in hex, its end in ms since 1970."""

    pem: bytes
    serial: str
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Request:
    """A certificate request whose sender has the private key."""

    common_name: str
    key: PublicKey


@dataclass(frozen=True, slots=True)
class Authority:
    """A fleet's certificate authority."""

    key: PrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, key: PrivateKey, *, name: str, now_ms: int) -> Authority:
        """Make a self-signed authority that can issue end certificates only."""
        begin = _at(now_ms) - BACKDATED
        builder = _builder(name, key.public, begin, begin + timedelta(days=AUTHORITY_DAYS))
        builder = (
            builder.issuer_name(_name(name))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public.key), critical=False
            )
        )
        return cls(key, builder.sign(key.key, hashes.SHA256()))

    @classmethod
    def open(cls, key: PrivateKey, pem: bytes) -> Authority:
        """Take up an authority.

        Raises:
            SigningKeyError: The certificate is not an authority's, or not of this key.
        """
        certificate = read_authority(pem)
        if certificate_key(certificate).fingerprint != key.public.fingerprint:
            raise SigningKeyError(
                "the authority's certificate belongs to another key", code="bad-authority"
            )
        return cls(key, certificate)

    @property
    def pem(self) -> bytes:
        """The authority's own certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue_client(
        self, key: PublicKey, *, name: str, now_ms: int, days: float = DEVICE_DAYS
    ) -> Issued:
        """A certificate to connect with, for a device or a service called ``name``.

        Raises:
            SigningKeyError: With code ``authority-expired``: the authority has ended.
        """
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        return self._issue(key, name, now_ms, days, [usage])

    def issue_server(
        self, key: PublicKey, *, hosts: Sequence[str], now_ms: int, days: int = SERVER_DAYS
    ) -> Issued:
        """A certificate to be connected to, at host names or addresses.

        Raises:
            ConfigError: One of ``hosts`` is neither an address nor a name in ASCII.
            SigningKeyError: With code ``authority-expired``: the authority has ended.
        """
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        return self._issue(key, hosts[0][:MAX_COMMON_NAME], now_ms, days, [usage, names])

    def revocation_list(self, revoked: Iterable[tuple[str, int]], *, now_ms: int) -> bytes:
        """The list of revoked certificates in PEM: (serial in hex, when in ms since 1970) pairs."""
        now = _at(now_ms)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - BACKDATED)
            .next_update(now + timedelta(days=REVOCATION_DAYS))
            .add_extension(x509.CRLNumber(now_ms), critical=False)
            .add_extension(self._identifier(), critical=False)
        )
        for serial, when_ms in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(int(serial, 16))
                .revocation_date(_at(when_ms))
                .build()
            )
        signed = builder.sign(self.key.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    def _issue(
        self, key: PublicKey, name: str, now_ms: int, days: float, extra: list[x509.ExtensionType]
    ) -> Issued:
        ends = self.certificate.not_valid_after_utc
        if ends <= _at(now_ms):
            raise SigningKeyError(
                f"the authority ended on {ends:%Y-%m-%d} and cannot issue certificates; make a new "
                "one with: edgepack keys rotate authority FOLDER",
                code="authority-expired",
            )
        begin = _at(now_ms) - BACKDATED
        end = min(_at(now_ms) + timedelta(days=days), ends)
        builder = (
            _builder(name, key, begin, end)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(self._identifier(), critical=False)
        )
        for extension in extra:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self.key.key, hashes.SHA256())
        return Issued(
            pem=certificate.public_bytes(serialization.Encoding.PEM),
            serial=f"{certificate.serial_number:x}",
            expires_ms=int(end.timestamp() * 1000),
        )

    def _identifier(self) -> x509.AuthorityKeyIdentifier:
        """Tells authorities apart while a fleet has an old and a new one (RFC 5280, 5.2.1)."""
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public.key)


def make_request(key: PrivateKey, *, name: str) -> bytes:
    """A certificate request (PKCS#10, RFC 2986) in PEM, signed with the key it is for."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(name))
    return builder.sign(key.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_request(pem: bytes) -> Request:
    """Read a certificate request and check that its sender has the private key.

    Raises:
        MalformedDocumentError: It is not one, or is not signed with its key.
        SigningKeyError: Its key is not a P-256 key.
    """
    if len(pem) > LIMITS.key_file_bytes:
        raise MalformedDocumentError("the certificate request is too large", code="too-large")
    try:
        request = x509.load_pem_x509_csr(pem)
        key = _p256(request.public_key())
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        valid = request.is_signature_valid and len(names) == 1
    except _UNREADABLE as error:
        raise MalformedDocumentError(
            "not a certificate request in PEM form", code="bad-request"
        ) from error
    if not valid:
        raise MalformedDocumentError(
            "the certificate request has not one common name and a signature of its own key",
            code="bad-request",
        )
    return Request(common_name=str(names[0].value), key=key)


def read_certificate(pem: bytes) -> x509.Certificate:
    """Read one certificate in PEM form.

    Raises:
        SigningKeyError: It is not one.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except _UNREADABLE as error:
        raise SigningKeyError("not a certificate in PEM form", code="bad-certificate") from error


def read_authority(pem: bytes) -> x509.Certificate:
    """Read the certificate of an authority.

    Raises:
        SigningKeyError: It is not a certificate that may issue others, or not of a P-256 key.
    """
    certificate = read_certificate(pem)
    certificate_key(certificate)
    try:
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        issues = found.value.ca
    except (*_UNREADABLE, x509.ExtensionNotFound, x509.DuplicateExtension):
        issues = False
    if not issues:
        raise SigningKeyError(
            "the certificate is not one of an authority, which may issue others",
            code="bad-authority",
        )
    return certificate


def certificate_key(certificate: x509.Certificate) -> PublicKey:
    """The key that a certificate is for.

    Raises:
        SigningKeyError: It is not a P-256 key.
    """
    try:
        return _p256(certificate.public_key())
    except _UNREADABLE as error:
        raise SigningKeyError("the certificate has no usable key", code="bad-key") from error


def common_name(certificate: x509.Certificate) -> str:
    """The common name of a certificate's subject; empty when it has none."""
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except _UNREADABLE:
        return ""
    return str(names[0].value) if names else ""


def _p256(key: object) -> PublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise SigningKeyError(
            "the key is not on curve P-256, the only one edgepack accepts", code="bad-key"
        )
    return PublicKey(key)


def _builder(name: str, key: PublicKey, begin: datetime, end: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key.key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(
            f"{host!r} is neither an address nor a host name in ASCII (punycode)", code="bad-host"
        ) from error


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _at(moment_ms: int) -> datetime:
    return datetime.fromtimestamp(moment_ms // 1000, UTC)

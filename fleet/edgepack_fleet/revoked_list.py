"""The file in which the broker finds whose certificate was taken back. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edgepack_contract.keys import PublicKey

BEGIN = b"-----BEGIN X509 CRL-----"

Issuer = tuple[x509.Name, bytes | None]


def merge_lists(known: bytes, fresh: Sequence[bytes]) -> bytes:
    """One list for each authority: a fresh one where it says something else than the known one.

    A broker refuses everybody whose issuer has no list, so those of former authorities stay.

    Args:
        known: Lists in PEM, in any number, also several of an authority; what is none is left out.
        fresh: One list each, in PEM.
    """
    newest = _newest(known)
    merged = []
    for pem in fresh:
        new = x509.load_pem_x509_crl(pem)
        old = newest.pop(_issuer(new), None)
        merged.append(new if old is None or _serials(old) != _serials(new) else old)
    return b"".join(one.public_bytes(Encoding.PEM) for one in [*merged, *newest.values()])


def listed_issuers(pem: bytes) -> set[Issuer]:
    """Whose lists a file has: name and key identifier."""
    return set(_newest(pem))


def key_identifier(key: PublicKey) -> bytes:
    """How the lists of an authority name its key."""
    named = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.key)
    return named.key_identifier or b""


def _newest(pem: bytes) -> dict[Issuer, x509.CertificateRevocationList]:
    found: dict[Issuer, x509.CertificateRevocationList] = {}
    for one in _lists(pem):
        issuer = _issuer(one)
        if issuer not in found or _number(found[issuer]) < _number(one):
            found[issuer] = one
    return found


def _lists(pem: bytes) -> list[x509.CertificateRevocationList]:
    """Every list of a file; what is not one is left out, and so replaced."""
    found = []
    for part in pem.split(BEGIN)[1:]:
        try:
            found.append(x509.load_pem_x509_crl(BEGIN + part))
        except ValueError:
            continue
    return found


def _issuer(crl: x509.CertificateRevocationList) -> Issuer:
    try:
        known = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        return crl.issuer, None
    return crl.issuer, known.value.key_identifier


def _number(crl: x509.CertificateRevocationList) -> int:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def _serials(crl: x509.CertificateRevocationList) -> set[int]:
    return {one.serial_number for one in crl}

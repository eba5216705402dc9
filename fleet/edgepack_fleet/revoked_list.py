"""The file in which the broker finds whose certificate was taken back. Pure."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

BEGIN = b"-----BEGIN X509 CRL-----"


def merge_lists(old: bytes, fresh: bytes) -> bytes | None:
    """The file with the fresh list in place of the older one of the same issuer.

    A broker refuses everybody whose issuer has no list, so those of former authorities stay.

    Returns:
        None when the file lists the same certificates already.
    """
    new = x509.load_pem_x509_crl(fresh)
    others = []
    for one in _lists(old):
        if _issuer(one) != _issuer(new):
            others.append(one.public_bytes(Encoding.PEM))
        elif _serials(one) == _serials(new):
            return None
    return fresh + b"".join(others)


def _lists(pem: bytes) -> list[x509.CertificateRevocationList]:
    """Every list of a file; what is not one is left out, and so replaced."""
    found = []
    for part in pem.split(BEGIN)[1:]:
        try:
            found.append(x509.load_pem_x509_crl(BEGIN + part))
        except ValueError:
            continue
    return found


def _issuer(crl: x509.CertificateRevocationList) -> tuple[x509.Name, bytes | None]:
    try:
        known = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        return crl.issuer, None
    return crl.issuer, known.value.key_identifier


def _serials(crl: x509.CertificateRevocationList) -> set[int]:
    return {one.serial_number for one in crl}

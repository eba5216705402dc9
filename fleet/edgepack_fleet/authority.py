"""The fleet's certificate authority: device certificates, and the list of revoked ones."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from edgepack_contract.certificates import Authority, read_certificate
from edgepack_contract.errors import EdgepackError
from edgepack_contract.keys import PublicKey, read_private_key
from edgepack_contract.limits import LIMITS
from edgepack_fleet.config import KeysConfig
from edgepack_fleet.db.schema import CertificateRow, Device
from edgepack_fleet.errors import AuthorityError

SAME_MS = 86_400_000
"""Who asks again within a day gets the same certificate again: a repeated request adds nothing."""

REMEMBERED_MS = 30 * 86_400_000
"""For how long after its end a certificate is kept, and listed when it was revoked: clocks differ,
and RFC 5280 (3.3) wants a revoked certificate on one list after its end."""


def open_authority(keys: KeysConfig) -> Authority | None:
    """The authority of the configuration; None when there is none. Read anew at every call.

    Raises:
        AuthorityError: Its files cannot be read, or do not belong together.
    """
    if keys.authority is None or keys.authority_certificate is None:
        return None
    try:
        with Path(keys.authority_certificate).open("rb") as stream:
            pem = stream.read(LIMITS.key_file_bytes)
        return Authority.open(read_private_key(Path(keys.authority)), pem)
    except OSError as error:
        raise AuthorityError(
            f"cannot read keys.authority_certificate {keys.authority_certificate}: {error.strerror}"
        ) from error
    except EdgepackError as error:
        raise AuthorityError(
            f"keys.authority {keys.authority} with keys.authority_certificate "
            f"{keys.authority_certificate}: {error}"
        ) from error


def issue_certificate(
    session: Session, authority: Authority, device: Device, *, now_ms: int
) -> CertificateRow:
    """A certificate for a device's key: a new one, or the newest when it is not a day old."""
    newest = newest_certificate(session, device.id)
    if newest is not None and _serves_again(newest, authority, now_ms):
        return newest
    key = PublicKey.from_pem(device.public_key.encode())
    issued = authority.issue_client(key, name=device.id, now_ms=now_ms)
    row = CertificateRow(
        serial=issued.serial,
        device=device.id,
        pem=issued.pem.decode(),
        issued_ms=now_ms,
        expires_ms=issued.expires_ms,
    )
    session.add(row)
    session.execute(
        delete(CertificateRow).where(
            CertificateRow.device == device.id, CertificateRow.expires_ms < now_ms - REMEMBERED_MS
        )
    )
    device.certificate_expires_ms = issued.expires_ms
    session.flush()
    return row


def newest_certificate(session: Session, device: str) -> CertificateRow | None:
    """The certificate of a device that was issued last and is not revoked."""
    return session.scalars(
        select(CertificateRow)
        .where(CertificateRow.device == device, _is_good())
        .order_by(CertificateRow.issued_ms.desc())
        .limit(1)
    ).first()


def revoke_certificates(session: Session, device: str, *, now_ms: int) -> int:
    """Revoke every certificate of a device; say how many."""
    serials = session.scalars(
        update(CertificateRow)
        .where(CertificateRow.device == device, _is_good())
        .values(revoked_ms=now_ms)
        .returning(CertificateRow.serial)
    ).all()
    return len(serials)


def revocation_list(session: Session, authority: Authority, now_ms: int) -> bytes:
    """The list of revoked certificates in PEM, for brokers."""
    rows = session.execute(
        select(CertificateRow.serial, CertificateRow.revoked_ms)
        .where(CertificateRow.revoked_ms.is_not(None))
        .where(CertificateRow.expires_ms >= now_ms - REMEMBERED_MS)
        .order_by(CertificateRow.serial)
    ).all()
    revoked = [(serial, when) for serial, when in rows if when is not None]
    return authority.revocation_list(revoked, now_ms=now_ms)


def _serves_again(row: CertificateRow, authority: Authority, now_ms: int) -> bool:
    if not 0 <= now_ms - row.issued_ms < SAME_MS:
        return False
    try:
        read_certificate(row.pem.encode()).verify_directly_issued_by(authority.certificate)
    except (InvalidSignature, ValueError):
        return False  # of an authority that was replaced since
    return True


def _is_good() -> ColumnElement[bool]:
    return CertificateRow.revoked_ms.is_(None)

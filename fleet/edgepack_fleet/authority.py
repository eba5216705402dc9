"""The fleet's certificate authorities: device certificates, and the lists of revoked ones.

There are several while one follows another. The one that the keyring names last issues; every one
whose key is here signs its own list; of one whose key is gone the last list is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from edgepack_contract.certificates import Authority, read_authority
from edgepack_contract.errors import ConfigError, EdgepackError
from edgepack_contract.keyring import Keyring
from edgepack_contract.keys import PublicKey, read_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small
from edgepack_fleet.broker_files import read_bounded
from edgepack_fleet.config import FleetConfig, KeysConfig
from edgepack_fleet.db.schema import CertificateRow, Device
from edgepack_fleet.errors import AuthorityError
from edgepack_fleet.revoked_list import merge_lists

LISTS_FILE = "revoked.pem"
"""In the data folder: what every authority has taken back, also those whose key is gone."""

SAME_MS = 86_400_000
"""Who asks again within a day gets the same certificate again: a repeated request adds nothing."""

REMEMBERED_MS = 30 * 86_400_000
"""For how long after its end a certificate is kept, and listed when it was revoked: clocks differ,
and RFC 5280 (3.3) wants a revoked certificate on one list after its end."""


def open_authorities(keys: KeysConfig) -> tuple[Authority, ...]:
    """The authorities of the configuration, in its order. Read anew at every call.

    Raises:
        AuthorityError: Files of one cannot be read, or do not belong together.
    """
    pairs = zip(keys.authority_files, keys.authority_certificate_files, strict=True)
    return tuple(_open(key, certificate) for key, certificate in pairs)


def _open(key: str, certificate: str) -> Authority:
    try:
        pem = read_small(Path(certificate), LIMITS.key_file_bytes)
        return Authority.open(read_private_key(Path(key)), pem)
    except OSError as error:
        raise AuthorityError(
            f"cannot read keys.authority_certificate {certificate}: {error.strerror}"
        ) from error
    except EdgepackError as error:
        raise AuthorityError(
            f"keys.authority {key} with keys.authority_certificate {certificate}: {error}"
        ) from error


def named_authorities(keyring: Keyring) -> list[x509.Certificate]:
    """Whom devices believe in TLS: owners add new ones behind."""
    return [read_authority(pem.encode()) for pem in keyring.authorities]


def issuing_authority(authorities: Sequence[Authority], keyring: Keyring) -> Authority | None:
    """Who issues: of the authorities that are here, the one that the keyring names last."""
    here = {one.certificate: one for one in authorities}
    named = [here[one] for one in named_authorities(keyring) if one in here]
    return named[-1] if named else None


def issuer_of_devices(keys: KeysConfig, keyring: Keyring) -> Authority | None:
    """Who issues certificates to devices; None when no authority is configured.

    Raises:
        AuthorityError: See :func:`open_authorities`; or with code ``unknown-authority``, the
            keyring names none of them.
    """
    authorities = open_authorities(keys)
    issuing = issuing_authority(authorities, keyring)
    if authorities and issuing is None:
        raise AuthorityError(
            f"keyring version {keyring.version} names none of keys.authority_certificate "
            f"{', '.join(keys.authority_certificate_files)}, so devices and the broker would not "
            "believe what is issued; set keys.authority to one that is in the keyring, or have the "
            "owner add one: edgepack keys rotate authority FOLDER",
            code="unknown-authority",
        )
    return issuing


def require_issuer(keys: KeysConfig, keyring: Keyring) -> Authority:
    """Who issues the certificates of the service and the broker.

    Raises:
        AuthorityError: See :func:`open_authorities`.
        ConfigError: There is none (code ``no-authority``), or the keyring names none of them (code
            ``unknown-authority``).
    """
    if not keys.authority_files:
        raise ConfigError(
            "keys.authority and keys.authority_certificate are not set, so there is nobody to "
            "issue certificates; `edgepack keys init` makes authority.key and authority.pem",
            code="no-authority",
        )
    issuing = issuing_authority(open_authorities(keys), keyring)
    if issuing is None:
        raise ConfigError(
            f"the keyring {keys.keyring} names none of keys.authority_certificate "
            f"{', '.join(keys.authority_certificate_files)}: devices would not believe what is "
            "issued; set keys.authority to one that is in the keyring, or have the owner add one: "
            "edgepack keys rotate authority FOLDER",
            code="unknown-authority",
        )
    return issuing


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
        authority=authority.key.public.fingerprint,
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
    """The list of what an authority issued and took back, in PEM."""
    rows = session.execute(
        select(CertificateRow.serial, CertificateRow.revoked_ms)
        .where(CertificateRow.authority == authority.key.public.fingerprint)
        .where(CertificateRow.revoked_ms.is_not(None))
        .where(CertificateRow.expires_ms >= now_ms - REMEMBERED_MS)
        .order_by(CertificateRow.serial)
    ).all()
    revoked = [(serial, when) for serial, when in rows if when is not None]
    return authority.revocation_list(revoked, now_ms=now_ms)


def every_list(
    session: Session, config: FleetConfig, authorities: Sequence[Authority], now_ms: int
) -> bytes:
    """The lists for brokers: one for each authority, and the last known of former ones.

    Bytes that are known already stay as they are while they say the same.

    Raises:
        AuthorityError: See :func:`known_lists`.
    """
    fresh = [revocation_list(session, one, now_ms) for one in authorities]
    return merge_lists(known_lists(config), fresh)


def known_lists(config: FleetConfig) -> bytes:
    """The lists that the service wrote before.

    Raises:
        AuthorityError: With code ``revoked-lists``: a file cannot be read, or is too large.
    """
    named = config.mqtt.crl_file
    paths = [config.data_path / LISTS_FILE, *([] if named is None else [Path(named)])]
    try:
        return b"".join(read_bounded(path) for path in paths if path.exists())
    except EdgepackError as error:
        raise AuthorityError(
            f"the former lists of revoked certificates are unknown: {error}", code="revoked-lists"
        ) from error


def _serves_again(row: CertificateRow, authority: Authority, now_ms: int) -> bool:
    # one of an authority that was replaced since does not
    ours = row.authority == authority.key.public.fingerprint
    return ours and 0 <= now_ms - row.issued_ms < SAME_MS


def _is_good() -> ColumnElement[bool]:
    return CertificateRow.revoked_ms.is_(None)

"""What the security gate is told of files, the clock and the database."""

from __future__ import annotations

import contextlib
import logging
import ssl
import stat
from pathlib import Path

from cryptography import x509
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from edgepack_contract.keyring import open_keyring
from edgepack_contract.limits import LIMITS
from edgepack_fleet.auditlog import append_audit
from edgepack_fleet.config import FleetConfig, HttpConfig
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import LoginCodeRow, PasskeyRow, TokenRow, UserRow
from edgepack_fleet.grants import Role
from edgepack_fleet.security import Facts, FileFacts, TlsFacts, Waiver, leaving
from edgepack_fleet.trust import LOCAL, read_keyring_file

logger = logging.getLogger(__name__)

REASON_VARIABLE = "EDGEPACK_ALLOW_INSECURE"
REMIND_SECONDS = 3600.0


def gather_facts(config: FleetConfig, *, source: str, now_ms: int) -> Facts:
    """What there is to know of a configuration before the service starts.

    Raises:
        ConfigError: The keyring cannot be read.
        UntrustedDocumentError, MalformedDocumentError: It does not hold.
        StorageError: The database cannot be opened, or another service has it.
    """
    keys = config.keys
    keyring = open_keyring(read_keyring_file(keys), owner_fingerprint=keys.owner)
    reached = bool(leaving(config))
    return Facts(
        config=config,
        now=now_ms / 1000,
        source=source,
        files=_files(config),
        tls=_tls(config.http),
        demo=keyring.demo,
        admins=_count_admins(config, now_ms) if reached else 0,
    )


def record_waiver(session: Session, waiver: Waiver, *, now_ms: int) -> None:
    """Write down that the service starts in spite of violations, in the caller's transaction."""
    append_audit(
        session,
        at_ms=now_ms,
        actor=LOCAL,
        action="service.insecure",
        subject=waiver.reason[:256],
        detail={"settings": waiver.settings},
    )


def remind(waiver: Waiver) -> None:
    """Say in the log what was waived."""
    for violation in waiver.violations:
        logger.warning(
            "insecure (%s): %s", waiver.reason, violation,
            extra={"event": "insecure", "setting": violation.key},
        )  # fmt: skip


def count_admins(session: Session, *, now_ms: int) -> int:
    """How many tokens and people may administer the service now, or by a code that waits."""
    tokens = session.scalar(
        select(func.count())
        .select_from(TokenRow)
        .where(TokenRow.role == Role.ADMIN.value, TokenRow.expires_ms > now_ms)
    )
    keyed = select(PasskeyRow.user)
    asked = select(LoginCodeRow.user).where(LoginCodeRow.expires_ms > now_ms)
    can_log_in = or_(
        UserRow.password_hash.is_not(None), UserRow.name.in_(keyed), UserRow.name.in_(asked)
    )
    people = session.scalar(
        select(func.count())
        .select_from(UserRow)
        .where(UserRow.role == Role.ADMIN.value, can_log_in)
    )
    return (tokens or 0) + (people or 0)


def _count_admins(config: FleetConfig, now_ms: int) -> int:
    with contextlib.closing(Database(config.database_url)) as database, database.read() as session:
        return count_admins(session, now_ms=now_ms)


def _files(config: FleetConfig) -> dict[str, tuple[FileFacts, ...]]:
    named = {
        "keys.authority": config.keys.authority,
        "http.tls_key": config.http.tls_key,
        "mqtt.password_file": config.mqtt.password_file,
        "mqtt.client_key": config.mqtt.client_key,
        "data_dir": config.data_dir,
    }
    files = {key: (_file(path),) for key, path in named.items() if path is not None}
    return files | {"keys.fleet": tuple(_file(path) for path in config.keys.fleet_files)}


def _file(path: str) -> FileFacts:
    try:
        found = Path(path).stat()
    except OSError:
        return FileFacts(path)
    return FileFacts(path, stat.S_IMODE(found.st_mode), of_root=found.st_uid == 0)


def _tls(http: HttpConfig) -> TlsFacts | None:
    if http.tls_certificate is None or http.tls_key is None:
        return None
    try:
        with Path(http.tls_certificate).open("rb") as stream:
            raw = stream.read(LIMITS.key_file_bytes)
        certificate = x509.load_pem_x509_certificate(raw)
    except OSError as error:
        return TlsFacts(problem=f"cannot read {http.tls_certificate}: {error.strerror}")
    except ValueError:
        return TlsFacts(problem=f"{http.tls_certificate} has no certificate in PEM form")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # an encrypted key would ask whoever sits at the terminal
        context.load_cert_chain(http.tls_certificate, http.tls_key, password="")
    except ssl.SSLError as error:
        return TlsFacts(
            problem=f"{http.tls_key} is not the unencrypted PEM key of {http.tls_certificate} "
            f"({error.reason or 'no key in it'})"
        )
    except OSError as error:
        return TlsFacts(problem=f"cannot read {http.tls_key}: {error.strerror}")
    return TlsFacts(expires=certificate.not_valid_after_utc.timestamp())

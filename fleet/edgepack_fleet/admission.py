"""What the security gate is told of files, the clock and the database."""

from __future__ import annotations

import contextlib

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from edgepack_contract.gate import FileFacts, Waiver
from edgepack_contract.gate_facts import file_facts, tls_facts
from edgepack_contract.keyring import open_keyring
from edgepack_fleet.auditlog import append_audit
from edgepack_fleet.config import FleetConfig
from edgepack_fleet.db.database import Database, is_there
from edgepack_fleet.db.schema import LoginCodeRow, PasskeyRow, TokenRow, UserRow
from edgepack_fleet.grants import Role
from edgepack_fleet.security import Facts, leaving
from edgepack_fleet.trust import LOCAL, read_keyring_file


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
        tls=tls_facts(config.http.tls_certificate, config.http.tls_key),
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
    if not is_there(config.database_url):
        return 0
    with contextlib.closing(Database(config.database_url)) as database, database.read() as session:
        return count_admins(session, now_ms=now_ms)


def _files(config: FleetConfig) -> dict[str, tuple[FileFacts, ...]]:
    named = {
        "http.tls_key": config.http.tls_key,
        "mqtt.password_file": config.mqtt.password_file,
        "mqtt.client_key": config.mqtt.client_key,
        "data_dir": config.data_dir,
    }
    several = {"keys.authority": config.keys.authority_files, "keys.fleet": config.keys.fleet_files}
    return {
        **{key: (file_facts(path),) for key, path in named.items() if path is not None},
        **{key: tuple(file_facts(path) for path in paths) for key, paths in several.items()},
    }

"""Whom this fleet trusts: the keyring in force, and the fleet key that it names.

A newer keyring comes over the API or, with SIGHUP, from the file. It is proven against the one in
force, stored before it is used, told to devices through the outbox, and written into the audit log.
Documents that an older key or epoch signed are then issued again by the controller, which finds
them in the database: a crash anywhere on the way leaves nothing undone.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_contract.atomic import replacing
from edgepack_contract.errors import (
    ConfigError,
    DocumentError,
    MalformedDocumentError,
    SigningKeyError,
    UntrustedBundleError,
)
from edgepack_contract.keyring import Keyring, advance_keyring, open_keyring, succeed_keyring
from edgepack_contract.keys import PrivateKey, read_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small
from edgepack_contract.topics import keyring_topic
from edgepack_fleet.auditlog import append_audit
from edgepack_fleet.config import FleetConfig, KeysConfig
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import AuditRow, Bundle
from edgepack_fleet.errors import ConflictError, OperationError
from edgepack_fleet.outbox import Message, put

PUSHED = "keyring.push"
LOADED = "keyring.load"
LOCAL = "local"
"""The actor of what is done on the machine of the service, without the API."""

KEYRING_MODE = 0o644
"""It is public: what it says is proven by its signatures."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who puts a keyring in force, and what else the audit log says of it."""

    name: str
    detail: Mapping[str, str]


LOCALLY = Actor(LOCAL, {})


@dataclass(frozen=True, slots=True)
class Trust:
    """A verified keyring, the file that proves it, and the fleet key to sign with."""

    file: bytes
    keyring: Keyring
    key: PrivateKey

    @property
    def sha256(self) -> str:
        """64 hex digits over the file."""
        return hashlib.sha256(self.file).hexdigest()

    def refuse_unvouched(self, bundle: Bundle) -> None:
        """Refuse a bundle of the store that the keyring no longer vouches for.

        Raises:
            UntrustedBundleError: See :meth:`Keyring.publisher_for`.
        """
        self.keyring.publisher_for(
            name=bundle.name, digest=bundle.digest, fingerprint=bundle.signed_by
        )

    def unvouched(self, bundle: Bundle) -> str | None:
        """Why the keyring does not vouch for a bundle, as code and words; None when it does."""
        try:
            self.refuse_unvouched(bundle)
        except UntrustedBundleError as error:
            return f"{error.code}: {error}"
        return None


def read_trust(keys: KeysConfig) -> Trust:
    """Read the keyring, check it against the pinned owner, and find the fleet key it names.

    Raises:
        ConfigError: The keyring cannot be read, or names none of the fleet keys.
        UntrustedDocumentError, MalformedDocumentError: The keyring does not hold.
        SigningKeyError: A fleet key cannot be read.
    """
    file = read_keyring_file(keys)
    keyring = open_keyring(file, owner_fingerprint=keys.owner)
    return Trust(file, keyring, _fleet_key(keyring, keys))


def read_keyring_file(keys: KeysConfig) -> bytes:
    """The keyring file's bytes, not verified.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return read_small(Path(keys.keyring), LIMITS.keyring_bytes)
    except OSError as error:
        raise ConfigError(f"cannot read keyring {keys.keyring}: {error.strerror}") from error


def advanced(trust: Trust, raw: bytes, keys: KeysConfig) -> Trust:
    """What a keyring file leads to from what is trusted; ``trust`` itself when nothing is newer.

    The lines of the file in force are kept: a device that pinned earlier owners needs them.

    Raises:
        UntrustedDocumentError, MalformedDocumentError: See :func:`advance_keyring`.
        ConflictError: With code ``unknown-fleet-key``: it names none of this service's fleet keys
            that can be read.
    """
    keyring = advance_keyring(trust.keyring, raw)
    if keyring is trust.keyring:
        return trust
    file = _extended(trust, raw)
    # what is stored must be found again by a restart, which knows the pinned owner only
    open_keyring(file, owner_fingerprint=keys.owner)
    try:
        return Trust(file, keyring, _fleet_key(keyring, keys))
    except (ConfigError, SigningKeyError) as error:
        raise ConflictError(
            f"with keyring version {keyring.version} devices would obey nothing more that this "
            f"service says: {error}. First put the key file that this keyring names at keys.fleet "
            "(which may name several files), then push the keyring again",
            code="unknown-fleet-key",
        ) from error


class KeyringKeeper:
    """Puts newer keyrings in force while the service runs. Safe between threads.

    Args:
        config: Where the key files are.
        database: For the outbox and the audit log.
        trust: What is in force at the start.
        refuse: Raises when a keyring must not be used with this configuration.
    """

    def __init__(
        self,
        config: FleetConfig,
        database: Database,
        trust: Trust,
        *,
        refuse: Callable[[Keyring], None],
    ) -> None:
        self._config = config
        self._database = database
        self._refuse = refuse
        self._lock = threading.Lock()
        self._trust = trust

    @property
    def trust(self) -> Trust:
        """What is in force."""
        return self._trust

    def push(self, raw: bytes, *, actor: str, address: str, now_ms: int) -> Trust:
        """Put a newer keyring in force, from its file's bytes; the one in force changes nothing.

        Raises:
            UntrustedDocumentError, MalformedDocumentError, ConflictError: See :func:`advanced`.
            ConfigError: It must not be used with this configuration.
            OperationError: It cannot be stored.
        """
        with self._lock:
            trust = advanced(self._trust, raw, self._config.keys)
            if trust is not self._trust:
                self._refuse(trust.keyring)
                by = Actor(actor, {"address": address})
                self._enforce(trust, action=PUSHED, by=by, now_ms=now_ms)
            return trust

    def reload(self, *, now_ms: int) -> Trust:
        """Read the keyring's file and the fleet keys anew.

        Raises:
            UntrustedDocumentError, MalformedDocumentError, ConflictError, ConfigError: As for
                :meth:`push`; then what is in force stays.
            SigningKeyError: A fleet key cannot be read.
        """
        with self._lock:
            keys = self._config.keys
            trust = advanced(self._trust, read_keyring_file(keys), keys)
            trust = Trust(trust.file, trust.keyring, _fleet_key(trust.keyring, keys))
            self._refuse(trust.keyring)
            self._enforce(trust, action=LOADED, by=LOCALLY, now_ms=now_ms)
            return trust

    def record(self, *, now_ms: int) -> None:
        """Write down what is in force at the start, unless that was written down already."""
        with self._database.write() as session:
            _record(session, self._trust, action=LOADED, by=LOCALLY, now_ms=now_ms)

    def tell(self, session: Session, *, now_ms: int) -> None:
        """Publish the keyring in the caller's transaction; it is retained."""
        put_keyring(session, self._config.tenant, self._trust, now_ms=now_ms)

    def _enforce(self, trust: Trust, *, action: str, by: Actor, now_ms: int) -> None:
        with self._database.write() as session:
            _record(session, trust, action=action, by=by, now_ms=now_ms)
            put_keyring(session, self._config.tenant, trust, now_ms=now_ms)
            # the last step before the commit: a keyring that is in force is in the log as well
            _store(Path(self._config.keys.keyring), trust.file)
        self._trust = trust


def put_keyring(session: Session, tenant: str, trust: Trust, *, now_ms: int) -> None:
    """Add the keyring file to the caller's transaction, as a retained message."""
    put(session, Message(keyring_topic(tenant), trust.file, retained=True), now_ms=now_ms)


def _record(session: Session, trust: Trust, *, action: str, by: Actor, now_ms: int) -> None:
    facts = {
        "version": trust.keyring.version,
        "epoch": trust.keyring.epoch,
        "fleet_key": trust.key.public.fingerprint,
        "sha256": trust.sha256,
    }
    last = session.scalars(
        select(AuditRow.detail)
        .where(AuditRow.action.in_((PUSHED, LOADED)))
        .order_by(AuditRow.sequence.desc())
        .limit(1)
    ).first()
    if last is not None and facts.items() <= last.items():
        return
    append_audit(
        session,
        at_ms=now_ms,
        actor=by.name,
        action=action,
        subject=f"version {trust.keyring.version}, epoch {trust.keyring.epoch}",
        detail={**facts, **by.detail},
    )


def _fleet_key(keyring: Keyring, keys: KeysConfig) -> PrivateKey:
    """Of the keys in the files, the one that the keyring names last: owners add new ones behind."""
    found = [read_private_key(Path(file)) for file in keys.fleet_files]
    by_fingerprint = {key.public.fingerprint: key for key in found}
    usable = [one for one in keyring.fleet_keys() if one in by_fingerprint]
    if not usable:
        have = ", ".join(fingerprint[:16] for fingerprint in by_fingerprint)
        raise ConfigError(
            f"fleet key {have} is not in keyring {keys.keyring} (version {keyring.version}); have "
            "the owner sign a keyring with it (edgepack keys rotate fleet), or set keys.fleet to a "
            "key that is in it",
            code="unknown-fleet-key",
        )
    return by_fingerprint[usable[-1]]


def _extended(trust: Trust, raw: bytes) -> bytes:
    """The file in force with every newer line of a file that was verified as a whole."""
    file, keyring = trust.file, trust.keyring
    for line in raw.splitlines():
        try:
            newer = advance_keyring(keyring, line)
        except DocumentError:
            continue  # empty, or older: its successors are what counts
        if newer is not keyring:
            file, keyring = succeed_keyring(file, line), newer
    if len(file) > LIMITS.keyring_bytes:
        raise MalformedDocumentError(
            f"with it the keyring file would have more than {LIMITS.keyring_bytes} bytes",
            code="too-large",
        )
    return file


def _store(path: Path, file: bytes) -> None:
    try:
        with replacing(path) as part, part.open("wb") as stream:
            os.fchmod(stream.fileno(), KEYRING_MODE)
            stream.write(file)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise OperationError(
            f"cannot write keyring {path}: {error.strerror}; the service must be able to replace "
            "keys.keyring, so its folder must be writable",
            code="keyring-file",
        ) from error

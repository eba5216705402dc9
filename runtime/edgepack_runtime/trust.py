"""What a device believes and keeps: the keyring in force, and the earliest that it can be now.

``trust.json`` in the state folder holds what must not be forgotten: the newest version of the
keyring, so that an older file put in its place is noticed, and the floor of the time. It can be
lost: then the keyring itself and the day of the release are what is known.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from edgepack_contract.canonical import canonical_json, decode
from edgepack_contract.clock import TrustedClock
from edgepack_contract.errors import (
    DocumentError,
    MalformedDocumentError,
    UntrustedDocumentError,
)
from edgepack_contract.keyring import (
    Keyring,
    advance_keyring,
    keyring_lines,
    open_keyring,
    succeed_keyring,
)
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_configured
from edgepack_contract.tls import client_context, read_authorities
from edgepack_runtime.config import RuntimeConfig
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.storage.fsio import DurableFS

logger = logging.getLogger(__name__)

FILE = "trust.json"
SCHEMA = "edgepack-trust/1"
MAX_BYTES = 4096
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``trust.json``: of which owner (the pinned fingerprint) which keyring was seen, and when."""

    schema: str = SCHEMA
    owner: str
    version: Count
    epoch: Count
    floor_ms: Count


class Trust:
    """The keyring in force and the trusted time. Safe between threads; it waits for the disk.

    Args:
        fs: All file changes go through it.
        home: The state folder.
        keyring_path: Where the keyring is.
        owner: The pinned fingerprint of the owners.
        system_ms: The system's clock, milliseconds since 1970 UTC.
        remember: Write down what there is; not for somebody who only looks.

    Raises:
        ConfigError: The keyring cannot be read.
        DocumentError: It is not one of the pinned owners, or older than one seen before (code
            ``old-keyring``).
    """

    def __init__(
        self,
        fs: DurableFS,
        *,
        home: Path,
        keyring_path: Path,
        owner: str,
        system_ms: Callable[[], int],
        remember: bool = True,
    ) -> None:
        self._fs = fs
        self._record_path, self._keyring_path = home / FILE, keyring_path
        self._owner = owner
        self._lock = threading.Lock()
        before = _read_record(fs, self._record_path, owner)
        self._file = read_configured(keyring_path, LIMITS.keyring_bytes, code="no-identity")
        self._keyring = _open(self._file, keyring_path, owner, before)
        kept = before.floor_ms if before and before.epoch == self._keyring.epoch else 0
        self.clock = TrustedClock(system_ms, floor_ms=kept, owner_ms=self._keyring.issued)
        self._written = before
        if remember:
            self.keep()

    @property
    def keyring(self) -> Keyring:
        """The keyring in force."""
        return self._keyring

    def advance(self, raw: bytes) -> bool:
        """Take up a newer keyring: on the disk first, then in force.

        Args:
            raw: A keyring file, from whoever had it.

        Returns:
            Whether there is a new keyring in force.

        Raises:
            DocumentError: See :func:`~edgepack_contract.keyring.advance_keyring`; or with code
                ``demo-keyring``, it is a demo's and the one in force is not.
            DeviceError: The disk does not take it; the one in force stays.
        """
        with self._lock:
            found = advance_keyring(self._keyring, raw)
            if found is self._keyring:
                return False
            _refuse_demo(self._keyring, found)
            file = _extended(self._file, raw, self._keyring, owner=self._owner)
            self._fs.atomic_write(self._keyring_path, file)
            anew = found.epoch > self._keyring.epoch
            self._file, self._keyring = file, found
            if anew:
                self.clock.forget(found.issued)
            else:
                self.clock.learn_of_owner(found.issued)
        self.keep()
        return True

    def tls_context(
        self, ca: str | None, *, certificate: str | None = None, key: str | None = None
    ) -> ssl.SSLContext:
        """How to believe a server by what is in force now; see :func:`client_context`.

        Args:
            ca: A file of authorities; None for those of the keyring.
            certificate: What to show to the server.
            key: Its private key.

        Raises:
            ConfigError: A file cannot be used.
        """
        return client_context(
            read_authorities(Path(ca)) if ca else self.keyring.authorities,
            certificate=Path(certificate) if certificate else None,
            key=Path(key) if key else None,
            clock=self.clock,
        )

    def keep(self) -> None:
        """Write down what was learnt, when it is time to."""
        with self._lock:
            record = self._record()
            if not _is_due(self._written, record):
                return
            try:
                self._fs.atomic_write(self._record_path, canonical_json(record))
            except DeviceError as error:
                # What is not remembered can be learnt again; serving goes on.
                logger.warning("%s not written: %s", FILE, error, extra={"event": "trust_unkept"})
                return
            self._written = record

    def _record(self) -> Record:
        return Record(
            owner=self._owner,
            version=self._keyring.version,
            epoch=self._keyring.epoch,
            floor_ms=self.clock.floor_ms,
        )


def open_trust(config: RuntimeConfig, fs: DurableFS, *, system_ms: Callable[[], int]) -> Trust:
    """The trust of a device with this configuration.

    Raises:
        ConfigError: See :class:`Trust`.
        DocumentError: See :class:`Trust`.
    """
    return _trust(config, fs, system_ms, remember=True)


def peek_trust(config: RuntimeConfig, fs: DurableFS, *, system_ms: Callable[[], int]) -> Trust:
    """The same for somebody who only looks: nothing is written."""
    return _trust(config, fs, system_ms, remember=False)


def _trust(
    config: RuntimeConfig, fs: DurableFS, system_ms: Callable[[], int], *, remember: bool
) -> Trust:
    return Trust(
        fs,
        home=Path(config.state_dir),
        keyring_path=Path(config.identity.keyring),
        owner=config.identity.owner,
        system_ms=system_ms,
        remember=remember,
    )


def _is_due(before: Record | None, now: Record) -> bool:
    """Whether to write: at most hourly as time goes by, at once for anything else."""
    if before is None or msgspec.structs.replace(now, floor_ms=before.floor_ms) != before:
        return True
    return now.floor_ms < before.floor_ms or now.floor_ms - before.floor_ms >= HOUR_MS


def _read_record(fs: DurableFS, path: Path, owner: str) -> Record | None:
    try:
        raw = fs.read_bounded(path, max_bytes=MAX_BYTES)
        record = decode(raw, Record, what=FILE, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        return None
    except (DeviceError, DocumentError) as error:
        logger.warning(
            "%s cannot be used (%s); the time is now believed to be after that of the keyring, "
            "and the keyring is believed to be the newest",
            path, error, extra={"event": "trust_lost"},
        )  # fmt: skip
        return None
    if record.schema != SCHEMA or record.owner != owner:
        # enrolled anew with other owners: what the former ones said counts no more
        return None
    return record


def _open(raw: bytes, path: Path, owner: str, before: Record | None) -> Keyring:
    least = before.version if before else 0
    try:
        return open_keyring(raw, owner_fingerprint=owner, minimum_version=least)
    except MalformedDocumentError as error:
        if error.code != "old-keyring":
            raise
        raise MalformedDocumentError(
            f"{path}: {error}. An older keyring may vouch for keys that were revoked since. Put "
            "the newest one in its place (GET /api/v1/keyring of the fleet service gives it), or "
            "enrol this device again",
            code="old-keyring",
        ) from error


def _refuse_demo(current: Keyring, found: Keyring) -> None:
    if found.demo and not current.demo:
        raise UntrustedDocumentError(
            f"keyring version {found.version} is a demo's, whose keys are no secret; this device "
            "is none of a demo",
            code="demo-keyring",
        )


def _extended(file: bytes, raw: bytes, before: Keyring, *, owner: str) -> bytes:
    """The device's own keyring file with what is new in another one.

    Whoever sent that may have left out what leads there from the pinned owners, which this device
    needs at its next start.
    """
    for line in keyring_lines(raw):
        try:
            after = advance_keyring(before, line)
        except MalformedDocumentError:
            # it is older: all that is newer was verified before
            continue
        if after is not before:
            file, before = succeed_keyring(file, line), after
    open_keyring(file, owner_fingerprint=owner, minimum_version=before.version)
    return file

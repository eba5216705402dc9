"""Keeps revoked devices out of the broker: the list of their certificates, and their sessions.

Every few seconds what is to be done is derived from the database and from the files, so that a
crash at any moment leaves nothing undone. It has a thread of its own, because the broker may be
slow or away; messages from devices never wait for it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509
from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from edgepack_contract.certificates import Authority, certificate_key, read_certificate
from edgepack_contract.errors import ConfigError, EdgepackError
from edgepack_contract.keyring import Keyring
from edgepack_contract.tls import read_authorities
from edgepack_contract.topics import FLEET_NODE, RETAINED, device_topic
from edgepack_fleet.authority import (
    LISTS_FILE,
    every_list,
    issuing_authority,
    named_authorities,
    open_authorities,
)
from edgepack_fleet.broker_files import is_due, issue_service, put_file, read_bounded
from edgepack_fleet.config import FleetConfig, MqttConfig
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import CertificateRow, Device
from edgepack_fleet.errors import BrokerError
from edgepack_fleet.eviction import INSIST_MS, REPEAT_MS, Revocation, due, evict
from edgepack_fleet.membership import Status
from edgepack_fleet.outbox import Message, put

logger = logging.getLogger(__name__)

ROUND_SECONDS = 5.0
THOROUGH_MS = 60_000
"""How often the list and the service's certificate are looked at even if nothing seems new."""

COMPLAIN_MS = 3_600_000
"""How often the same trouble is said."""

RELOAD_SECONDS = 1.0
"""How long the broker is given to read the list before devices are evicted."""

EVICTIONS = 100
"""At most so many in a round: an eviction takes the time of a TLS handshake."""

STRANGERS = 1000
"""At most so many devices that speak without being members are remembered for the next round."""

PID_BYTES = 32
BROKER_PROGRAM = "mosquitto"


class BrokerGuard:
    """Writes the list of revoked certificates, has the broker read it, and evicts.

    Args:
        config: Where the broker, the list and the authority are.
        database: What was revoked, and who was evicted.
        keyring: The keyring in force, which says who may issue.
        now_ms: Wall clock, milliseconds since 1970 UTC.
        on_commit: Called when there may be something to publish.
    """

    def __init__(
        self,
        config: FleetConfig,
        database: Database,
        *,
        keyring: Callable[[], Keyring],
        now_ms: Callable[[], int],
        on_commit: Callable[[], None],
    ) -> None:
        self._config = config
        self._database = database
        self._keyring = keyring
        self._now_ms = now_ms
        self._on_commit = on_commit
        self._strangers: dict[str, None] = {}
        self._marked: list[str] = []
        self._tried_ms: dict[str, int] = {}
        self._lock = threading.Lock()
        self._listed: tuple[int, int] | None = None
        self._looked_ms = 0
        self._own_looked_ms = 0
        self._written_ms = 0
        # a former run may have written the list and not come to telling the broker
        self._must_reload = True
        self._complained: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="broker-guard", daemon=True)
        self.counts: Counter[str] = Counter()

    def start(self) -> None:
        """Begin with what an earlier run left undone."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the eviction under way and stop."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def heard_stranger(self, device: str) -> None:
        """Note that a device which is not a member still speaks: the broker has let it in."""
        with self._lock:
            if len(self._strangers) < STRANGERS:
                self._strangers[device] = None

    def round(self) -> None:
        """Do what is to be done now. What fails is said, and tried again in the next round."""
        # who is revoked from here on is not on the list that is written now, and waits for the next
        self._marked = self._whom()
        for step in (self._keep_list, self._renew_own, self._evict_marked):
            try:
                authorities = open_authorities(self._config.keys)
                if authorities and self._config.mqtt.tls_ca is not None:
                    step(authorities)
            except EdgepackError as error:
                self._complain(str(error))

    def _run(self) -> None:
        while not self._stopping.wait(ROUND_SECONDS):
            try:
                self.round()
            except Exception:
                # the outer boundary of the thread: without it revoked devices would stay
                logger.exception("cannot guard the broker", extra={"event": "guard_failed"})

    def _keep_list(self, authorities: Sequence[Authority]) -> None:
        now_ms = self._now_ms()
        with self._database.read() as session:
            listed = _how_much(session)
            seems_done = listed == self._listed and not self._must_reload
            if seems_done and now_ms - self._looked_ms < THOROUGH_MS:
                return
            lists = every_list(session, self._config, authorities, now_ms)
        if self._write(lists):
            self._written_ms = now_ms
        # a Mosquitto that is reading its files when SIGHUP comes misses it: it is told again
        self._must_reload |= now_ms - self._written_ms < INSIST_MS
        self._must_reload = self._must_reload and not self._reload()
        self._listed, self._looked_ms = listed, now_ms

    def _write(self, lists: bytes) -> bool:
        """Replace the lists where others are; whether the broker's were replaced."""
        named = self._config.mqtt.crl_file
        written = named is not None and _replace(Path(named), lists, "mqtt.crl_file")
        if written:
            logger.info("wrote the list of revoked certificates", extra={"event": "crl_written"})
        # what a former authority took back must not be lost with the broker's folder
        _replace(self._config.data_path / LISTS_FILE, lists, "the lists of revoked certificates")
        return written

    def _reload(self) -> bool:
        """Have the broker read the list; False to try again in the next round."""
        mqtt = self._config.mqtt
        if mqtt.crl_file is None:
            return True
        if mqtt.broker_pid_file is None:
            logger.info(
                "if nothing else does so, have the broker read %s: systemctl reload mosquitto",
                mqtt.crl_file,
                extra={"event": "crl_not_announced"},
            )
            return True
        try:
            tell_broker(Path(mqtt.broker_pid_file))
        except BrokerError as error:
            self._complain(str(error))
            return False
        self._stopping.wait(RELOAD_SECONDS)
        return True

    def _renew_own(self, authorities: Sequence[Authority]) -> None:
        """Issue the service's own certificate again before it ends; the link then takes it."""
        mqtt, now_ms = self._config.mqtt, self._now_ms()
        if mqtt.client_certificate is None or now_ms - self._own_looked_ms < THOROUGH_MS:
            return
        self._own_looked_ms = now_ms
        path = Path(mqtt.client_certificate)
        old = read_certificate(read_bounded(path))
        ours = any(old.issuer == one.certificate.subject for one in authorities)
        keyring = self._keyring()
        issuer, believed = issuing_authority(authorities, keyring), named_authorities(keyring)
        if issuer is None or not ours or not is_due(old, believed, [FLEET_NODE], now_ms=now_ms):
            return
        issued = issue_service(certificate_key(old), issuer, now_ms=now_ms)
        try:
            put_file(path, issued.pem)
        except OSError as error:
            raise ConfigError(
                f"mqtt.client_certificate {path} ends on {old.not_valid_after_utc:%Y-%m-%d} and "
                f"cannot be renewed: {error.strerror}; let the service write there, or run: "
                "edgepack fleet mqtt-config"
            ) from error
        logger.info("renewed the service's own certificate", extra={"event": "client_renewed"})

    def _evict_marked(self, authorities: Sequence[Authority]) -> None:
        if not self._marked:
            return
        authority = evicting_authority(authorities, self._keyring(), self._config.mqtt)
        for device in self._marked[:EVICTIONS]:
            if self._stopping.is_set() or not self._evict(device, authority):
                return

    def _whom(self) -> list[str]:
        now_ms = self._now_ms()
        with self._lock:
            strangers, self._strangers = list(self._strangers), {}
        with self._database.read() as session:
            revoked = due(_revocations(session, now_ms), now_ms=now_ms)
            spoke = [one for one in strangers if _is_out(session, one)]
        recent = self._tried_ms.items()
        self._tried_ms = {one: at for one, at in recent if now_ms - at < REPEAT_MS}
        return [one for one in dict.fromkeys([*spoke, *revoked]) if one not in self._tried_ms]

    def _evict(self, device: str, authority: Authority) -> bool:
        now_ms = self._now_ms()
        self._tried_ms[device] = now_ms
        try:
            evict(device, self._config.mqtt, authority, now_ms=now_ms)
        except (BrokerError, ConfigError) as error:
            self.counts["failed"] += 1
            self._complain(f"cannot end the session of {device} at the broker: {error}")
            return False
        self.counts["evicted"] += 1
        logger.info("ended the session of %s at the broker", device, extra={"event": "evicted"})
        with self._database.write() as session:
            note_evicted(session, device, now_ms=now_ms)
        self._on_commit()
        return True

    def _complain(self, words: str) -> None:
        now_ms = self._now_ms()
        recent = self._complained.items()
        self._complained = {one: at for one, at in recent if now_ms - at < COMPLAIN_MS}
        if words not in self._complained:
            self._complained[words] = now_ms
            logger.error("%s", words, extra={"event": "guard_failed"})


def evicting_authority(
    authorities: Sequence[Authority], keyring: Keyring, mqtt: MqttConfig
) -> Authority:
    """Whose certificate the broker accepts: one of ``mqtt.tls_ca``, the newest of the keyring.

    One that the keyring does not name any more does while the broker has no newer one. A broker
    whose own certificate is of somebody else, so that ``tls_ca`` has none of ours, is taken to
    accept whom the keyring names.

    Raises:
        ConfigError: ``mqtt.tls_ca`` is no file of certificates.
    """
    pem = "".join(read_authorities(Path(mqtt.tls_ca or "")))
    try:
        accepted = x509.load_pem_x509_certificates(pem.encode())
    except ValueError as error:
        raise ConfigError(f"mqtt.tls_ca {mqtt.tls_ca}: no certificates in PEM form") from error
    there = [one for one in authorities if one.certificate in accepted]
    return (
        issuing_authority(there, keyring)
        or next(iter(reversed(there)), None)
        or issuing_authority(authorities, keyring)
        or authorities[-1]
    )


def _replace(path: Path, content: bytes, what: str) -> bool:
    try:
        if path.exists() and read_bounded(path) == content:
            return False
        put_file(path, content)
    except OSError as error:
        raise ConfigError(f"cannot write {what} {path}: {error.strerror}") from error
    return True


def _how_much(session: Session) -> tuple[int, int]:
    """How many certificates are revoked, and when the last one was: changes with the list."""
    count, last = session.execute(
        select(func.count(CertificateRow.revoked_ms), func.max(CertificateRow.revoked_ms))
    ).one()
    return int(count), int(last or 0)


def _revocations(session: Session, now_ms: int) -> list[Revocation]:
    row = CertificateRow
    found = session.execute(
        select(row.device, row.revoked_ms, row.evicted_ms, Device.status)
        .outerjoin(Device, Device.id == row.device)
        .where(row.revoked_ms.is_not(None))
        .where(or_(row.evicted_ms.is_(None), row.revoked_ms > now_ms - INSIST_MS - REPEAT_MS))
    ).all()
    return [
        Revocation(device, revoked_ms or 0, evicted_ms, is_member=status == Status.ACCEPTED)
        for device, revoked_ms, evicted_ms, status in found
    ]


def _is_out(session: Session, device: str) -> bool:
    row = session.get(Device, device)
    return row is not None and row.status in (Status.REVOKED, Status.DECOMMISSIONED)


def note_evicted(session: Session, device: str, *, now_ms: int) -> None:
    """Remember an eviction; what the device's last will left at the broker is cleared again."""
    session.execute(
        update(CertificateRow)
        .where(CertificateRow.device == device, CertificateRow.revoked_ms.is_not(None))
        .values(evicted_ms=now_ms)
    )
    row = session.get(Device, device)
    if row is not None and row.status == Status.DECOMMISSIONED:
        for kind in sorted(RETAINED):
            topic = device_topic(row.tenant, row.id, kind)
            put(session, Message(topic, b"", retained=True), now_ms=now_ms)


def tell_broker(pid_file: Path) -> None:
    """Send the broker SIGHUP.

    Raises:
        BrokerError: There is no such broker, or it is not ours to tell.
    """
    hint = "reload the broker by other means (docs/broker.md) and leave mqtt.broker_pid_file out"
    try:
        with pid_file.open("rb") as stream:
            pid = int(stream.read(PID_BYTES))
        # a file that outlived its process may name another one, which SIGHUP would end
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if pid <= 1 or name != BROKER_PROGRAM:
            raise BrokerError(f"{pid_file} names process {pid} ({name}), which is no broker")
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError) as error:
        raise BrokerError(
            f"cannot have the broker of mqtt.broker_pid_file {pid_file} read the list of revoked "
            f"certificates: {error}; {hint}"
        ) from error

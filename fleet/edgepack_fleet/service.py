"""The composition root of the fleet service: builds the parts, starts and stops them in order.

Killed at any moment, a new run on the same data folder goes on from the last commit: what was
decided and not yet published goes out, what devices said in the meantime waits at the broker, and
the lease passes on at once because the lock of the database file proves that the old run is gone.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

from sqlalchemy.exc import OperationalError

from edgepack_contract.errors import EdgepackError
from edgepack_contract.gate import REMIND_SECONDS, Waiver
from edgepack_contract.gate_facts import remind
from edgepack_fleet.admission import record_waiver
from edgepack_fleet.broker_guard import BrokerGuard
from edgepack_fleet.bundles import BundleStore
from edgepack_fleet.config import FleetConfig
from edgepack_fleet.controller import Controller
from edgepack_fleet.db.database import Database
from edgepack_fleet.desired import DesiredWriter, put_all_again
from edgepack_fleet.ingest import Incoming, Ingest
from edgepack_fleet.link import FleetLink
from edgepack_fleet.outbox import Message, publish_pending
from edgepack_fleet.security import refuse_demo
from edgepack_fleet.trust import KeyringKeeper, read_trust
from edgepack_fleet.wallclock import wall_ms

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
GAP_LOOKS = 4
"""How many times within the time that a gap is waited for one is looked for."""


class FleetService:
    """One fleet service on one data folder.

    Args:
        config: What it was told.
        public_url: Where devices reach it, ``http(s)://HOST[:PORT]``: the base of bundle sources.
        waiver: Why it runs although it is insecure; None when it is secure.
        now_ms: Wall clock, milliseconds since 1970 UTC.

    Raises:
        ConfigError: The keys do not fit each other.
        SigningKeyError: The fleet key cannot be read.
        UntrustedDocumentError, MalformedDocumentError: The keyring does not hold.
        StorageError: The database cannot be opened, or another service has it.
    """

    def __init__(
        self,
        config: FleetConfig,
        *,
        public_url: str,
        waiver: Waiver | None = None,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self.config = config
        self.waiver = waiver
        self.now_ms = now_ms or wall_ms
        trust = read_trust(config.keys)
        self._link = FleetLink(
            config.mqtt,
            tenant=config.tenant,
            session=self.now_ms(),
            on_message=self._offer,
            on_connected=self._on_connected,
            rng=random.Random(secrets.randbits(64)),  # noqa: S311 - spreads reconnects, no secret
            now_ms=self.now_ms,
        )
        self.database = Database(config.database_url)
        self.keeper = KeyringKeeper(
            config, self.database, trust, refuse=partial(refuse_demo, config)
        )
        self.bundles = BundleStore(
            config.data_path, self.database, lambda: self.keeper.trust.keyring
        )
        timings = config.timings
        self.writer = DesiredWriter(
            tenant=config.tenant,
            trusted=lambda: self.keeper.trust,
            base_url=public_url.rstrip("/"),
            ttl_ms=int(timings.desired_ttl * 1000),
            refresh_ms=int(timings.desired_refresh * 1000),
        )
        self.guard = BrokerGuard(
            config,
            self.database,
            keyring=lambda: self.keeper.trust.keyring,
            now_ms=self.now_ms,
            on_commit=self.wake,
        )
        self.ingest = Ingest(
            self.database,
            tenant=config.tenant,
            publish=self._acknowledge,
            on_stranger=self.guard.heard_stranger,
        )
        self.controller = Controller(
            self.database,
            self.writer,
            timings=timings,
            holder=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
            now_ms=self.now_ms,
            on_commit=self.wake,
        )
        self._stopping = threading.Event()
        self._something = threading.Event()
        self._say_all_again = threading.Event()
        self._publisher = threading.Thread(target=self._publish, name="publisher", daemon=True)

    def start(self) -> None:
        """Take the lease, then listen, publish and drive."""
        self.bundles.prepare()
        self.keeper.record(now_ms=self.now_ms())
        if self.waiver is not None:
            with self.database.write() as session:
                record_waiver(session, self.waiver, now_ms=self.now_ms())
        self.controller.take_over()
        self.ingest.start()
        self._publisher.start()
        self._link.start()
        self.guard.start()
        self.controller.start()

    def stop(self) -> None:
        """Decide nothing more, say goodbye, commit what was heard, and close the database."""
        self._stopping.set()
        self.controller.stop()
        self.wake()
        if self._publisher.is_alive():
            self._publisher.join()
        self.guard.stop()
        self._link.stop()
        self.ingest.stop()
        self.database.close()

    def reload(self) -> None:
        """Read the keyring and the fleet keys anew; what does not hold is logged, not used."""
        try:
            trust = self.keeper.reload(now_ms=self.now_ms())
        except EdgepackError as error:
            logger.error("keyring not taken: %s", error, extra={"event": "keyring_refused"})
            return
        version, epoch = trust.keyring.version, trust.keyring.epoch
        logger.info(
            "keyring version %d of epoch %d is in force", version, epoch,
            extra={"event": "keyring_loaded"},
        )  # fmt: skip
        self.wake()

    def wake(self) -> None:
        """Say that the outbox may have something to publish."""
        self._something.set()

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection."""
        return self._link.connected

    def is_stopping(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopping.is_set()

    def counters(self) -> dict[str, int]:
        """What became of messages from devices, and whether broker and lease are there."""
        counts = {f"messages_{name}": count for name, count in self.ingest.counts.copy().items()}
        return {
            **counts,
            "insecure": int(self.waiver is not None),
            "broker_connected": int(self.connected),
            "broker_evictions_total": self.guard.counts["evicted"],
            "broker_evictions_failed_total": self.guard.counts["failed"],
            "driving": int(self.controller.driving),
        }

    def _offer(self, topic: str, payload: bytes) -> None:
        self.ingest.offer(Incoming(topic, payload, self.now_ms()))

    def _acknowledge(self, message: Message) -> None:
        # without a connection it is left out: the device says again what is not acknowledged
        if self._link.connected:
            self._link.publish(message)

    def _on_connected(self) -> None:
        # what a broker retains is a cache, and this one may have lost it
        self._say_all_again.set()
        self.wake()

    def _publish(self) -> None:
        looked, reminded = 0.0, -REMIND_SECONDS
        while not self._stopping.is_set():
            self._something.wait(IDLE_SECONDS)
            self._something.clear()
            try:
                self._publish_all()
                if time.monotonic() - looked >= self.config.timings.gap / GAP_LOOKS:
                    self._look_for_gaps()
                    looked = time.monotonic()
                if self.waiver is not None and time.monotonic() - reminded >= REMIND_SECONDS:
                    remind(self.waiver)
                    reminded = time.monotonic()
            except OperationalError:
                # the disk is full or the database locked: what is not published is tried again
                logger.exception("cannot publish", extra={"event": "publish_failed"})
            except Exception:
                # the outer boundary of the thread: without it devices would hear nothing more
                logger.exception("cannot publish", extra={"event": "publish_failed"})

    def _publish_all(self) -> None:
        if self._say_all_again.is_set() and self.connected:
            self._say_all_again.clear()
            with self.database.write() as session:
                # first: by it devices judge the documents
                self.keeper.tell(session, now_ms=self.now_ms())
                put_all_again(session, now_ms=self.now_ms())
        while not self._stopping.is_set():
            if publish_pending(self.database, self._link, now_ms=self.now_ms()) == 0:
                return

    def _look_for_gaps(self) -> None:
        now_ms = self.now_ms()
        before_ms = now_ms - int(self.config.timings.gap * 1000)
        self.ingest.declare_gaps(before_ms=before_ms, now_ms=now_ms)

"""What devices say, checked and committed in batches; acknowledged only after the commit.

Nothing a device sends can do more than be counted: an unknown device, a MAC that does not hold, a
topic of another device, something malformed, old or repeated each have a counter of their own and
change nothing.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from edgepack_contract.canonical import canonical_json
from edgepack_contract.errors import MalformedDocumentError, UntrustedDocumentError
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Acked
from edgepack_contract.sealing import seal, unseal
from edgepack_contract.topics import CLIENTS, UP, Kind, Topic, device_topic, parse_topic
from edgepack_fleet.clones import note_clone
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import Device
from edgepack_fleet.devices import ACCEPTED
from edgepack_fleet.hearing import Heard, Refused, SecondHolder, take
from edgepack_fleet.outbox import Message
from edgepack_fleet.telemetry import Stream, declare_gaps, through

logger = logging.getLogger(__name__)

QUEUE_ITEMS = 20_000
"""How many messages may wait for a commit; with more, the broker is not read on."""

BATCH = 500
BATCH_SECONDS = 0.05
RETRY_SECONDS = 1.0
HARMLESS = frozenset({"repeated", "old-session"})
"""What brokers and restarts bring about by themselves: no sign of anybody else."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as it came. ``received_ms`` is the fleet's clock."""

    topic: str
    payload: bytes
    received_ms: int


@dataclass(slots=True)
class _Batch:
    """One transaction and what it counted."""

    heard: Heard
    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)


class Ingest:
    """Takes messages from the link and commits them on a thread of its own.

    Args:
        database: Where they go.
        tenant: Topics of another tenant are refused.
        publish: Hands acknowledgements to the link; it must not wait.
        on_stranger: Called with the id of a device that speaks without being a member; it must not
            wait.
    """

    def __init__(
        self,
        database: Database,
        *,
        tenant: str,
        publish: Callable[[Message], object],
        on_stranger: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._database = database
        self._tenant = tenant
        self._publish = publish
        self._on_stranger = on_stranger
        self._queue: queue.Queue[Incoming | None] = queue.Queue(QUEUE_ITEMS)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.counts: Counter[str] = Counter()
        self._refused: Counter[tuple[str, str]] = Counter()

    def refused(self, device: str) -> dict[str, int]:
        """How many messages on a device's topics were refused since the start, by reason."""
        counts = self._refused.copy()
        return {reason: count for (one, reason), count in sorted(counts.items()) if one == device}

    def offer(self, message: Incoming) -> None:
        """Queue a message; waits while the queue is full."""
        self._queue.put(message)

    def start(self) -> None:
        """Start committing."""
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Commit what is queued and stop."""
        self._stopping.set()
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def commit(self, messages: Sequence[Incoming]) -> None:
        """Commit messages in one transaction, then acknowledge; one that breaks it goes alone."""
        try:
            self._commit(messages)
        except OperationalError:
            raise
        except Exception:
            # an outer boundary: whatever one device sent must not keep the others' from the table
            if len(messages) == 1:
                logger.exception("message on %s dropped", messages[0].topic[:200])
                self.counts["internal"] += 1
                return
            for message in messages:
                self.commit([message])

    def declare_gaps(self, *, before_ms: int, now_ms: int) -> int:
        """Stop waiting for items that are missing since before a time; say how many holes."""
        acks = []
        with self._database.write() as session:
            for stream, _ in declare_gaps(session, before_ms=before_ms, now_ms=now_ms):
                key = session.get_one(Device, stream.device).mac_key
                acks.append(self._acknowledgement(session, stream, key))
        self.counts["gaps"] += len(acks)
        for message in acks:
            self._publish(message)
        return len(acks)

    def _run(self) -> None:
        while True:
            batch, last = self._next_batch()
            while batch and not self._try_commit(batch):
                if self._stopping.wait(RETRY_SECONDS):
                    return
            if last:
                return

    def _try_commit(self, batch: Sequence[Incoming]) -> bool:
        try:
            self.commit(batch)
        except OperationalError:
            # the disk is full or the database locked: nothing is lost while the queue waits
            logger.exception("cannot commit; trying again", extra={"event": "ingest_stalled"})
            self.counts["stalled"] += 1
            return False
        return True

    def _next_batch(self) -> tuple[list[Incoming], bool]:
        """Wait for a message, then take what comes within a moment; the end is a None."""
        first = self._queue.get()
        if first is None:
            return [], True
        batch, deadline = [first], time.monotonic() + BATCH_SECONDS
        while len(batch) < BATCH:
            try:
                message = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if message is None:
                return batch, True
            batch.append(message)
        return batch, False

    def _commit(self, messages: Sequence[Incoming]) -> None:
        with self._database.write() as session:
            batch = _Batch(Heard(session))
            for message in messages:
                batch.counts[self._outcome(batch, message)] += 1
            session.flush()
            acks = [self._acknowledgement(session, *item) for item in batch.heard.streams.items()]
        self.counts.update(batch.counts)
        self._refused.update(batch.refused)
        for ack in acks:
            self._publish(ack)

    def _outcome(self, batch: _Batch, message: Incoming) -> str:
        try:
            topic, device = self._addressed(batch.heard.session, message)
        except MalformedDocumentError as error:
            return error.code
        except Refused as refused:
            return str(refused)
        try:
            body = self._opened(device, message)
            return take(batch.heard, topic, device, body, message.received_ms)
        except (MalformedDocumentError, UntrustedDocumentError) as error:
            outcome = error.code
        except SecondHolder as refused:
            note_clone(batch.heard.session, device, now_ms=message.received_ms)
            outcome = str(refused)
        except Refused as refused:
            outcome = str(refused)
        if outcome not in HARMLESS:
            batch.refused[device.id, outcome] += 1
        return outcome

    def _addressed(self, session: Session, message: Incoming) -> tuple[Topic, Device]:
        """Whose topic a message came on; that says nothing about who sent it."""
        topic = parse_topic(message.topic)
        if topic.tenant != self._tenant or topic.kind not in UP - CLIENTS:
            raise Refused("not-for-us")
        if not message.payload:
            raise Refused("cleared")
        device = session.get(Device, topic.device)
        if device is None:
            raise Refused("unknown-device")
        return topic, device

    def _opened(self, device: Device, message: Incoming) -> bytes:
        """What the device said, once it is certain that it did."""
        if device.status != ACCEPTED:
            self._on_stranger(device.id)
            raise Refused("not-accepted")
        return unseal(
            message.payload,
            topic=message.topic,
            key=device.mac_key,
            max_bytes=LIMITS.message_bytes,
        )

    def _acknowledgement(self, session: Session, stream: Stream, key: bytes) -> Message:
        topic = device_topic(self._tenant, stream.device, Kind.ACKED, stream.slot)
        acked = Acked(session=stream.session, through=through(session, stream))
        return Message(topic, seal(canonical_json(acked), topic=topic, key=key), retained=False)

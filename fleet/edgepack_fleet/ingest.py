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
from typing import TypeVar

import msgspec
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from edgepack_contract.canonical import canonical_json, decode
from edgepack_contract.errors import MalformedDocumentError, UntrustedDocumentError
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Acked, Birth, Event, Health, Reported, State
from edgepack_contract.names import is_id
from edgepack_contract.sealing import seal, unseal
from edgepack_contract.states import Presence
from edgepack_contract.topics import UP, Kind, Topic, device_topic, parse_topic
from edgepack_contract.window import parse_window
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import Device
from edgepack_fleet.devices import ACCEPTED, hardware_class
from edgepack_fleet.outbox import Message
from edgepack_fleet.telemetry import (
    Stream,
    Taken,
    declare_gaps,
    store_event,
    store_window,
    through,
)

T = TypeVar("T", bound=msgspec.Struct)

logger = logging.getLogger(__name__)

QUEUE_ITEMS = 20_000
"""How many messages may wait for a commit; with more, the broker is not read on."""

BATCH = 500
BATCH_SECONDS = 0.05
RETRY_SECONDS = 1.0
MAX_COUNT = 2**53
"""Sequences, sessions and times above this are not numbers that every JSON reader keeps exact."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as it came. ``received_ms`` is the fleet's clock."""

    topic: str
    payload: bytes
    received_ms: int


class Refused(Exception):  # noqa: N818  (an outcome with a reason to count, not a fault)
    """A message that changes nothing, and the name under which it is counted."""


@dataclass(slots=True)
class _Batch:
    """One transaction: what it counted, and which sequences it must acknowledge."""

    session: Session
    counts: Counter[str] = field(default_factory=Counter)
    streams: dict[Stream, bytes] = field(default_factory=dict)


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
            batch = _Batch(session)
            for message in messages:
                batch.counts[self._outcome(batch, message)] += 1
            session.flush()
            acks = [self._acknowledgement(session, *item) for item in batch.streams.items()]
        self.counts.update(batch.counts)
        for ack in acks:
            self._publish(ack)

    def _outcome(self, batch: _Batch, message: Incoming) -> str:
        try:
            topic, device, body = self._authenticate(batch.session, message)
            return _take(batch, topic, device, body, message.received_ms)
        except (MalformedDocumentError, UntrustedDocumentError) as error:
            return error.code
        except Refused as refused:
            return str(refused)

    def _authenticate(self, session: Session, message: Incoming) -> tuple[Topic, Device, bytes]:
        topic = parse_topic(message.topic)
        if topic.tenant != self._tenant or topic.kind not in UP:
            raise Refused("not-for-us")
        if not message.payload:
            raise Refused("cleared")
        device = session.get(Device, topic.device)
        if device is None:
            raise Refused("unknown-device")
        if device.status != ACCEPTED:
            self._on_stranger(device.id)
            raise Refused("not-accepted")
        body = unseal(
            message.payload,
            topic=message.topic,
            key=device.mac_key,
            max_bytes=LIMITS.message_bytes,
        )
        return topic, device, body

    def _acknowledgement(self, session: Session, stream: Stream, key: bytes) -> Message:
        topic = device_topic(self._tenant, stream.device, Kind.ACKED, stream.slot)
        acked = Acked(session=stream.session, through=through(session, stream))
        return Message(topic, seal(canonical_json(acked), topic=topic, key=key), retained=False)


def _decode(body: bytes, shape: type[T]) -> T:
    """Decode strictly, and refuse what a database or a page could not carry.

    JSON can spell an infinity (``1e999``) and half a character (an escaped surrogate).
    """
    message = decode(body, shape, what="message", max_bytes=LIMITS.message_bytes)
    try:
        canonical_json(message)
    except ValueError as error:
        raise MalformedDocumentError(f"message: {error}", code="bad-value") from error
    return message


def _take(batch: _Batch, topic: Topic, device: Device, body: bytes, now_ms: int) -> str:
    match topic.kind:
        case Kind.STATE:
            return _take_state(device, _decode(body, State), now_ms)
        case Kind.BIRTH:
            return _take_birth(device, _decode(body, Birth), now_ms)
        case Kind.REPORTED:
            return _take_reported(device, _decode(body, Reported), now_ms)
        case Kind.HEALTH:
            return _take_health(device, _decode(body, Health), now_ms)
        case Kind.TELEMETRY:
            return _take_window(batch, topic, device, body, now_ms)
        case Kind.EVENT:
            return _take_event(batch, topic, device, _decode(body, Event), now_ms)
        case _:
            raise Refused("unexpected")


def _take_state(device: Device, message: State, now_ms: int) -> str:
    _check_session(device, message.session)
    if message.state is Presence.LOST:
        # the will was sealed when the connection began: its sequence says nothing about its age
        device.presence = Presence.LOST.value
        return "state"
    _check_sequence(message.sequence, device.state_sequence)
    device.state_sequence = message.sequence
    _heard(device, message.at, now_ms)
    device.presence = message.state.value
    return "state"


def _take_birth(device: Device, message: Birth, now_ms: int) -> str:
    _check_session(device, message.session)
    _check_sequence(message.sequence, device.birth_sequence)
    device.birth_sequence = message.sequence
    device.birth = msgspec.to_builtins(message)
    device.hardware_class = hardware_class(message.hardware)
    _heard(device, message.at, now_ms)
    return "birth"


def _take_reported(device: Device, message: Reported, now_ms: int) -> str:
    _check_session(device, message.session)
    _check_sequence(message.sequence, device.reported_sequence)
    _check_count(message.epoch)
    _check_count(message.generation)
    device.reported_sequence = message.sequence
    device.reported = msgspec.to_builtins(message)
    device.epoch_seen, device.generation_seen = message.epoch, message.generation
    device.refused = message.refused
    _heard(device, message.at, now_ms)
    return "reported"


def _take_health(device: Device, message: Health, now_ms: int) -> str:
    _check_session(device, message.session)
    _check_sequence(message.sequence, device.health_sequence)
    device.health_sequence = message.sequence
    device.health = msgspec.to_builtins(message)
    _heard(device, message.at, now_ms)
    return "health"


def _take_window(batch: _Batch, topic: Topic, device: Device, body: bytes, now_ms: int) -> str:
    window = parse_window(body)
    if window.slot != topic.name:
        raise Refused("wrong-slot")
    for number in (window.session, window.first, window.last, window.end_ms):
        _check_count(number)
    if window.session == device.session:
        _heard(device, window.end_ms, now_ms)
    taken = store_window(
        batch.session,
        device.id,
        window,
        body,
        offset_ms=device.clock_offset_ms or 0,
        now_ms=now_ms,
    )
    batch.streams[Stream(device.id, window.slot, window.session)] = device.mac_key
    return "window" if taken is Taken.NEW else f"window-{taken}"


def _take_event(batch: _Batch, topic: Topic, device: Device, event: Event, now_ms: int) -> str:
    if event.kind != topic.name:
        raise Refused("wrong-kind")
    for number in (event.session, event.sequence, event.at):
        _check_count(number)
    if not is_id(event.slot):
        raise Refused("wrong-slot")  # it becomes a level of the acknowledgement's topic
    taken = store_event(batch.session, device.id, event, now_ms=now_ms)
    batch.streams[Stream(device.id, event.slot, event.session)] = device.mac_key
    return "event" if taken is Taken.NEW else f"event-{taken}"


def _check_session(device: Device, session: int) -> None:
    """Let a message of the current session pass; a newer one begins a new session."""
    _check_count(session)
    if session < device.session:
        raise Refused("old-session")
    if session > device.session:
        device.session = session
        device.state_sequence = device.birth_sequence = 0
        device.reported_sequence = device.health_sequence = 0
        device.clock_offset_ms = None


def _check_sequence(sequence: int, seen: int) -> None:
    _check_count(sequence)
    if sequence <= seen:
        raise Refused("repeated")


def _check_count(number: int) -> None:
    if not 0 <= number <= MAX_COUNT:
        raise Refused("out-of-range")


def _heard(device: Device, at_ms: int, now_ms: int) -> None:
    """Note that a device of the current session was heard, and what its clock said."""
    _check_count(at_ms)
    device.last_seen_ms = now_ms
    lag = now_ms - at_ms
    known = device.clock_offset_ms
    device.clock_offset_ms = lag if known is None else min(known, lag)

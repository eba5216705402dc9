"""What one message of a device changes, once it is certain that the device sent it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from sqlalchemy.orm import Session

from edgepack_contract.canonical import canonical_json, decode
from edgepack_contract.errors import MalformedDocumentError
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Birth, Event, Health, Reported, State
from edgepack_contract.names import is_id
from edgepack_contract.states import Presence
from edgepack_contract.topics import Kind, Topic
from edgepack_contract.window import parse_window
from edgepack_fleet.clones import is_second_holder
from edgepack_fleet.db.schema import Device
from edgepack_fleet.devices import hardware_class
from edgepack_fleet.telemetry import Stream, Taken, store_event, store_window

T = TypeVar("T", bound=msgspec.Struct)

MAX_COUNT = 2**53
"""Sequences, sessions and times above this are not numbers that every JSON reader keeps exact."""


class Refused(Exception):  # noqa: N818  (an outcome with a reason to count, not a fault)
    """A message that changes nothing, and the name under which it is counted."""


class SecondHolder(Refused):
    """A message that only a copy of the device can have sent."""


@dataclass(slots=True)
class Heard:
    """One transaction, and the streams in which it must acknowledge, with the keys to do so."""

    session: Session
    streams: dict[Stream, bytes] = field(default_factory=dict)


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


def take(heard: Heard, topic: Topic, device: Device, body: bytes, now_ms: int) -> str:
    """Take what a device said on a topic, and give the name under which that is counted.

    Raises:
        MalformedDocumentError: It does not decode.
        Refused: It changes nothing; with :class:`SecondHolder`, a copy of the device said it.
    """
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
            return _take_window(heard, topic, device, body, now_ms)
        case Kind.EVENT:
            return _take_event(heard, topic, device, _decode(body, Event), now_ms)
        case _:
            raise Refused("unexpected")


def _take_state(device: Device, message: State, now_ms: int) -> str:
    made = None if message.state is not Presence.ONLINE else message.at
    _check_session(device, message.session, made, now_ms)
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
    _check_session(device, message.session, message.at, now_ms)
    _check_sequence(message.sequence, device.birth_sequence)
    device.birth_sequence = message.sequence
    device.birth = msgspec.to_builtins(message)
    device.hardware_class = hardware_class(message.hardware)
    _heard(device, message.at, now_ms)
    return "birth"


def _take_reported(device: Device, message: Reported, now_ms: int) -> str:
    _check_session(device, message.session, message.at, now_ms)
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
    _check_session(device, message.session, message.at, now_ms)
    _check_sequence(message.sequence, device.health_sequence)
    device.health_sequence = message.sequence
    device.health = msgspec.to_builtins(message)
    _heard(device, message.at, now_ms)
    _outlive_will(device)
    return "health"


def _take_window(heard: Heard, topic: Topic, device: Device, body: bytes, now_ms: int) -> str:
    window = parse_window(body)
    if window.slot != topic.name:
        raise Refused("wrong-slot")
    for number in (window.session, window.first, window.last, window.end_ms):
        _check_count(number)
    current = window.session == device.session
    offset_ms = _offset(device, window.end_ms, now_ms) if current else device.clock_offset_ms or 0
    taken = store_window(
        heard.session,
        device.id,
        window,
        body,
        offset_ms=offset_ms,
        now_ms=now_ms,
    )
    if current and taken is Taken.NEW:
        # somebody who repeats what a device once said must not make it look alive
        _heard(device, window.end_ms, now_ms)
        _outlive_will(device)
    heard.streams[Stream(device.id, window.slot, window.session)] = device.mac_key
    return "window" if taken is Taken.NEW else f"window-{taken}"


def _take_event(heard: Heard, topic: Topic, device: Device, event: Event, now_ms: int) -> str:
    if event.kind != topic.name:
        raise Refused("wrong-kind")
    for number in (event.session, event.sequence, event.at):
        _check_count(number)
    if not is_id(event.slot):
        raise Refused("wrong-slot")  # it becomes a level of the acknowledgement's topic
    taken = store_event(heard.session, device.id, event, now_ms=now_ms)
    heard.streams[Stream(device.id, event.slot, event.session)] = device.mac_key
    return "event" if taken is Taken.NEW else f"event-{taken}"


def _check_session(device: Device, session: int, made_ms: int | None, now_ms: int) -> None:
    """Let a message of the current session pass; a newer one begins a new session.

    Args:
        device: Whose message it is.
        session: The session that it is of.
        made_ms: When the device made it; None for a will, which is sent long after it was made.
        now_ms: The fleet's clock.
    """
    _check_count(session)
    if session < device.session:
        began = device.birth_at_ms
        if made_ms is not None and is_second_holder(made_ms, began_ms=began, now_ms=now_ms):
            raise SecondHolder("clone")
        raise Refused("old-session")
    if session > device.session:
        _check_count(made_ms or 0)
        device.session = session
        device.state_sequence = device.birth_sequence = 0
        device.reported_sequence = device.health_sequence = 0
        device.clock_offset_ms = None
        device.birth_at_ms = max(made_ms or 0, now_ms)


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
    device.clock_offset_ms = _offset(device, at_ms, now_ms)


def _outlive_will(device: Device) -> None:
    """Take a will back: a broker may send that of a lost connection when there is a newer one.

    Only what no broker retains proves this; the other kinds may have been said before the end.
    """
    if device.presence == Presence.LOST:
        device.presence = Presence.ONLINE.value


def _offset(device: Device, at_ms: int, now_ms: int) -> int:
    lag, known = now_ms - at_ms, device.clock_offset_ms
    return lag if known is None else min(known, lag)

"""Every MQTT topic of edgepack, built and parsed here and nowhere else.

``edgepack/v1/{tenant}/{device}/{kind}[/{name}]``; ids are those of :mod:`edgepack_contract.names`.
Only MQTT 3.1.1 is needed: retained messages, a last will, and QoS 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edgepack_contract.errors import MalformedDocumentError
from edgepack_contract.names import check_id, is_id

ROOT = "edgepack/v1"
FLEET_NODE = "_fleet"


class Kind(StrEnum):
    """The fifth level of a topic. Values are a wire format and never reused."""

    STATE = "state"
    BIRTH = "birth"
    REPORTED = "reported"
    DESIRED = "desired"
    TELEMETRY = "telemetry"
    ACKED = "acked"
    HEALTH = "health"
    EVENT = "event"
    CMD = "cmd"
    ACK = "ack"
    REQUEST = "request"
    RESPONSE = "response"


CLIENTS = frozenset({Kind.REQUEST, Kind.RESPONSE})
"""Kinds between a device and those who ask it for predictions: the fleet has no part in them."""

NAMED = CLIENTS | {Kind.TELEMETRY, Kind.ACKED, Kind.EVENT, Kind.CMD, Kind.ACK}
"""Kinds that have a sixth level: a slot, an event kind, a verb, or who waits for an answer."""

UP = frozenset(
    {
        Kind.STATE, Kind.BIRTH, Kind.REPORTED, Kind.TELEMETRY, Kind.HEALTH, Kind.EVENT, Kind.ACK,
        Kind.RESPONSE,
    }
)  # fmt: skip
"""Kinds that a device publishes; the others are for it."""

RETAINED = frozenset({Kind.STATE, Kind.BIRTH, Kind.REPORTED, Kind.DESIRED})


@dataclass(frozen=True, slots=True)
class Topic:
    """One device's topic."""

    tenant: str
    device: str
    kind: Kind
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.kind in NAMED) != (self.name is not None):
            raise ValueError(
                f"a {self.kind} topic {'needs' if self.kind in NAMED else 'has no'} name"
            )

    def __str__(self) -> str:
        base = f"{ROOT}/{self.tenant}/{self.device}/{self.kind}"
        return base if self.name is None else f"{base}/{self.name}"


def device_topic(tenant: str, device: str, kind: Kind, name: str | None = None) -> str:
    """Build a device's topic from checked ids.

    Raises:
        ConfigError: An id is malformed.
    """
    check_id(tenant, what="tenant")
    check_id(device, what="device")
    if name is not None:
        check_id(name, what=f"name of a {kind} topic")
    return str(Topic(tenant, device, kind, name))


def parse_topic(text: str) -> Topic:
    """Parse a device's topic.

    Raises:
        MalformedDocumentError: It is not a topic of this tree.
    """
    parts = text.split("/")
    kinds = {kind.value for kind in Kind}
    if len(parts) in (5, 6) and "/".join(parts[:2]) == ROOT and parts[4] in kinds:
        kind = Kind(parts[4])
        name = parts[5] if len(parts) == 6 else None
        ids = [parts[2], parts[3], *([name] if name is not None else [])]
        if all(map(is_id, ids)) and (kind in NAMED) == (name is not None):
            return Topic(parts[2], parts[3], kind, name)
    raise MalformedDocumentError(
        f"{text[:120]!r} is not a topic of the form {ROOT}/TENANT/DEVICE/KIND[/NAME]",
        code="bad-topic",
    )


def fleet_state_topic(tenant: str) -> str:
    """The retained topic that says whether the fleet service is up, and its session."""
    return f"{ROOT}/{check_id(tenant, what='tenant')}/{FLEET_NODE}/state"


def keyring_topic(tenant: str) -> str:
    """The retained topic that holds the newest keyring file, which proves itself."""
    return f"{ROOT}/{check_id(tenant, what='tenant')}/{FLEET_NODE}/keyring"


def device_filters(tenant: str, device: str, *, requests: bool = False) -> list[str]:
    """What one device subscribes to; ``requests`` when somebody may ask it for predictions."""
    asked = [f"{ROOT}/{tenant}/{device}/{Kind.REQUEST}/+"] if requests else []
    return [
        device_topic(tenant, device, Kind.DESIRED),
        f"{ROOT}/{tenant}/{device}/{Kind.ACKED}/+",
        f"{ROOT}/{tenant}/{device}/{Kind.CMD}/+",
        fleet_state_topic(tenant),
        keyring_topic(tenant),
        *asked,
    ]


def fleet_filters(tenant: str) -> list[str]:
    """What the fleet service subscribes to."""
    check_id(tenant, what="tenant")
    base = f"{ROOT}/{tenant}/+"
    heard = [kind for kind in Kind if kind in UP - CLIENTS]
    plain = [kind for kind in heard if kind not in NAMED]
    named = [kind for kind in heard if kind in NAMED]
    return [f"{base}/{kind}" for kind in plain] + [f"{base}/{kind}/+" for kind in named]

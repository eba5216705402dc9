"""A device for tests of the fleet: it has keys, speaks the protocol, and has no model."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgepack_contract.canonical import canonical_json
from edgepack_contract.hardware import Hardware
from edgepack_contract.keys import PrivateKey
from edgepack_contract.messages import (
    Birth,
    Event,
    EventKind,
    Reported,
    SlotBirth,
    SlotReported,
    State,
)
from edgepack_contract.sealing import seal
from edgepack_contract.states import Phase, Presence
from edgepack_contract.topics import Kind, device_topic
from edgepack_contract.window import OutputColumns, WindowBody, place
from edgepack_fleet.devices import add_device
from edgepack_fleet.ingest import Incoming

TENANT = "default"
NOW = 1_800_000_000_000
ONE = "sha256:" + "1" * 64
TWO = "sha256:" + "2" * 64
HARDWARE = Hardware(
    os="linux", architecture="amd64", variant="v3", features=["avx2"], cores=2,
    memory_bytes=2**30, model="Test CPU", onnxruntime="1.31.0",
)  # fmt: skip


class FakeDevice:
    """Makes messages as a device would, sealed with its key."""

    def __init__(self, name: str, *, session: int = 7, slot: str = "digits") -> None:
        self.name = name
        self.session = session
        self.slot = slot
        self.key = PrivateKey.generate()
        self.mac_key = (name.encode() * 32)[:32]
        self.sequence = 0
        self.at = NOW

    def enrol(self, session: Any, labels: dict[str, str] | None = None) -> None:
        add_device(
            session,
            tenant=TENANT,
            device=self.name,
            public_key_pem=self.key.public.pem.decode(),
            mac_key_hex=self.mac_key.hex(),
            labels=labels or {},
            now_ms=NOW,
        )

    def next(self) -> int:
        self.sequence += 1
        return self.sequence

    def sealed(self, kind: Kind, message: Any, name: str | None = None) -> Incoming:
        topic = device_topic(TENANT, self.name, kind, name)
        body = message if isinstance(message, bytes) else canonical_json(message)
        return Incoming(topic, seal(body, topic=topic, key=self.mac_key), self.at)

    def state(self, state: Presence = Presence.ONLINE, sequence: int | None = None) -> Incoming:
        number = self.next() if sequence is None else sequence
        message = State(session=self.session, sequence=number, at=self.at, state=state)
        return self.sealed(Kind.STATE, message)

    def birth(self, **slots: SlotBirth) -> Incoming:
        message = Birth(
            session=self.session, sequence=self.next(), at=self.at, daemon="0.1.0",
            hardware=HARDWARE, onnxruntime="1.31.0", slots=slots, capabilities=[],
        )  # fmt: skip
        return self.sealed(Kind.BIRTH, message)

    def reported(
        self,
        running: str | None,
        *,
        wanted: str | None = None,
        phase: Phase = Phase.SUCCEEDED,
        generation: int = 0,
        refused: str | None = None,
        **more: Any,
    ) -> Incoming:
        slot = SlotReported(
            phase=phase, running=running, version="1.0.0" if running else None,
            previous=None, wanted=wanted or running, **more,
        )  # fmt: skip
        message = Reported(
            session=self.session, sequence=self.next(), at=self.at, epoch=1,
            generation=generation, slots={self.slot: slot}, refused=refused,
        )  # fmt: skip
        return self.sealed(Kind.REPORTED, message)

    def window(self, first: int, last: int | None = None, **body: Any) -> Incoming:
        values = {
            "slot": self.slot, "bundle": ONE, "reference": None, "start_ms": self.at - 1000,
            "end_ms": self.at, "n": 40, "rows": 40,
            "outputs": OutputColumns(classes=[20, 20, 0], score=[0, 0, 40]),
        }  # fmt: skip
        whole = WindowBody(**{**values, **body})
        window = place(whole, session=self.session, first=first, last=last or first)
        return self.sealed(Kind.TELEMETRY, window, self.slot)

    def event(self, sequence: int, kind: EventKind = EventKind.CRASH, **more: Any) -> Incoming:
        values = {"digest": TWO, "code": "crash", "words": "it crashed"}
        message = Event(
            session=self.session, sequence=sequence, at=self.at, slot=self.slot, kind=kind,
            **{**values, **more},
        )  # fmt: skip
        return self.sealed(Kind.EVENT, message, kind.value)


def changed(incoming: Incoming, **fields: Any) -> Incoming:
    """The same message with something else about it."""
    return dataclasses.replace(incoming, **fields)


class Delivered:
    """A publish that the broker acknowledged, or never will."""

    def __init__(self, *, acknowledged: bool = True) -> None:
        self.acknowledged = acknowledged

    def wait_for_publish(self, timeout: float | None = None) -> None:
        if not self.acknowledged:
            raise RuntimeError("the connection went away")

    def is_published(self) -> bool:
        return self.acknowledged


class RecordingPublisher:
    """Remembers what was published."""

    def __init__(self) -> None:
        self.connected = True
        self.acknowledges = True
        self.messages: list[Any] = []

    def publish(self, message: Any) -> Delivered:
        self.messages.append(message)
        return Delivered(acknowledged=self.acknowledges)

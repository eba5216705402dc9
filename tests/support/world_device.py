"""A device daemon in a process of its own, and whoever plays its fleet over a real broker."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from broker_process import Peer
from bundle_samples import PUBLISHER, fixed_key
from world_bundles import MODEL, ROW
from world_process import Answer, Process, ask
from world_waiting import SECONDS, eventually

from edgepack_contract.canonical import canonical_json, decode
from edgepack_contract.errors import DocumentError
from edgepack_contract.instructions import sign_desired
from edgepack_contract.keyring import SCHEMA as KEYRING_SCHEMA
from edgepack_contract.keyring import Keyring, Publisher, sign_keyring
from edgepack_contract.keys import PrivateKey, read_private_key, write_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import (
    Acked,
    Desired,
    Probation,
    Ref,
    Reported,
    SlotDesired,
    State,
)
from edgepack_contract.sealing import seal, unseal
from edgepack_contract.states import Phase
from edgepack_contract.topics import Kind, device_topic

T = TypeVar("T")

OWNER, FLEET = fixed_key(30), fixed_key(31)
PROBATION = Probation(seconds=1.0, max_seconds=10.0, shadow_seconds=2.0)
DAY_MS = 86_400_000
EVERYTHING = 2**53
CONFIG = """\
device = "{name}"
state_dir = "state"
[identity]
key = "device.key"
mac_key = "mac.key"
keyring = "keyring.json"
owner = "{owner}"
[serve]
port = 0
unix_socket = "serve.sock"
[mqtt]
host = "127.0.0.1"
port = {mqtt_port}
[telemetry]
window_seconds = 0.5
health_seconds = 0.5
"""


def keyring_file(version: int, **changes: Any) -> bytes:
    """A keyring of the devices' owner; ``changes`` replace what is in the first one."""
    publisher = Publisher(key=PUBLISHER.public.pem.decode(), names=["*"])
    fleets = [FLEET.public.pem.decode()]
    made = Keyring(
        schema=KEYRING_SCHEMA, version=version, epoch=1, issued=0,
        owners=[OWNER.public.pem.decode()], publishers=[publisher], fleets=fleets,
    )  # fmt: skip
    return sign_keyring(msgspec.structs.replace(made, **changes), [OWNER])


def runs(digest: str) -> Callable[[Reported], bool]:
    """Whether a device says that it runs a bundle in the slot of :data:`MODEL`, and is content."""

    def there(said: Reported) -> bool:
        slot = said.slots.get(MODEL)
        return slot is not None and (slot.phase, slot.running) == (Phase.SUCCEEDED, digest)

    return there


def make_home(home: Path, name: str, mqtt_port: int) -> None:
    """What enrolment leaves on a device."""
    home.mkdir()
    (home / "keyring.json").write_bytes(keyring_file(1))
    write_private_key(home / "device.key", PrivateKey.generate())
    (home / "mac.key").touch(mode=0o600)
    (home / "mac.key").write_text(bytes(range(32)).hex())
    owner = OWNER.public.fingerprint
    (home / "device.toml").write_text(CONFIG.format(name=name, owner=owner, mqtt_port=mqtt_port))


class Device:
    """A daemon on the folder ``home``; ``fleet_key`` signs what it is told."""

    def __init__(self, home: Path, name: str, mqtt_port: int, fleet_key: PrivateKey) -> None:
        self.home, self.name = home, name
        self.mac_key = bytes.fromhex((home / "mac.key").read_text())
        self.generation, self.epoch = 0, 1
        self.environ: dict[str, str] = {}
        self._enrolment = read_private_key(home / "device.key").public.fingerprint
        self._fleet_key = fleet_key
        self._peer = Peer(mqtt_port, f"edgepack/v1/default/{name}/#")
        self._process: Process | None = None
        self._told: dict[str, SlotDesired] = {}

    @property
    def process(self) -> Process:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start the daemon, once more or for the first time; it answers when this returns.

        What the one before it said is forgotten: nobody must take that for the new one's word.
        """
        self.forget()
        config = self.home / "device.toml"
        self._process = Process(
            self.home / "daemon.log", "edgepack_cli", "run", "--config", config, **self.environ
        )
        eventually(self._lives, lambda: f"a daemon that lives:\n{self.process.said}")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
        self._peer.close()

    def topic(self, kind: Kind, name: str | None = None) -> str:
        return device_topic("default", self.name, kind, name)

    def predict(self, body: Any = None, path: str = f"/v1/models/{MODEL}:predict") -> Answer:
        """Ask the device for a prediction over its socket."""
        body = {"instances": [ROW]} if body is None else body
        return ask(self.home / "serve.sock", "POST", path, body)

    def serves(self) -> bool:
        """Whether there is somebody who answers with a prediction."""
        try:
            return self.predict().status == 200
        except OSError:
            return False

    def version(self) -> str:
        """The version that answers now; it must."""
        answer = self.predict()
        assert answer.status == 200, answer.body
        found: str = answer.json["model_version"]
        return found

    def document(self, slots: dict[str, SlotDesired], **changes: Any) -> Desired:
        """A desired document for this device of the generation that is in force."""
        now = time.time_ns() // 1_000_000
        made = Desired(
            tenant="default", device=self.name, enrolment=self._enrolment, epoch=self.epoch,
            generation=self.generation, issued=now, expires=now + DAY_MS, slots=slots,
        )  # fmt: skip
        return msgspec.structs.replace(made, **changes)

    def signed(self, desired: Desired, key: PrivateKey | None = None) -> bytes:
        return sign_desired(desired, key or self._fleet_key)

    def wish(
        self, digest: str, source: str, *, probation: Probation = PROBATION, retain: bool = True
    ) -> None:
        """Tell the device, as its fleet would, to run a bundle."""
        self.generation += 1
        ref = Ref(name=MODEL, digest=digest, sources=[source])
        self._told = {MODEL: SlotDesired(active=ref, probation=probation)}
        self.send(self.topic(Kind.DESIRED), self.signed(self.current()), retain=retain)

    def current(self, **changes: Any) -> Desired:
        """What the device was told last, issued again."""
        return self.document(**{"slots": self._told} | changes)

    def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish something, as anybody on the broker could."""
        info = self._peer.client.publish(topic, payload, 1, retain)
        info.wait_for_publish(SECONDS)
        assert info.is_published()

    def acknowledge(self, session: int, through: int = EVERYTHING) -> None:
        """Have committed what the device sent, as a fleet: of what waits, only so much goes out."""
        topic = self.topic(Kind.ACKED, MODEL)
        acked = canonical_json(Acked(session=session, through=through))
        self.send(topic, seal(acked, topic=topic, key=self.mac_key))

    def forget(self) -> None:
        """Hear only what comes from now on."""
        while not self._peer.heard.empty():
            self._peer.heard.get()

    def hear(self, topic: str, shape: type[T], condition: Callable[[T], Any]) -> T:
        """Wait for a message that the device sealed; whatever comes before it is forgotten."""
        deadline, seen = time.monotonic() + SECONDS, []
        while time.monotonic() < deadline:
            try:
                heard, payload = self._peer.heard.get(timeout=1.0)
            except queue.Empty:
                continue
            message = self._opened(payload, topic, shape) if heard == topic else None
            if message is not None:
                seen.append(message)
                if condition(message):
                    return message
        raise AssertionError(f"not heard on {topic}; last were {seen[-3:]}\n{self._said}")

    def hear_reported(self, condition: Callable[[Reported], Any]) -> Reported:
        return self.hear(self.topic(Kind.REPORTED), Reported, condition)

    def hear_state(self, condition: Callable[[State], Any]) -> State:
        return self.hear(self.topic(Kind.STATE), State, condition)

    def hear_raw(self, topic: str) -> bytes:
        """Wait for the next message on a topic, as it came."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            heard, payload = self._peer.heard.get(timeout=SECONDS)
            if heard == topic:
                return payload
        raise AssertionError(f"nothing was heard on {topic}")

    def wait_tidy(self) -> None:
        """Wait until nothing half-written is there; a write under way ends within moments."""
        eventually(lambda: not self._leftovers(), lambda: f"a tidy disk: {self._leftovers()}")

    @property
    def _said(self) -> str:
        return "" if self._process is None else self._process.said

    def _leftovers(self) -> list[str]:
        slots = self.home / "state" / "slots"
        staged = slots.glob("*/staging/*")
        return sorted(str(path) for path in [*staged, *slots.rglob("*.tmp-*")])

    def _opened(self, payload: bytes, topic: str, shape: type[T]) -> T | None:
        """None for what is forged or malformed: tests send such things in the device's name."""
        limit = LIMITS.message_bytes
        try:
            body = unseal(payload, topic=topic, key=self.mac_key, max_bytes=limit)
            return decode(body, shape, what="message", max_bytes=limit)
        except DocumentError:
            return None

    def _lives(self) -> bool:
        assert self.process.process.poll() is None, self.process.said
        try:
            return ask(self.home / "serve.sock", "GET", "/v2/health/live").status == 200
        except OSError:
            return False

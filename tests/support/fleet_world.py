"""A whole fleet service without broker and HTTP, and devices that obey what it publishes.

The clock is the test's: a step is one second in which the service ticks, messages go out, and
every device answers with real, sealed messages.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from bundle_samples import PUBLISHER, keyring, one_variant
from fleet_devices import NOW, FakeDevice, RecordingPublisher

from edgepack_contract.description import Budgets
from edgepack_contract.keys import PrivateKey
from edgepack_contract.layout import write_bundle
from edgepack_contract.messages import Desired
from edgepack_contract.states import Phase, Presence
from edgepack_contract.window import OutputColumns, Pairs
from edgepack_fleet.bundles import BundleStore
from edgepack_fleet.config import TimingsConfig
from edgepack_fleet.controller import Controller
from edgepack_fleet.db.database import Database
from edgepack_fleet.desired import DesiredWriter
from edgepack_fleet.groups import create_group
from edgepack_fleet.ingest import Ingest
from edgepack_fleet.outbox import publish_pending
from edgepack_fleet.rollout.model import RolloutOptions
from edgepack_fleet.rollouts import Request, load_rollout, start_rollout
from edgepack_fleet.trust import Trust

SLOT = "digits"
PROBATION_STEPS = 4
FLEET_KEY = PrivateKey.generate()
OPTIONS = RolloutOptions(
    stages=["1", "100%"], soak_seconds=8.0, probation_seconds=4.0, max_wait_seconds=120.0,
    offer_deadline_seconds=30.0, rollback_deadline_seconds=60.0,
    seed="the same canary every time",
)  # fmt: skip

AT_ONCE = msgspec.structs.replace(OPTIONS, stages=["100%"], soak_seconds=0.0)


class ObedientDevice(FakeDevice):
    """Installs what it is told, watches it, and counts forty answers a second.

    ``bad`` holds digests whose model always says the same; ``broken`` those that do not install.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.running: str | None = None
        self.previous: str | None = None
        self.wanted: str | None = None
        self.generation = 0
        self.steps = 0
        self.phase = Phase.IDLE
        self.windows = 0
        self.bad: set[str] = set()
        self.broken: set[str] = set()
        self.offline = False
        self.told: list[tuple[int, str]] = []

    def hear(self, envelope: bytes) -> None:
        payload = base64.b64decode(msgspec.json.decode(envelope)["payload"])
        desired = msgspec.json.decode(payload, type=Desired)
        active = desired.slots[SLOT].active
        assert active is not None
        self.told.append((desired.generation, active.digest))
        if desired.generation <= self.generation:
            return
        self.generation = desired.generation
        if active.digest != self.wanted:
            self.wanted, self.steps, self.phase = active.digest, 0, Phase.DOWNLOADING

    def step(self) -> list[Any]:
        """A second passes: what the device says at its end."""
        if self.phase is Phase.DOWNLOADING:
            self._install()
        elif self.phase is Phase.PROBATION:
            self.steps += 1
            if self.steps >= PROBATION_STEPS:
                self.phase = Phase.SUCCEEDED
        said = [self.state(), self._report()]
        if self.running is not None:
            self.windows += 1
            said.append(self.window(self.windows, **self._counts()))
        return said

    def _install(self) -> None:
        assert self.wanted is not None
        if self.wanted in self.broken:
            self.phase = Phase.REJECTED
        elif self.wanted == self.running:
            self.phase = Phase.SUCCEEDED
        else:
            self.previous, self.running = self.running, self.wanted
            self.phase = Phase.PROBATION

    def _report(self) -> Any:
        trouble = {"code": "bad-signature", "words": "it is not signed by a publisher"}
        return self.reported(
            self.running, wanted=self.wanted, phase=self.phase, generation=self.generation,
            **(trouble if self.phase is Phase.REJECTED else {}),
        )  # fmt: skip

    def _counts(self) -> dict[str, Any]:
        classes = [0] * 8 + [40, 0, 0] if self.running in self.bad else [4] * 10 + [0]
        agree = 4 if self.running in self.bad else 39
        pairs = None
        if self.previous is not None:
            flips = {"0>8": 40 - agree}
            pairs = Pairs(against=self.previous, n=40, agree=agree, flips=flips)
        outputs = OutputColumns(classes=classes, score=[0] * 19 + [40])
        return {"bundle": self.running, "outputs": outputs, "pairs": pairs}


class World:
    """The service on a folder, and its devices. It can be stopped and opened again."""

    def __init__(self, folder: Path, devices: int = 3) -> None:
        self.folder = folder
        self.now_ms = NOW
        self.publisher = RecordingPublisher()
        self.trust = Trust(b"", keyring(), FLEET_KEY)
        self.devices = [ObedientDevice(f"pi-{number}") for number in range(1, devices + 1)]
        self.open()
        with self.database.write() as session:
            for device in self.devices:
                device.enrol(session)
            create_group(session, name="all", labels={}, now_ms=NOW)
        self.ingest.commit([device.birth() for device in self.devices])

    def open(self, holder: str = "first") -> None:
        self.database = Database(f"sqlite:///{self.folder / 'fleet.db'}")
        self.store = BundleStore(self.folder, self.database, lambda: self.trust.keyring)
        self.store.prepare()
        self.writer = DesiredWriter(
            tenant="default", trusted=lambda: self.trust, base_url="http://127.0.0.1:8080",
            ttl_ms=7 * 86_400_000, refresh_ms=86_400_000,
        )  # fmt: skip
        self.ingest = Ingest(self.database, tenant="default", publish=self.publisher.publish)
        self.controller = self.make_controller(holder)
        self.controller.take_over()

    def make_controller(self, holder: str) -> Controller:
        return Controller(
            self.database, self.writer, timings=TimingsConfig(), holder=holder,
            now_ms=lambda: self.now_ms, on_commit=lambda: None,
        )  # fmt: skip

    def push(self, version: str, **changes: Any) -> str:
        path = self.folder / f"{version}.edgepack"
        # a latency budget would need 1,900 requests of each arm: too long a story for most tests
        content = one_variant(**{"version": version, "budgets": Budgets(), **changes})
        digest = write_bundle(path, content, signer=PUBLISHER)
        self.store.push(path, now_ms=self.now_ms, record=lambda *_: None)
        return digest

    def start(self, version: str, options: RolloutOptions = OPTIONS, group: str = "all") -> str:
        with self.database.write() as session:
            request = Request(SLOT, version, group, options, "ann")
            return start_rollout(session, self.writer, request, now_ms=self.now_ms).rollout.id

    def rollout(self, rollout_id: str) -> Any:
        with self.database.read() as session:
            return load_rollout(session, rollout_id)

    def deliver(self) -> None:
        """What is in the outbox goes out, and devices that are there hear it."""
        before = len(self.publisher.messages)
        while publish_pending(self.database, self.publisher, now_ms=self.now_ms):
            pass
        for message in self.publisher.messages[before:]:
            _, _, _, name, kind = message.topic.split("/")
            device = next(one for one in self.devices if one.name == name)
            if kind == "desired" and message.payload and not device.offline:
                device.hear(message.payload)

    def step(self) -> None:
        self.now_ms += 1000
        self.controller.tick()
        self.deliver()
        said = []
        for device in self.devices:
            device.at = self.now_ms
            if not device.offline:
                said += device.step()
        self.ingest.commit(said)

    def run(self, until: Callable[[], bool], steps: int = 400) -> None:
        for _ in range(steps):
            if until():
                return
            self.step()
        raise AssertionError(f"not after {steps} s")

    def lose(self, device: ObedientDevice) -> None:
        """A device loses power: the broker says so in its name."""
        device.offline = True
        self.ingest.commit([device.state(Presence.LOST, sequence=0)])

    def roll_out(self, version: str, options: RolloutOptions = OPTIONS) -> str:
        """Start a rollout and see it end."""
        rollout_id = self.start(version, options)
        self.run(lambda: self.rollout(rollout_id).finished_ms is not None)
        return rollout_id

    def close(self) -> None:
        self.database.close()

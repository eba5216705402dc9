"""A fleet in memory: devices that install, answer, fall back and report, a second at a time.

It stands on the other side of ``advance``: what it is told comes from commands alone, what it tells
is evidence alone. Answers of models are drawn row by row; devices walk permutations of a pool of
labelled rows without replacement, as in the demo.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from edgepack_contract.messages import SlotReported
from edgepack_contract.states import Phase
from edgepack_fleet.rollout import actions
from edgepack_fleet.rollout.evidence import Block, DeviceEvidence, Evidence
from edgepack_fleet.rollout.gates import BundleFacts
from edgepack_fleet.rollout.machine import Subject, Target, advance, plan
from edgepack_fleet.rollout.model import FINAL_STATES, Decision, Rollout, RolloutOptions

CLASSES = 10
SCORE_BINS = 20
T0 = 1_700_000_000_000

OLD = "sha256:" + "0" * 63 + "a"
NEW = "sha256:" + "0" * 63 + "b"

DEMO = RolloutOptions(
    stages=["1", "50%", "100%"],
    soak_seconds=8.0,
    probation_seconds=4.0,
    max_wait_seconds=60.0,
    offer_deadline_seconds=30.0,
    rollback_deadline_seconds=60.0,
)


@dataclass(frozen=True)
class Model:
    """How a model answers: like the previous one with this probability, else by ``elsewhere``.

    ``sure`` is how its top scores lean: 1 is uniform, larger is surer.
    """

    agreement: float
    elsewhere: tuple[float, ...] = (1.0,) * CLASSES
    sure: float = 6.0
    error_rate: float = 0.0
    nonfinite_rate: float = 0.0


GOOD = Model(agreement=0.97)
BAD = Model(agreement=0.05, elsewhere=(0, 1, 0, 0, 0, 0, 0, 0, 6, 1), sure=40.0)
"""Fitted on pixels 0..255 and served 0..1: nearly always the same answer, and very sure of it."""


@dataclass
class Device:
    """One device; ``story`` is what happens to it when it is told to install."""

    id: str
    rng: random.Random
    running: str | None = OLD
    previous: str | None = None
    story: str = "installs"
    online: bool = True
    burst: float = 0.0
    rate: int = 40
    phase: Phase = Phase.IDLE
    wanted: str | None = None
    told: str | None = None
    generation_desired: int = 0
    generation_seen: int = 0
    changed_s: int = 0
    removed: bool = False
    pool: list[int] = field(default_factory=list)
    label: int = 0

    def draw_label(self) -> int:
        """The next row's class: by permutation, or in bursts of the same class."""
        if self.burst and self.rng.random() < self.burst:
            return self.label
        if not self.pool:
            self.pool = [row % CLASSES for row in range(900)]
            self.rng.shuffle(self.pool)
        self.label = self.pool.pop()
        return self.label

    def tell(self, digest: str) -> None:
        if digest != self.told:
            self.told = digest
            self.generation_desired += 1

    def step(self, second: int, probation_s: int) -> None:
        """Go one second further with what it was told."""
        if not self.online:
            return
        if self.generation_seen < self.generation_desired:
            self.generation_seen, self.wanted = self.generation_desired, self.told
            self._enter(Phase.DOWNLOADING if self.wanted != self.running else Phase.IDLE, second)
        elif self.phase is Phase.DOWNLOADING and self.story == "fails":
            self._enter(Phase.FAILED, second)
        elif self.phase is Phase.DOWNLOADING and self.story != "hangs":
            self.previous, self.running = self.running, self.wanted
            self._enter(Phase.PROBATION, second)
        elif self.phase is Phase.PROBATION and self.story == "falls back":
            self.running, self.previous = self.previous, None
            self._enter(Phase.FELL_BACK, second)
        elif self.phase is Phase.PROBATION and second - self.changed_s >= probation_s:
            self._enter(Phase.SUCCEEDED, second)

    def _enter(self, phase: Phase, second: int) -> None:
        self.phase, self.changed_s = phase, second

    def evidence(self) -> DeviceEvidence:
        report = SlotReported(
            phase=self.phase,
            running=self.running,
            version={OLD: "1.0.0", NEW: "1.1.0"}.get(self.running or ""),
            previous=self.previous,
            wanted=self.wanted,
        )
        return DeviceEvidence(
            online=self.online,
            reported=report,
            generation_seen=self.generation_seen,
            generation_desired=self.generation_desired,
            removed=self.removed,
        )

    def block(self, now_ms: int, new: Model) -> Block | None:
        """A second of traffic through whatever it runs."""
        if not self.online or self.running is None or not self.rate:
            return None
        model = new if self.running == NEW else Model(agreement=1.0)
        shadow = self.running == NEW and self.previous is not None
        counts, scores, agree, errors = Counter[int](), Counter[int](), 0, 0
        for _ in range(self.rate):
            label = self.draw_label()
            old = label if self.rng.random() < 0.96 else self.rng.randrange(CLASSES)
            same = self.rng.random() < model.agreement
            answer = old if same else self.rng.choices(range(CLASSES), model.elsewhere)[0]
            counts[answer] += 1
            scores[int(SCORE_BINS * max(self.rng.random() ** (1 / model.sure), 0.0))] += 1
            agree += answer == old
            errors += self.rng.random() < model.error_rate
        return Block(
            start_ms=now_ms,
            n=self.rate + errors,
            errors=errors,
            nonfinite=sum(self.rng.random() < model.nonfinite_rate for _ in range(self.rate)),
            classes=[counts[label] for label in range(CLASSES)],
            score=[scores[place] for place in range(SCORE_BINS)],
            pairs_against=self.previous if shadow else None,
            pairs_n=self.rate if shadow else 0,
            pairs_agree=agree if shadow else 0,
        )


class Fleet:
    """Devices, a clock that ticks by the second, and a rollout on it."""

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        model: Model = GOOD,
        options: RolloutOptions = DEMO,
        history_s: int = 40,
        facts: BundleFacts | None = None,
        **device: object,
    ) -> None:
        self.model = model
        self.second = 0
        self.blocks: dict[str, dict[str, list[Block]]] = {}
        self.devices = {
            name: Device(name, random.Random(f"{seed}-{name}"), **device)  # type: ignore[arg-type]
            for name in (f"gw-{number}" for number in range(1, count + 1))
        }
        self.decisions: list[Decision] = []
        for device_ in self.devices.values():
            device_.wanted = device_.told = device_.running
        for _ in range(history_s):
            self._traffic()
        self.take(self.planned(options, facts or BundleFacts(), seed))

    @property
    def now_ms(self) -> int:
        return T0 + 1000 * self.second

    @property
    def rollout(self) -> Rollout:
        return self.decisions[-1].rollout

    def planned(self, options: RolloutOptions, facts: BundleFacts, seed: int) -> Decision:
        targets = [
            Target(device=name, hardware_class="x", running=device.running,
                   version=None if device.running is None else "1.0.0")
            for name, device in self.devices.items()
        ]  # fmt: skip
        subject = Subject(
            id=f"digits-{seed}", slot="digits", group="all", bundle="digits", version="1.1.0",
            digest=NEW, facts=facts,
        )  # fmt: skip
        return plan(subject, targets, options, self.now_ms)

    def start(self) -> Fleet:
        self.take(actions.start(self.rollout, self.now_ms, actor="ann"))
        return self

    def take(self, decision: Decision) -> None:
        """Do what a decision says."""
        self.decisions.append(decision)
        for command in decision.commands:
            self.devices[command.device].tell(command.digest)

    def evidence(self) -> Evidence:
        return Evidence(
            devices={name: device.evidence() for name, device in self.devices.items()},
            blocks=self.blocks,
        )

    def tick(self, seconds: int = 1) -> None:
        """A second passes, then the fleet decides."""
        for _ in range(seconds):
            for device in self.devices.values():
                device.step(self.second, int(self.rollout.options.probation_seconds))
            self._traffic()
            self.take(advance(self.rollout, self.evidence(), self.now_ms))

    def run(self, limit_s: int = 600) -> Rollout:
        """Tick until the rollout has ended, or is paused."""
        for _ in range(limit_s):
            if self.rollout.state in FINAL_STATES or self.rollout.state == "paused":
                break
            self.tick()
        return self.rollout

    def events(self) -> list:
        return [event for decision in self.decisions for event in decision.events]

    def _traffic(self) -> None:
        started = self.now_ms
        self.second += 1
        for name, device in self.devices.items():
            block = device.block(started, self.model)
            if block is not None and device.running is not None:
                self.blocks.setdefault(name, {}).setdefault(device.running, []).append(block)

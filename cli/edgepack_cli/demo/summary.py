"""What the demo showed: computed from the clients' own records, cross-checked with telemetry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack_cli.demo.clients import Answer, DeviceClient, Outcome
from edgepack_cli.demo.supervisor import Child
from edgepack_cli.output import bytes_text, table

OUTAGE_MARGIN_SECONDS = 1.0
"""A request that was in flight when its daemon was killed ends a moment before or after."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the demo, in monotonic seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Served:
    """What the clients of all devices saw."""

    served: int
    failed: int
    refused: int
    failures: list[str]


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """Requests by version: what the clients counted, and what telemetry says."""

    clients: dict[str, int]
    telemetry: dict[str, int]

    @property
    def equal(self) -> bool:
        """Whether both say exactly the same."""
        return self.clients == self.telemetry

    def agrees(self, *, lost: int) -> bool:
        """Whether telemetry invents nothing, of any version, and lacks at most ``lost``."""
        missing = Counter(self.clients)
        missing.subtract(self.telemetry)
        return min(missing.values(), default=0) >= 0 and missing.total() <= lost


def count_outcomes(clients: Iterable[DeviceClient], devices: Mapping[str, Child]) -> Served:
    """Served, failed, and refused because the daemon had been killed and was not back yet."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for client in clients:
        for answer in client.answers:
            kind = _blame(answer, devices[client.device])
            counts[kind] += 1
            if kind == Outcome.FAILED and len(failures) < 5:
                failures.append(f"{client.device}: {answer.words}")
    return Served(counts[Outcome.SERVED], counts[Outcome.FAILED], counts[Outcome.DOWN], failures)


def accuracy_by_phase(clients: Sequence[DeviceClient], phases: Sequence[Phase]) -> str:
    """A table: for every phase and version, how many answers were right."""
    rows = []
    for phase in phases:
        answers = [
            answer
            for client in clients
            for answer in client.answers
            if answer.outcome == Outcome.SERVED and phase.start <= answer.at < phase.end
        ]
        for version in sorted({answer.version for answer in answers}):
            own = [answer.correct for answer in answers if answer.version == version]
            right = sum(own)
            rows.append((phase.name, version, f"{len(own)}", f"{100 * right / len(own):.1f} %"))
    return table(("WHEN", "VERSION", "ANSWERS", "RIGHT"), rows)


def cross_check(
    clients: Iterable[DeviceClient],
    stats: Sequence[Mapping[str, Any]],
    versions: Mapping[str, str],
) -> CrossCheck:
    """Compare the clients' counts with the fleet's totals, by version.

    Args:
        clients: The demo's clients.
        stats: Entries of ``/stats``: totals of one device and bundle.
        versions: Of the bundles, by digest.
    """
    own = Counter(
        answer.version
        for client in clients
        for answer in client.answers
        if answer.outcome == Outcome.SERVED
    )
    told: Counter[str] = Counter()
    for entry in stats:
        told[versions.get(entry["digest"], "unknown")] += entry["n"]
    return CrossCheck(dict(sorted(own.items())), {k: n for k, n in sorted(told.items()) if n})


def stage_times(rollouts: Sequence[Mapping[str, Any]]) -> str:
    """A table of how long every stage took, by the fleet's clock."""
    rows = []
    for rollout in rollouts:
        for stage in rollout["stages"]:
            opened, finished = stage["opened_ms"], stage["finished_ms"]
            took = f"{(finished - opened) / 1000:.1f} s" if opened and finished else "-"
            devices = str(len(stage["devices"]))
            rows.append((rollout["version"], stage["target"], devices, stage["state"], took))
    return table(("VERSION", "STAGE", "DEVICES ADDED", "STATE", "TOOK"), rows)


def traffic_text(messages: Mapping[str, int]) -> str:
    """How many bytes went over MQTT, by direction."""
    parts = [f"{bytes_text(size)} {name}" for name, size in messages.items()]
    return f"MQTT payloads: {', '.join(parts)}"


def _blame(answer: Answer, child: Child) -> Outcome:
    if answer.outcome != Outcome.DOWN:
        return answer.outcome
    down = child.was_down(answer.at, margin=OUTAGE_MARGIN_SECONDS)
    return Outcome.DOWN if down else Outcome.FAILED

"""One slot of the daemon: what serves, and the threads that install into it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import msgspec

from edgepack_contract.messages import SlotBirth, SlotReported
from edgepack_contract.reference import reference_id
from edgepack_contract.states import Phase
from edgepack_contract.window import DriftVerdict
from edgepack_runtime.activation.agent import SlotAgent
from edgepack_runtime.candidate_runtime import CandidateRuntime
from edgepack_runtime.config import SlotConfig
from edgepack_runtime.serving.slot import Slot
from edgepack_runtime.serving_host import ActiveHost, CandidateHost
from edgepack_runtime.telemetry.horizons import DriftReport


@dataclass(slots=True)
class SlotRuntime:
    """A slot with the threads that install into it.

    Attributes:
        slot: What serves.
        agent: Installs the active model.
        host: What it installs into.
        beside: What the second model is installed into.
        candidate: Installs the second model.
        alpha: The share of false alarms that the fleet allows a drift test.
        drift: The last verdict.
    """

    slot: Slot
    agent: SlotAgent
    host: ActiveHost
    beside: CandidateHost
    candidate: CandidateRuntime
    alpha: float = 1e-6
    drift: DriftVerdict | None = None

    @property
    def in_probation(self) -> bool:
        """Whether the device is watching a new model."""
        return self.agent.state.phase == Phase.PROBATION

    @property
    def alive(self) -> bool:
        """Whether the threads run; when not, the daemon should end and be started anew."""
        return self.agent.alive and self.candidate.alive

    def status(self) -> SlotReported:
        """How the slot is now, with its candidate."""
        said, words = self.agent.status(), self.host.words
        return msgspec.structs.replace(
            said, words=words or said.words, candidate=self.candidate.status()
        )

    def reconfigure(self, settled: SlotConfig) -> None:
        """Take up settings; they count from the next model on that is loaded here."""
        self.slot.batching = settled.batching
        self.host.threads = self.beside.threads = settled.threads

    def birth(self) -> SlotBirth | None:
        """What the slot runs, None when it is nothing."""
        model = self.slot.active
        if model is None:
            return None
        return SlotBirth(
            bundle=model.description.name,
            version=model.version,
            digest=model.digest,
            variant=model.description.variant,
            reference=reference_id(model.reference) if model.reference else "",
        )

    async def newly_drifted(self) -> DriftReport | None:
        """Judge the inputs of the active model; the report when they have changed just now."""
        tenure = self.slot.tenure
        evidence = tenure.aggregator.drift_evidence() if tenure else None
        if tenure is None or evidence is None:
            return None
        report = await asyncio.to_thread(evidence.judge, self.alpha)
        tenure.aggregator.settle(report)
        before, self.drift = self.drift, report.verdict
        return report if report.verdict == "drift" and before != "drift" else None


def now_ms() -> int:
    """Wall clock, milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000

"""What a slot is made of, and how it waits."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgepack_runtime.activation.history import History
from edgepack_runtime.activation.host import SlotHost
from edgepack_runtime.activation.installer import Installer
from edgepack_runtime.activation.journal import Journal
from edgepack_runtime.inference.probe import ProbeResult
from edgepack_runtime.storage.store import Store


@dataclass(frozen=True, slots=True)
class SlotParts:
    """The parts of one slot: its durable state, its bundles, who fetches and who serves them.

    ``probe`` tries the variant in a folder in a child process. ``floor_elsewhere`` is the least
    security version of a bundle name that other slots of this device ask for. ``factory`` is the
    bundle file that the machine was delivered with, if it is there.
    """

    journal: Journal
    history: History
    store: Store
    installer: Installer
    host: SlotHost
    probe: Callable[[Path], ProbeResult]
    floor_elsewhere: Callable[[str], int] = lambda _name: 0
    factory: Path | None = None


_MOST_DOUBLED = 30
"""Past any longest wait, and no overflow after a year of tries."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often to try and how long to wait: seconds, doubled each time, spread by half."""

    tries: int = 8
    first: float = 1.0
    longest: float = 60.0

    def delay(self, tried: int, rng: random.Random) -> float:
        """Seconds to wait after ``tried`` tries."""
        doubled = self.first * 2.0 ** min(tried - 1, _MOST_DOUBLED)
        return min(self.longest, doubled) * rng.uniform(0.5, 1.5)


@dataclass(frozen=True, slots=True)
class Timing:
    """How a slot waits.

    ``backoff`` is for a source that does not answer, ``revival`` for what worked last, while
    nothing does; its tries have no end.
    ``watching`` and ``idle`` are the seconds between two looks at a probation, and at nothing in
    particular, ``unwritten`` those until an order that found no room is tried again. ``clock``
    gives monotonic seconds, ``now_ms`` milliseconds since 1970 UTC; ``rng`` spreads the retries of
    many devices.
    ``wait`` stands in for waiting on the inbox; a test moves its clock there.
    """

    backoff: Backoff = field(default_factory=Backoff)
    revival: Backoff = field(default_factory=lambda: Backoff(first=60.0, longest=3600.0))
    watching: float = 0.25
    idle: float = 60.0
    unwritten: float = 5.0
    clock: Callable[[], float] = time.monotonic
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    rng: random.Random = field(default_factory=random.Random)
    wait: Callable[[float], bool] | None = None

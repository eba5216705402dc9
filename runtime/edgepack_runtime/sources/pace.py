"""How many bytes a second may come in: a bucket of allowances that all slots draw from.

The arithmetic is a token bucket that holds at most a quarter of a second, so that whatever the
slots do the sum over a few seconds is the cap. Time is an argument.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

BURST_SECONDS = 0.25
QUANTUM_BYTES = 8 * 1024
"""Less is not handed out while more will do: a byte at a time would be all overhead."""

LEAST_WAIT = 0.001


@dataclass(frozen=True, slots=True)
class Allowance:
    """``size`` bytes may be read now; when that is none, ask again in ``wait`` seconds."""

    size: int
    wait: float = 0.0


class Pace:
    """A cap shared by whoever draws from it. Safe between threads.

    Args:
        rate: Bytes a second; 0 for no cap.
    """

    def __init__(self, rate: int = 0) -> None:
        self._lock = threading.Lock()
        self._rate = rate
        self._level = 0.0
        self._at: float | None = None

    @property
    def rate(self) -> int:
        """Bytes a second; 0 for no cap."""
        return self._rate

    def set_rate(self, rate: int) -> None:
        """Change the cap, also for what is under way."""
        with self._lock:
            self._rate = rate
            self._level = min(self._level, rate * BURST_SECONDS)

    def allow(self, most: int, now: float) -> Allowance:
        """What may be read at ``now`` (monotonic seconds) of ``most`` bytes."""
        with self._lock:
            if not self._rate:
                return Allowance(most)
            full = max(1.0, self._rate * BURST_SECONDS)
            since = 0.0 if self._at is None else max(0.0, now - self._at)
            self._level, self._at = min(full, self._level + since * self._rate), now
            enough = max(1.0, min(most, QUANTUM_BYTES, full / 2))
            if self._level >= enough:
                return Allowance(min(most, int(self._level)))
            return Allowance(0, max(LEAST_WAIT, (enough - self._level) / self._rate))

    def spend(self, size: int) -> None:
        """Count bytes that were read."""
        with self._lock:
            if self._rate:
                self._level -= size

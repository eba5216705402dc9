"""The time that is believed: the system's clock, but never earlier than what is known to have been.

Only a *lower bound* of the time can be proven to a device: the day this version was released, and
the dates of documents that a trusted key has signed. A clock that is behind that bound (a board
without a battery starts in 1970) is not believed; whether something has expired is then judged by
the bound, and whether something is not valid *yet* cannot be judged at all. A clock that is ahead
cannot be noticed, and must not be remembered: the system's clock never feeds the bound, so that a
device which once was in 2099 is well again as soon as its clock is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

BUILT_MS = 1_795_219_200_000
"""2026-11-21T00:00:00Z, raised with every release: no clock of a device that runs this is earlier.

Milliseconds since 1970 UTC.
"""


class TrustedClock:
    """The time, from a system clock and a floor that verified dates raise. Safe between threads.

    Args:
        system_ms: The system's clock, milliseconds since 1970 UTC.
        floor_ms: What was learnt in earlier runs.
        owner_ms: The newest date that the owners have signed.
    """

    def __init__(
        self, system_ms: Callable[[], int], *, floor_ms: int = 0, owner_ms: int = 0
    ) -> None:
        self._system_ms = system_ms
        self._owner_ms = max(BUILT_MS, owner_ms)
        self._floor_ms = max(self._owner_ms, floor_ms)
        self._lock = threading.Lock()

    @property
    def floor_ms(self) -> int:
        """It is not earlier than this."""
        return self._floor_ms

    @property
    def is_behind(self) -> bool:
        """Whether the system's clock is wrong for certain: earlier than what has been."""
        return self._system_ms() < self._floor_ms

    def now_ms(self) -> int:
        """The time: milliseconds since 1970 UTC, a lower bound while :attr:`is_behind`."""
        return max(self._system_ms(), self._floor_ms)

    def sure_ms(self) -> int:
        """As :meth:`now_ms`, but by what the owners dated and the release, for judging TLS.

        A stolen fleet key can date a document in 2090 and make a device without a clock believe it.
        That must not keep the device from hearing the keyring which is the way out.
        """
        return max(self._system_ms(), self._owner_ms)

    def learn(self, dated_ms: int) -> bool:
        """Take note of the date of a document whose signature was verified.

        Returns:
            Whether the floor has risen, and should be kept for the next run.
        """
        with self._lock:
            risen = dated_ms > self._floor_ms
            self._floor_ms = max(self._floor_ms, dated_ms)
        return risen

    def learn_of_owner(self, dated_ms: int) -> bool:
        """As :meth:`learn`, of a keyring, whose date only the owners can have written."""
        with self._lock:
            self._owner_ms = max(self._owner_ms, dated_ms)
        return self.learn(dated_ms)

    def forget(self, dated_ms: int) -> None:
        """Begin anew from a keyring's date: a new epoch undoes what a stolen fleet key dated."""
        with self._lock:
            self._owner_ms = self._floor_ms = max(BUILT_MS, dated_ms)

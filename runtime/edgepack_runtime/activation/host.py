"""What an install asks of the process that serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from edgepack_contract.messages import EventKind, SlotReported
from edgepack_runtime.activation.guard import Counters


class SlotHost(Protocol):
    """The serving side of one slot. Called from the slot's own thread, one call at a time."""

    def serve(self, folder: Path, digest: str, *, keep_previous: bool) -> None:
        """Load the variant in ``folder``, warm it, and let it answer from now on.

        The model that answered until now goes on answering until then; with ``keep_previous`` it
        stays loaded afterwards, memory permitting, and sees the same inputs off the hot path. Doing
        it twice is harmless.

        Raises:
            EdgepackError: It does not load or its warm-up fails; the former model still answers.
        """
        ...

    def wants(self, digest: str) -> bool:
        """Whether a bundle that worked here, and is lost, may come back by itself."""
        ...

    def make_room(self, folder: Path) -> bool:
        """Let the model that answers go when memory is too short to try ``folder`` beside it.

        Requests get 503 until :meth:`serve` brings it back.

        Returns:
            False when it stays: there is none, or it is not in the way.
        """
        ...

    def unserve(self) -> None:
        """Answer 503 from now on, and drop every model of the slot."""
        ...

    def counters(self) -> Counters:
        """What was counted of the model that answers since it was loaded."""
        ...

    def throttled(self) -> bool:
        """Whether the machine runs slower than it should, because of heat or supply."""
        ...

    def run_golden(self) -> None:
        """Check the model that answers against its golden inputs.

        Raises:
            EdgepackError: It answers otherwise.
        """
        ...

    def end_shadow(self) -> None:
        """Drop the previous model that was kept loaded."""
        ...

    def report(self, reported: SlotReported) -> None:
        """Say how the slot is now; a failure changes nothing."""
        ...

    def event(
        self,
        kind: EventKind,
        *,
        digest: str | None,
        code: str,
        words: str,
        evidence: dict[str, Any],
    ) -> None:
        """Keep an event for the fleet, durably."""
        ...

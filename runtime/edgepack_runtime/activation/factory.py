"""When a slot takes the bundle that this machine was delivered with: the last rung before nothing.

Such a bundle is verified, probed and watched like any other, and is held to the same floor.
"""

from __future__ import annotations

from edgepack_contract.messages import Probation
from edgepack_contract.states import Phase
from edgepack_runtime.activation.state import RESTING, SlotState

SUFFIX = ".edgepack"
EMPTIED_HERE = "emptied-here"
"""The code of a slot that a person at the device has emptied."""

PROBATION = Probation(seconds=10.0, max_seconds=60.0, shadow_seconds=0.0)
"""Short, because what the fleet wants has to wait for its end."""


def lacks_model(state: SlotState) -> bool:
    """Whether nothing works in a slot, nothing is under way, and nobody wants it so.

    The fleet may want a slot empty; a person who empties one wants it as it was delivered.
    """
    if state.active is not None or state.pending is not None or state.phase not in RESTING:
        return False
    told_so = state.phase == Phase.IDLE and state.obeyed.generation > 0
    return not told_so or state.code == EMPTIED_HERE


def is_due(state: SlotState, digest: str) -> bool:
    """Whether a slot that lacks a model should try the factory bundle ``digest`` now.

    Not when it misbehaved here, nor when it is what has just failed.
    """
    failed = state.phase != Phase.IDLE and state.wanted_digest == digest
    return lacks_model(state) and not failed and not state.is_blocked(digest)

"""When a slot in which nothing works tries once more what worked last.

A model that would not load at a start may have met a machine that was short of memory for a minute.
So its files are kept, and at growing intervals it goes the way of every bundle, through a child
process first; a newer order or a factory bundle goes before it.
"""

from __future__ import annotations

from edgepack_contract.messages import Ref
from edgepack_runtime.activation.factory import PROBATION, lacks_model
from edgepack_runtime.activation.state import SlotState, Wish


def lost_wish(state: SlotState) -> Wish | None:
    """The wish for what worked last, None while something works or there is nothing to try."""
    lost = state.lost
    if lost is None or not lacks_model(state):
        return None
    if state.wanted and state.wanted_digest == lost.digest:
        return state.wanted
    # its files are in the store
    return Wish(ref=Ref(name=lost.name, digest=lost.digest, sources=[]), probation=PROBATION)

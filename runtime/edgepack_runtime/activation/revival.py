"""When a slot in which nothing works tries once more what worked last.

A model that would not load at a start may have met a machine that was short of memory for a minute.
So its files are kept, and at growing intervals it goes the way of every bundle, through a child
process first; a newer order or a factory bundle goes before it. Files that are damaged are read a
second time, and then fetched again.
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
    wish = state.wanted
    if wish is None or wish.ref.digest != lost.bundle.digest:
        ref = Ref(name=lost.bundle.name, digest=lost.bundle.digest, sources=[])
        wish = Wish(ref=ref, probation=PROBATION)
    return None if lost.damaged and not wish.ref.sources else wish

"""When a daemon is up, and what it says of itself in a line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from edgepack_contract.states import Phase
from edgepack_runtime.notify import Notifier
from edgepack_runtime.slot_runtime import SlotRuntime

LOOK_SECONDS = 0.05
STATUS_SECONDS = 5.0
EXTEND_SECONDS = 30.0
MOST_LOADING_SECONDS = 600.0
"""A daemon whose models take longer says that it is up, and what it waits for."""

_LOADS = frozenset({Phase.ACTIVATING, Phase.PROBATION})

Slots = Callable[[], Iterable[tuple[str, SlotRuntime]]]


def is_loading(runtime: SlotRuntime) -> bool:
    """Whether a slot is about to serve, and does not yet."""
    state = runtime.agent.state
    if runtime.slot.active is not None or state.phase == Phase.SAFE_MODE:
        return False
    return state.active is not None or state.phase in _LOADS


def in_words(slots: Iterable[tuple[str, SlotRuntime]]) -> str:
    """What every slot does, for ``systemctl status``."""
    said = [_slot_words(name, runtime) for name, runtime in slots]
    return "; ".join(said) or "no slot yet: waits for the fleet"


async def tell_status(notifier: Notifier, slots: Slots) -> None:
    """Say that the daemon is up once its slots are, and from then on how they are.

    Until then it asks for more time, of which loading a large model may take much.
    """
    loop = asyncio.get_running_loop()
    begun = extended = loop.time()
    notifier.extend(EXTEND_SECONDS)
    while any(is_loading(one) for _, one in slots()):
        now = loop.time()
        if now - begun > MOST_LOADING_SECONDS:
            break
        if now - extended > STATUS_SECONDS:
            extended = now
            notifier.extend(EXTEND_SECONDS)
            notifier.status(in_words(slots()))
        await asyncio.sleep(LOOK_SECONDS)
    told = in_words(slots())
    notifier.ready(told)
    while True:
        await asyncio.sleep(STATUS_SECONDS)
        if (now_words := in_words(slots())) != told:
            told = now_words
            notifier.status(told)


def _slot_words(name: str, runtime: SlotRuntime) -> str:
    model, state = runtime.slot.active, runtime.agent.state
    if model is None:
        why = f": {state.words}" if state.words else ""
        return (
            f"{name} loads" if is_loading(runtime) else f"{name} serves nothing, {state.phase}{why}"
        )
    return f"{name} serves {model.description.name} {model.version}, {state.phase}"

"""What a slot does when a step of its life cannot be written down."""

from __future__ import annotations

from dataclasses import replace

from edgepack_contract.states import Phase
from edgepack_runtime.activation.events import (
    Downloaded,
    Event,
    Failed,
    LoadFailed,
    ProbationPassed,
    Probed,
    ProbeFailed,
    Revived,
    Started,
    Verified,
    Wished,
)
from edgepack_runtime.activation.state import SlotState
from edgepack_runtime.errors import DeviceError, DiskFullError


def instead_of(event: Event, after: SlotState, error: DeviceError) -> Event | None:
    """What to do when a step cannot be written down.

    Steps back to a good model are taken all the same: a full or broken disk must not keep a bad
    model in service. Steps towards a new one end the install; a wish is not obeyed, and a new model
    does not become the good one, before that can be written down.

    Returns:
        The event itself to go on without a record, another to take its place, None to stay.
    """
    code, words = error.code, str(error)
    match event:
        case Wished() | Revived() | ProbationPassed():
            return None
        case Downloaded() | Verified() | Probed() | ProbeFailed():
            return Failed(event.install, code, words)
        case LoadFailed() if after.phase == Phase.ACTIVATING:
            # the next load would not be counted, and nor would the one that a start leads to
            return replace(event, code=code, words=words, final=True)
        case Started() if after.phase == Phase.ACTIVATING and after.trial:
            return LoadFailed(after.install, after.trial.digest, code, words, final=True)
        case _:
            return event


def worth_waiting(event: Event, error: DeviceError) -> Wished | None:
    """The order that is to be tried again when there is room, None when nothing is.

    Whoever asks at the device sees the refusal, and asks again.
    """
    if not isinstance(event, Wished) or event.obeyed is None:
        return None
    return event if isinstance(error, DiskFullError) else None

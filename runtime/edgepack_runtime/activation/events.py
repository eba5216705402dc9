"""What can happen to a slot, and what the slot can ask to be done.

Every outcome of an effect carries the number of the install it belongs to; an outcome of an earlier
install is ignored, because a newer wish has replaced it in the meantime.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgepack_contract.instructions import Obeyed
from edgepack_contract.messages import EventKind, Probation, Ref
from edgepack_runtime.activation.state import Installed


@dataclass(frozen=True, slots=True)
class Started:
    """The process began; ``boot_id`` tells a crash of the process from a power cut."""

    boot_id: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The process ends on purpose."""


@dataclass(frozen=True, slots=True)
class Wished:
    """Somebody with the right to do so named what the slot should run.

    ``obeyed`` is the signed document that says so, None for a person at the device. A ``ref`` of
    None empties the slot.
    """

    ref: Ref | None
    obeyed: Obeyed | None = None
    probation: Probation = field(default_factory=Probation)
    retry_blocked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Revived:
    """Nothing works, and it is time to try once more what worked last."""


@dataclass(frozen=True, slots=True)
class InstallEvent:
    """How something that belongs to one install ended."""

    install: int


@dataclass(frozen=True, slots=True)
class Downloaded(InstallEvent):
    """Every byte of the bundle's variant is in the store and is what a trusted publisher signed.

    ``floor`` is what other slots of this device ask of the bundle's name. ``alternative`` is the
    place of the variant among the ``alternatives`` that this machine can choose from.
    """

    bundle: Installed
    floor: int = 0
    alternative: int = 0
    alternatives: int = 1


@dataclass(frozen=True, slots=True)
class Interrupted(InstallEvent):
    """The download stopped half-way because something new was said."""


@dataclass(frozen=True, slots=True)
class Verified(InstallEvent):
    """The bytes on the disk were read back and are still right."""


@dataclass(frozen=True, slots=True)
class Probed(InstallEvent):
    """The model did well in a child process; ``words`` name the variant that is chosen now."""

    words: str = ""


@dataclass(frozen=True, slots=True)
class ProbeFailed(InstallEvent):
    """The model did badly in a child; ``transient`` when that may be the machine's fault."""

    code: str
    words: str
    transient: bool = False


@dataclass(frozen=True, slots=True)
class Refused(InstallEvent):
    """The bundle must not be installed: not genuine, revoked, or not for this machine.

    With ``damaged`` other bytes of it may still be good.
    """

    code: str
    words: str
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Failed(InstallEvent):
    """The install could not go on: no source, no room, a broken disk."""

    code: str
    words: str


@dataclass(frozen=True, slots=True)
class Loaded(InstallEvent):
    """The model is loaded, warm, and answers requests."""

    digest: str


@dataclass(frozen=True, slots=True)
class LoadFailed(InstallEvent):
    """The model could not be loaded; ``final`` when trying again is no use.

    ``resumed`` is that of the :class:`Serve` which it answers.
    """

    digest: str
    code: str
    words: str
    final: bool = False
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class ProbationPassed(InstallEvent):
    """The new model was watched long enough; ``exercised`` when it had requests to answer."""

    exercised: bool


@dataclass(frozen=True, slots=True)
class ProbationTripped(InstallEvent):
    """The new model misbehaved."""

    code: str
    words: str


@dataclass(frozen=True, slots=True)
class Announced(InstallEvent):
    """The host has the event of how the install ended."""


@dataclass(frozen=True, slots=True)
class Recalled(InstallEvent):
    """It is time for the wish that had to wait."""


Outcome = (
    Downloaded
    | Interrupted
    | Verified
    | Probed
    | ProbeFailed
    | Refused
    | Failed
    | Loaded
    | LoadFailed
    | ProbationPassed
    | ProbationTripped
    | Announced
    | Recalled
)
Event = Started | Stopped | Wished | Revived | Outcome


@dataclass(frozen=True, slots=True)
class Download:
    """Bring a bundle into the store; ends in Downloaded, Interrupted, Refused or Failed.

    Of its ranked variants the one with the place ``alternative``; None is whichever the store has,
    else the best.
    """

    install: int
    ref: Ref
    alternative: int | None = 0


@dataclass(frozen=True, slots=True)
class Verify:
    """Read a bundle back from the disk; ends in Verified, Refused or Failed."""

    install: int
    ref: Ref


@dataclass(frozen=True, slots=True)
class Probe:
    """Try a model in a child process; ends in Probed or ProbeFailed."""

    install: int
    digest: str


@dataclass(frozen=True, slots=True)
class Serve:
    """Load a model, warm it and let it answer; ends in Loaded or LoadFailed.

    With ``keep_previous`` the model that answered until now stays loaded beside it. With
    ``resumed`` it is the one that answered when the process ended: then not even a revoked one is
    refused, because serving never stops.
    """

    install: int
    digest: str
    keep_previous: bool
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class Unserve:
    """Answer no requests any more."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Begin the probation; ends in ProbationPassed or ProbationTripped."""

    install: int
    digest: str
    probation: Probation


@dataclass(frozen=True, slots=True)
class Collect:
    """Remove what the slot does not need from the store, and what downloads left half-way."""


@dataclass(frozen=True, slots=True)
class Report:
    """Say how the slot is now."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell how an install ended; ends in Announced."""

    install: int
    kind: EventKind
    digest: str | None
    code: str
    words: str


@dataclass(frozen=True, slots=True)
class Recall:
    """Bring up the wish that waits; ends in Recalled."""

    install: int


Effect = Download | Verify | Probe | Serve | Unserve | Watch | Collect | Report | Announce | Recall

"""What a slot remembers: which model is good, which is being tried, and what was asked for.

The field names and the phases are a format: they are read back after an update of the daemon.
"""

from __future__ import annotations

import msgspec

from edgepack_contract.instructions import Obeyed
from edgepack_contract.messages import Probation, Ref
from edgepack_contract.states import Phase

VERSION = 1
REVOKED = "revoked-digest"
"""The code of a bundle that the owner has revoked."""

MAX_BLOCKED = 16
MAX_SOURCES = 2
MAX_SOURCE_CHARS = 148
MAX_WORDS = 200
_ELLIPSIS = "..."
FINGERPRINT_DIGITS = 16
MAX_FLOORS = 16
FLOOR_BYTES = 256
"""Floors of so many names, in so many bytes of the journal."""

RESTING = frozenset(
    {Phase.IDLE, Phase.SUCCEEDED, Phase.FAILED, Phase.FELL_BACK, Phase.REJECTED, Phase.SAFE_MODE}
)
"""Nothing is under way."""

PREPARING = frozenset({Phase.DOWNLOADING, Phase.VERIFIED, Phase.PROBING})
"""A bundle is on its way; the active model is untouched and the wish may change at any moment."""

TRIAL = frozenset({Phase.ACTIVATING, Phase.PROBATION})
"""A new model is being loaded or watched; the active one is what the slot falls back to."""


class Installed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A verified bundle in the store."""

    digest: str
    name: str
    version: str
    security_version: int


class Lost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last good model, which did not load at a start; ``tries`` counts those since.

    The files of one that is ``damaged`` are of no use, and need not stay.
    """

    bundle: Installed
    tries: int = 0
    damaged: bool = False


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bundle to run, and how long to watch it."""

    ref: Ref
    probation: Probation = Probation()


class SlotState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One slot, as it is written to its journal before anything is done.

    ``active`` and ``previous`` are good: each has passed a probation (or is the first to be tried
    again). ``trial`` is the bundle under way; it becomes ``active`` when its probation passes and
    is forgotten when it does not, so that a fallback needs no decision, only forgetting.
    ``lost`` was the last good one; while there is no other, it is kept and tried again.

    ``install`` numbers the installs: what was begun for an earlier one no longer counts.
    ``alternative`` is the place of the variant under way among the ``alternatives`` that this
    machine ranked; while further ones are tried, ``words`` say why those before would not do.
    ``attempts`` counts loads of the trial that never ended well, ``starts`` the same of the active
    model at a start, ``power_cuts`` the restarts that were not the process's fault. ``clean`` says
    that the last process ended on purpose. ``announced`` says that the host was told how the last
    install ended.

    ``floors`` is the least security version by bundle name, of the epoch that is in ``obeyed``.
    ``owner`` and ``enrolment`` are the first digits of the fingerprints that this device was
    enrolled with.
    """

    v: int = VERSION
    seq: int = 0
    phase: Phase = Phase.IDLE
    active: Installed | None = None
    previous: Installed | None = None
    trial: Installed | None = None
    lost: Lost | None = None
    wanted: Wish | None = None
    pending: Wish | None = None
    install: int = 0
    alternative: int = 0
    alternatives: int = 1
    attempts: int = 0
    starts: int = 0
    power_cuts: int = 0
    blocked: tuple[str, ...] = ()
    floors: dict[str, int] = {}
    obeyed: Obeyed = Obeyed()
    owner: str = ""
    enrolment: str = ""
    boot_id: str = ""
    clean: bool = True
    announced: bool = True
    exercised: bool = True
    code: str = ""
    words: str = ""

    @property
    def wanted_digest(self) -> str | None:
        """The index digest that was asked for last and is not waiting."""
        return self.wanted.ref.digest if self.wanted else None

    @property
    def keep(self) -> frozenset[str]:
        """The digests whose files must stay in the store."""
        lost = self.lost.bundle if self.lost and not self.lost.damaged else None
        known = (self.active, self.previous, self.trial, lost)
        good = {one.digest for one in known if one}
        if self.phase in PREPARING and self.wanted:
            good.add(self.wanted.ref.digest)
        return frozenset(good)

    @property
    def recorded(self) -> frozenset[str]:
        """The digests of what worked here before what is active now, or last."""
        lost = self.lost.bundle if self.lost else None
        return frozenset(one.digest for one in (self.previous, lost) if one)

    @property
    def name(self) -> str | None:
        """The bundle name that the slot is bound to; an empty slot is bound to none."""
        if self.active:
            return self.active.name
        return self.wanted.ref.name if self.wanted else None

    def floor(self, name: str | None) -> int:
        """The least security version of a bundle name that may be installed."""
        return self.floors.get(name or "", 0)

    def is_blocked(self, digest: str) -> bool:
        """Whether a digest misbehaved here before."""
        return digest in self.blocked


def block(blocked: tuple[str, ...], digest: str) -> tuple[str, ...]:
    """Add a digest; of too many the oldest is forgotten."""
    return (*(one for one in blocked if one != digest), digest)[-MAX_BLOCKED:]


def raise_floor(floors: dict[str, int], name: str, security_version: int) -> dict[str, int]:
    """Raise the floor of a name; of too many other names the one with the least is forgotten."""
    mine = {name: max(security_version, floors.get(name, 0))}
    others = {one: floor for one, floor in floors.items() if one != name}
    while others and not _floors_fit(others | mine):
        del others[min(others, key=lambda one: (others[one], one))]
    return others | mine


def _floors_fit(floors: dict[str, int]) -> bool:
    return len(floors) <= MAX_FLOORS and len(msgspec.json.encode(floors)) <= FLOOR_BYTES


def belonging(state: SlotState, *, owner: str, enrolment: str) -> SlotState:
    """The state of a slot of a device that is enrolled with these fingerprints.

    A device that was enrolled again is told anew, from the first generation on; one that has other
    owners now owes the former ones no floors. What runs goes on running.
    """
    owner, enrolment = owner[:FINGERPRINT_DIGITS], enrolment[:FINGERPRINT_DIGITS]
    changed = {"owner": owner, "enrolment": enrolment}
    if state.owner not in ("", owner):
        return msgspec.structs.replace(state, floors={}, obeyed=Obeyed(), **changed)
    if state.enrolment not in ("", enrolment):
        # the epoch tells which keyring the floors are of, and is the owners'
        return msgspec.structs.replace(state, obeyed=Obeyed(epoch=state.obeyed.epoch), **changed)
    return msgspec.structs.replace(state, **changed)


def short_ref(ref: Ref) -> Ref:
    """A reference that fits the journal: the first sources that are not overlong."""
    fitting = [source for source in ref.sources if fits_journal(source)]
    return msgspec.structs.replace(ref, sources=fitting[:MAX_SOURCES])


def fits_journal(source: str) -> bool:
    """Whether a source is remembered over a restart."""
    return source.isprintable() and len(source.encode()) <= MAX_SOURCE_CHARS


def short_words(words: str, *, most: int = MAX_WORDS) -> str:
    """Words that fit the journal, in one line; too many end in an ellipsis, if possible at a word.

    A word that would cost more than a third of the room, as a path does, is cut itself.
    """
    plain = words.encode("ascii", "replace").decode()
    line = " ".join(plain.split())
    if len(line) <= most:
        return line
    room = most - len(_ELLIPSIS)
    whole = line[: room + 1].rpartition(" ")[0].rstrip(" ,;:(")
    return (whole if len(whole) * 3 >= room * 2 else line[:room]) + _ELLIPSIS

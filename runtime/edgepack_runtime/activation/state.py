"""What a slot remembers: which model is good, which is being tried, and what was asked for.

The field names and the phases are a format: they are read back after an update of the daemon.
"""

from __future__ import annotations

import msgspec

from edgepack_contract.instructions import Obeyed
from edgepack_contract.messages import Probation, Ref
from edgepack_contract.states import Phase

VERSION = 1
MAX_BLOCKED = 16
MAX_SOURCES = 2
MAX_SOURCE_CHARS = 192
MAX_WORDS = 200

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


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bundle to run, and how long to watch it."""

    ref: Ref
    probation: Probation = Probation()


class SlotState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One slot, as it is written to its journal before anything is done.

    ``active`` and ``previous`` are good: each has passed a probation (or is the first to be tried
    again). ``trial`` is the bundle under way; it becomes ``active`` when its probation passes and
    is forgotten when it does not, so that a fallback needs no decision, only forgetting.

    ``install`` numbers the installs: what was begun for an earlier one no longer counts.
    ``attempts`` counts loads of the trial that never ended well, ``starts`` the same of the active
    model at a start, ``power_cuts`` the restarts that were not the process's fault. ``clean`` says
    that the last process ended on purpose. ``announced`` says that the host was told how the last
    install ended.
    """

    v: int = VERSION
    seq: int = 0
    phase: Phase = Phase.IDLE
    active: Installed | None = None
    previous: Installed | None = None
    trial: Installed | None = None
    wanted: Wish | None = None
    pending: Wish | None = None
    install: int = 0
    attempts: int = 0
    starts: int = 0
    power_cuts: int = 0
    blocked: tuple[str, ...] = ()
    floor: int = 0
    obeyed: Obeyed = Obeyed()
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
        good = {one.digest for one in (self.active, self.previous, self.trial) if one}
        if self.phase in PREPARING and self.wanted:
            good.add(self.wanted.ref.digest)
        return frozenset(good)

    def is_blocked(self, digest: str) -> bool:
        """Whether a digest misbehaved here before."""
        return digest in self.blocked


def block(blocked: tuple[str, ...], digest: str) -> tuple[str, ...]:
    """Add a digest; of too many the oldest is forgotten."""
    return (*(one for one in blocked if one != digest), digest)[-MAX_BLOCKED:]


def short_ref(ref: Ref) -> Ref:
    """A reference that fits the journal: the first sources that are not overlong."""
    fitting = [source for source in ref.sources if len(source) <= MAX_SOURCE_CHARS]
    return msgspec.structs.replace(ref, sources=fitting[:MAX_SOURCES])


def short_words(words: str) -> str:
    """Words that fit the journal, in one line."""
    plain = words.encode("ascii", "replace").decode()
    line = " ".join(plain.split())
    return line if len(line) <= MAX_WORDS else line[: MAX_WORDS - 3] + "..."

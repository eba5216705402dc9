"""The moves that events of a slot lead to; :mod:`.machine` says which event leads to which.

All of it is pure: a move takes the state of a slot and returns the next one with its effects.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from edgepack_contract.messages import EventKind
from edgepack_contract.states import Phase
from edgepack_runtime.activation.events import (
    Announce,
    Collect,
    Download,
    Effect,
    Recall,
    Report,
    Serve,
    Unserve,
)
from edgepack_runtime.activation.state import (
    MAX_WORDS,
    RESTING,
    REVOKED,
    TRIAL,
    Lost,
    SlotState,
    Wish,
    block,
    short_words,
)

MAX_ATTEMPTS = 3
"""Loads, probes or starts that may end badly before the slot gives up on a bundle."""


class UnexpectedEventError(RuntimeError):
    """An event came in a phase that does not list it. This is a bug, not a fault of the device."""


@dataclass(frozen=True, slots=True)
class Step:
    """What comes next: the state to write down first, then the effects, in order."""

    state: SlotState
    effects: tuple[Effect, ...] = ()


def download(state: SlotState) -> Step:
    """Fetch what is wanted, from its first byte or from where an earlier process came to."""
    state = replace(state, phase=Phase.DOWNLOADING, trial=None)
    return Step(state, (Report(), _fetch(state)))


def resume_download(state: SlotState) -> Step:
    """Go on with a download that something newer has stopped, and that is wanted all the same."""
    return Step(state, (_fetch(state),))


def _fetch(state: SlotState) -> Download:
    ref = wanted(state).ref
    place = None if _is_proven(state, ref.digest) else state.alternative
    return Download(state.install, ref, place)


def _is_proven(state: SlotState, digest: str) -> bool:
    """Whether a bundle worked here and its files may be all there is: they are used as they are."""
    damaged = state.lost is not None and state.lost.damaged
    return digest in state.recorded and not damaged


def try_next(state: SlotState, words: str) -> Step | None:
    """Set out for the next variant of the bundle, remembering why this one would not do.

    Returns:
        None when there is no other.
    """
    last = state.alternative + 1 >= state.alternatives
    if last or _is_proven(state, wanted(state).ref.digest):
        return None
    tried = add_words(state, words)
    return download(
        replace(state, alternative=state.alternative + 1, attempts=0, power_cuts=0, words=tried)
    )


def add_words(state: SlotState, words: str) -> str:
    """What is said of the variants so far, and of this one; room that is left is for the next."""
    before = f"{state.words}; " if state.words else ""
    to_come = max(1, state.alternatives - state.alternative)
    share = (MAX_WORDS - len(before)) // to_come - (len("; ") if to_come > 1 else 0)
    return before + (short_words(words, most=share) if state.alternatives > 1 else words)


def activate(state: SlotState) -> Step:
    """Load the trial beside the good model. The caller has counted the attempt."""
    state = replace(state, phase=Phase.ACTIVATING)
    return Step(state, (Report(), Serve(state.install, trial_digest(state), keep_previous=True)))


def stay(state: SlotState, wish: Wish) -> Step:
    """The good model is what is wanted, so whatever is under way was for nothing."""
    serve = state.phase in TRIAL
    state = replace(
        state,
        phase=Phase.SUCCEEDED,
        wanted=wish,
        pending=None,
        trial=None,
        install=state.install + 1,
        attempts=0,
        power_cuts=0,
        starts=state.starts + serve,
        announced=True,
        exercised=True,
        code="",
        words="",
    )
    return Step(state, (*(serve_active(state) if serve else ()), Report(), Collect()))


def begin(state: SlotState, wish: Wish) -> Step:
    """Set out for a bundle; whatever was under way before no longer counts."""
    begun = replace(
        state,
        wanted=wish,
        pending=None,
        install=state.install + 1,
        alternative=0,
        alternatives=1,
        attempts=0,
        power_cuts=0,
        announced=True,
        code="",
        words="",
    )
    return download(begun)


def give_up(state: SlotState, phase: Phase, code: str, words: str) -> Step:
    """End an install before the trial answered anything; the good model was never touched."""
    state = ended(replace(state, trial=None, attempts=0, power_cuts=0), phase, code, words)
    return Step(state, ending(state))


def fall_back(state: SlotState, code: str, words: str, *, serve: bool = True) -> Step:
    """Forget and block the trial; the good model answers again, or safe mode begins without one."""
    bad = trial_digest(state)
    previous = None if state.previous and state.previous.digest == bad else state.previous
    state = replace(
        state,
        trial=None,
        previous=previous,
        blocked=block(state.blocked, bad),
        attempts=0,
        power_cuts=0,
        starts=state.starts + (serve and state.active is not None),
    )
    state = ended(state, Phase.FELL_BACK if state.active else Phase.SAFE_MODE, code, words)
    effects = (serve_active(state) or (Unserve(),)) if serve or not state.active else ()
    return Step(state, (*effects, *ending(state)))


def demote(state: SlotState, code: str, words: str) -> SlotState:
    """The good model does not load any more: the one before it takes its place.

    Without one before it, it is tried again later, unless it is revoked: a machine that was short
    of memory for a minute must not be without a model from then on.
    """
    bad = state.active
    state = replace(
        state,
        active=state.previous,
        previous=None,
        lost=Lost(bundle=bad) if bad and not state.previous and code != REVOKED else None,
        starts=0,
        blocked=block(state.blocked, bad.digest if bad else ""),
    )
    if state.phase not in RESTING:
        return state
    return ended(state, Phase.FELL_BACK if state.active else Phase.SAFE_MODE, code, words)


def ended(state: SlotState, phase: Phase, code: str, words: str) -> SlotState:
    """Come to rest, with an end that the host has not been told yet."""
    return replace(state, phase=phase, announced=False, code=code, words=short_words(words))


def ending(state: SlotState) -> tuple[Effect, ...]:
    """What is due in a resting phase, at its beginning and again after a restart."""
    effects: list[Effect] = [Report()]
    if not state.announced and state.phase in _KINDS:
        effects.append(_announce(state))
    effects.append(Collect())
    if state.pending:
        effects.append(Recall(state.install))
    return tuple(effects)


_KINDS = {
    Phase.SUCCEEDED: EventKind.INSTALLED,
    Phase.FAILED: EventKind.FAILED,
    Phase.REJECTED: EventKind.VERIFY_FAILED,
    Phase.FELL_BACK: EventKind.FALLBACK,
    Phase.SAFE_MODE: EventKind.FALLBACK,
}


def _announce(state: SlotState) -> Announce:
    fell = state.phase in (Phase.FELL_BACK, Phase.SAFE_MODE)
    digest = state.blocked[-1] if fell and state.blocked else state.wanted_digest
    return Announce(state.install, _KINDS[state.phase], digest, state.code, state.words)


def serve_active(state: SlotState, *, resumed: bool = False) -> tuple[Effect, ...]:
    """The effect that lets the good model answer; none when there is no good model.

    With ``resumed`` it is what answered before a restart, and serving goes on.
    """
    if state.active is None:
        return ()
    return (Serve(state.install, state.active.digest, keep_previous=False, resumed=resumed),)


def wanted(state: SlotState) -> Wish:
    """The wish that is pursued.

    Raises:
        UnexpectedEventError: There is none.
    """
    if state.wanted is None:
        raise UnexpectedEventError(f"nothing is wanted in phase {state.phase}")
    return state.wanted


def trial_digest(state: SlotState) -> str:
    """The digest of the bundle under way.

    Raises:
        UnexpectedEventError: There is none.
    """
    if state.trial is None:
        raise UnexpectedEventError(f"there is no trial in phase {state.phase}")
    return state.trial.digest

"""The life of an install as one table: ``step(state, event)`` gives the next state and the effects.

The caller writes the state to its journal *before* it runs the effects. A power cut therefore
repeats effects and never skips one, so each effect must be safe to run twice. Which effects are due
after a restart follows from the state alone: see ``_start``.

The one commit point is the step from ``probation`` to ``succeeded``. Until then the trial is only a
name beside the good model; afterwards it is the good model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from edgepack_contract.states import Phase
from edgepack_runtime.activation.events import (
    Announced,
    Collect,
    Downloaded,
    Effect,
    Event,
    Failed,
    InstallEvent,
    Interrupted,
    Loaded,
    LoadFailed,
    ProbationPassed,
    ProbationTripped,
    Probe,
    Probed,
    ProbeFailed,
    Recalled,
    Refused,
    Report,
    Revived,
    Started,
    Stopped,
    Unserve,
    Verified,
    Verify,
    Watch,
    Wished,
)
from edgepack_runtime.activation.factory import EMPTIED_HERE
from edgepack_runtime.activation.moves import (
    MAX_ATTEMPTS,
    Step,
    UnexpectedEventError,
    activate,
    add_words,
    begin,
    demote,
    download,
    ended,
    ending,
    fall_back,
    give_up,
    resume_download,
    serve_active,
    stay,
    trial_digest,
    try_next,
    wanted,
)
from edgepack_runtime.activation.revival import lost_wish
from edgepack_runtime.activation.state import (
    PREPARING,
    RESTING,
    TRIAL,
    SlotState,
    Wish,
    block,
    raise_floor,
    short_ref,
)

FREE_POWER_CUTS = 4
"""A changed boot id is nobody's bad start; only from the fifth on does it count as an attempt."""


def step(state: SlotState, event: Event) -> Step:
    """The next state of a slot, and what to do about it.

    Raises:
        UnexpectedEventError: The phase does not list the event.
    """
    if isinstance(event, InstallEvent) and event.install != state.install:
        return Step(state)
    handler = TABLE.get((state.phase, type(event)))
    if handler is None:
        raise UnexpectedEventError(f"{type(event).__name__} in phase {state.phase}")
    return handler(state, event)


def _start(state: SlotState, event: Started) -> Step:
    state, forgiven = _count_restart(state, event.boot_id)
    state, effects = _start_active(state)
    if state.phase in PREPARING:
        then = _start_preparing(state, forgiven=forgiven)
    elif state.phase in TRIAL:
        then = _start_trial(state)
    else:
        then = Step(state, ending(state))
    return Step(then.state, (*effects, *then.effects))


def _count_restart(state: SlotState, boot_id: str) -> tuple[SlotState, bool]:
    cut = not state.clean and boot_id != state.boot_id
    cuts = state.power_cuts + cut
    forgiven = state.clean or (cut and cuts <= FREE_POWER_CUTS)
    state = replace(
        state,
        boot_id=boot_id,
        clean=False,
        power_cuts=cuts,
        attempts=max(0, state.attempts - (forgiven and state.phase in TRIAL)),
        starts=max(0, state.starts - forgiven),
    )
    return state, forgiven


def _start_active(state: SlotState) -> tuple[SlotState, tuple[Effect, ...]]:
    answered = state.active
    if state.active and state.starts >= MAX_ATTEMPTS:
        words = f"{state.active.version} ended the process {MAX_ATTEMPTS} times while it was loaded"
        state = demote(state, "crash-loop", words)
    if state.active is None:
        return state, ()
    state = replace(state, starts=state.starts + 1)
    resumed = state.phase not in TRIAL and state.active == answered
    return state, serve_active(state, resumed=resumed)


def _start_preparing(state: SlotState, *, forgiven: bool) -> Step:
    if state.phase != Phase.DOWNLOADING and not forgiven:
        state = replace(state, attempts=state.attempts + 1)
    if state.attempts < MAX_ATTEMPTS:
        return download(state)
    words = f"the process ended {MAX_ATTEMPTS} times while it checked the bundle"
    further = try_next(state, words)
    if further:
        return further
    # whoever asks for it again and again, as a factory bundle does, must not begin it all anew
    state = replace(state, blocked=block(state.blocked, wanted(state).ref.digest))
    return give_up(state, Phase.FAILED, "crash-loop", add_words(state, words))


def _start_trial(state: SlotState) -> Step:
    if state.attempts >= MAX_ATTEMPTS:
        words = f"the process ended {state.attempts} times with this model"
        # the good model is being served already: every start begins with it
        return fall_back(state, "crash-loop", words, serve=False)
    return activate(replace(state, attempts=state.attempts + 1))


def _stop(state: SlotState, _: Stopped) -> Step:
    return Step(replace(state, clean=True))


def _wish(state: SlotState, event: Wished) -> Step:
    if not _is_fresh(state, event):
        return Step(replace(state, obeyed=event.obeyed or state.obeyed), (Report(),))
    state = _obey(state, event)
    if event.ref is None:
        return _empty(state, code="" if event.obeyed else EMPTIED_HERE)
    wish = Wish(ref=short_ref(event.ref), probation=event.probation)
    return _pursue(state, wish)


def _is_fresh(state: SlotState, event: Wished) -> bool:
    # the same document comes again after every reconnect; it has been acted upon
    if event.obeyed is None:
        return True
    told, known = event.obeyed, state.obeyed
    return (told.epoch, told.generation) > (known.epoch, known.generation)


def _obey(state: SlotState, event: Wished) -> SlotState:
    obeyed = event.obeyed or state.obeyed
    return replace(
        state,
        obeyed=obeyed,
        # a new epoch is how an owner resets what a stolen fleet key has done
        floors=state.floors if obeyed.epoch == state.obeyed.epoch else {},
        blocked=tuple(one for one in state.blocked if one not in event.retry_blocked),
    )


def _pursue(state: SlotState, wish: Wish) -> Step:
    """Set out for a wish, or find that there is nothing to do, or that it must not be."""
    digest = wish.ref.digest
    if state.active and digest == state.active.digest:
        return stay(state, wish)
    if state.phase in TRIAL:
        same = digest == state.wanted_digest
        changed = {"wanted": wish, "pending": None} if same else {"pending": wish}
        return Step(replace(state, **changed), (Report(),))
    if state.phase in PREPARING and digest == state.wanted_digest:
        return Step(replace(state, wanted=wish), (Report(),))
    if state.is_blocked(digest):
        return _refuse_blocked(state, wish)
    if state.active and state.active.name != wish.ref.name:
        words = f"this slot runs bundles named {state.active.name}, not {wish.ref.name}"
        return _decline(state, wish, "wrong-name", words)
    return begin(state, wish)


def _empty(state: SlotState, *, code: str) -> Step:
    state = replace(
        state,
        phase=Phase.IDLE,
        wanted=None,
        pending=None,
        trial=None,
        lost=None,
        active=None,
        previous=None,
        install=state.install + 1,
        announced=True,
        code=code,
        words="",
    )
    return Step(state, (Unserve(), Report(), Collect()))


def _refuse_blocked(state: SlotState, wish: Wish) -> Step:
    if wish.ref.digest == state.wanted_digest and state.phase in RESTING:
        # it already says how this bundle failed, which tells more than that it is blocked
        return Step(replace(state, wanted=wish), (Report(),))
    words = "this bundle failed here before; only retry_blocked in a signed wish releases it"
    return _decline(state, wish, "blocked", words)


def _decline(state: SlotState, wish: Wish, code: str, words: str) -> Step:
    declined = replace(state, wanted=wish, pending=None, install=state.install + 1)
    return give_up(declined, Phase.REJECTED, code, words)


def _downloaded(state: SlotState, event: Downloaded) -> Step:
    bundle = event.bundle
    floor = max(event.floor, state.floor(bundle.name))
    if bundle.security_version < floor and bundle.digest not in state.recorded:
        words = (
            f"{bundle.version} has security version {bundle.security_version}, but this device has "
            f"run {bundle.name} of {floor}; only a new epoch of the keyring lets it go back"
        )
        return give_up(state, Phase.REJECTED, "below-floor", words)
    state = replace(
        state,
        phase=Phase.VERIFIED,
        trial=bundle,
        alternative=event.alternative,
        alternatives=event.alternatives,
    )
    return Step(state, (Report(), Verify(state.install, wanted(state).ref)))


def _interrupted(state: SlotState, _: Interrupted) -> Step:
    return resume_download(state)


def _verified(state: SlotState, _: Verified) -> Step:
    lost = state.lost
    if lost and lost.bundle.digest == trial_digest(state):
        # the files that have just been read are good ones
        lost = replace(lost, damaged=False)
    state = replace(state, phase=Phase.PROBING, lost=lost)
    return Step(state, (Report(), Probe(state.install, trial_digest(state))))


def _probed(state: SlotState, event: Probed) -> Step:
    words = add_words(state, event.words) if state.alternative else ""
    return activate(replace(state, attempts=1, power_cuts=0, words=words))


def _probe_failed(state: SlotState, event: ProbeFailed) -> Step:
    state = replace(state, attempts=state.attempts + 1)
    if event.transient and state.attempts < MAX_ATTEMPTS:
        return Step(state, (Probe(state.install, trial_digest(state)),))
    further = try_next(state, event.words)
    if further:
        return further
    state = replace(state, blocked=block(state.blocked, trial_digest(state)))
    return give_up(state, Phase.FAILED, event.code, add_words(state, event.words))


def _refused(state: SlotState, event: Refused) -> Step:
    lost = state.lost
    if lost and lost.bundle.digest == state.wanted_digest:
        state = replace(state, lost=replace(lost, damaged=True) if event.damaged else None)
    return give_up(state, Phase.REJECTED, event.code, add_words(state, event.words))


def _failed(state: SlotState, event: Failed) -> Step:
    return give_up(state, Phase.FAILED, event.code, add_words(state, event.words))


def _loaded(state: SlotState, event: Loaded) -> Step:
    if state.phase == Phase.ACTIVATING and event.digest == trial_digest(state):
        wish = wanted(state)
        state = replace(state, phase=Phase.PROBATION)
        watch = Watch(state.install, event.digest, wish.probation)
        return Step(state, (Report(), watch))
    if state.active and event.digest == state.active.digest:
        cuts = state.power_cuts if state.phase in TRIAL else 0
        return Step(replace(state, starts=0, power_cuts=cuts), (Report(),))
    raise UnexpectedEventError(f"Loaded {event.digest} in phase {state.phase}")


def _load_failed(state: SlotState, event: LoadFailed) -> Step:
    if state.active and event.digest == state.active.digest:
        return _active_failed(state, event)
    if state.phase != Phase.ACTIVATING or event.digest != trial_digest(state):
        raise UnexpectedEventError(f"LoadFailed {event.digest} in phase {state.phase}")
    if event.final or state.attempts >= MAX_ATTEMPTS:
        return fall_back(state, event.code, event.words)
    return activate(replace(state, attempts=state.attempts + 1))


def _active_failed(state: SlotState, event: LoadFailed) -> Step:
    if state.phase in TRIAL:
        # the trial is about to answer; whether the good model loads matters at a fallback only
        return Step(state)
    if not event.final and state.starts < MAX_ATTEMPTS:
        state = replace(state, starts=state.starts + 1)
        return Step(state, serve_active(state, resumed=event.resumed))
    state = demote(state, event.code, event.words)
    if state.active:
        state = replace(state, starts=1)
    then = ending(state) if state.phase in RESTING else (Report(),)
    return Step(state, (*(serve_active(state) or (Unserve(),)), *then))


def _passed(state: SlotState, event: ProbationPassed) -> Step:
    trial = state.trial
    if trial is None:
        raise UnexpectedEventError("a probation passed without a trial")
    done = replace(
        state,
        active=trial,
        # after a return to the previous bundle the two have changed places
        previous=state.active,
        trial=None,
        lost=None,
        floors=raise_floor(state.floors, trial.name, trial.security_version),
        attempts=0,
        starts=0,
        power_cuts=0,
        exercised=event.exercised,
    )
    words = "" if event.exercised else "no requests came; its golden inputs were answered rightly"
    # what is there already says why better variants would not do
    words = "; ".join(filter(None, (words, state.words)))
    done = ended(done, Phase.SUCCEEDED, "" if event.exercised else "unexercised", words)
    return Step(done, ending(done))


def _tripped(state: SlotState, event: ProbationTripped) -> Step:
    return fall_back(state, event.code, event.words)


def _revived(state: SlotState, _: Revived) -> Step:
    wish = lost_wish(state)
    if wish is None or state.lost is None:
        return Step(state)
    blocked = tuple(one for one in state.blocked if one != wish.ref.digest)
    lost = replace(state.lost, tries=state.lost.tries + 1)
    return begin(replace(state, lost=lost, blocked=blocked), wish)


def _announced(state: SlotState, _: Announced) -> Step:
    return Step(replace(state, announced=True))


def _recalled(state: SlotState, _: Recalled) -> Step:
    pending = state.pending
    if pending is None:
        return Step(state)
    return _pursue(replace(state, pending=None), pending)


Handler = Callable[[SlotState, Any], Step]

_EVERYWHERE = frozenset(Phase)
_ROWS: tuple[tuple[frozenset[Phase], type[Event], Handler], ...] = (
    (_EVERYWHERE, Started, _start),
    (_EVERYWHERE, Stopped, _stop),
    (_EVERYWHERE, Wished, _wish),
    (frozenset({Phase.DOWNLOADING}), Downloaded, _downloaded),
    (frozenset({Phase.DOWNLOADING}), Interrupted, _interrupted),
    (frozenset({Phase.VERIFIED}), Verified, _verified),
    (frozenset({Phase.PROBING}), Probed, _probed),
    (frozenset({Phase.PROBING}), ProbeFailed, _probe_failed),
    (PREPARING, Refused, _refused),
    (PREPARING, Failed, _failed),
    (_EVERYWHERE, Loaded, _loaded),
    (_EVERYWHERE, LoadFailed, _load_failed),
    (frozenset({Phase.PROBATION}), ProbationPassed, _passed),
    (frozenset({Phase.PROBATION}), ProbationTripped, _tripped),
    (RESTING, Announced, _announced),
    (RESTING, Revived, _revived),
    (RESTING, Recalled, _recalled),
)

TABLE = {(phase, kind): handler for phases, kind, handler in _ROWS for phase in phases}
"""Which event may come in which phase, and what answers it."""

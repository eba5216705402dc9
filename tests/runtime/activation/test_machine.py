"""The table of an install: every pair of phase and event is listed here, by hand."""

from __future__ import annotations

import dataclasses
from typing import get_args

import msgspec
import pytest
from msgspec.structs import replace

from edgepack_contract.instructions import Obeyed
from edgepack_contract.messages import Probation, Ref
from edgepack_contract.states import Phase
from edgepack_runtime.activation import events as ev
from edgepack_runtime.activation.machine import TABLE, step
from edgepack_runtime.activation.moves import Step, UnexpectedEventError
from edgepack_runtime.activation.state import (
    FLOOR_BYTES,
    MAX_BLOCKED,
    MAX_FLOORS,
    PREPARING,
    RESTING,
    TRIAL,
    Installed,
    SlotState,
    Wish,
    belonging,
    block,
    raise_floor,
    short_ref,
    short_words,
)


def digest(letter: str) -> str:
    return f"sha256:{letter * 64}"


def made(letter: str, security_version: int = 1) -> Installed:
    return Installed(
        digest=digest(letter), name="digits", version=f"1.0.{ord(letter)}",
        security_version=security_version,
    )  # fmt: skip


def ref(letter: str, *sources: str) -> Ref:
    return Ref(name="digits", digest=digest(letter), sources=list(sources))


def wished(letter: str, generation: int = 9, **more) -> ev.Wished:
    return ev.Wished(ref(letter), obeyed=Obeyed(epoch=1, generation=generation), **more)


GOOD, OLD, NEW = made("a"), made("b"), made("c")
HERE = "boot-1"

STATES = {
    Phase.IDLE: SlotState(),
    Phase.DOWNLOADING: SlotState(),
    Phase.VERIFIED: SlotState(trial=NEW),
    Phase.PROBING: SlotState(trial=NEW),
    Phase.ACTIVATING: SlotState(trial=NEW, attempts=1),
    Phase.PROBATION: SlotState(trial=NEW, attempts=1),
    Phase.SUCCEEDED: SlotState(),
    Phase.FAILED: SlotState(),
    Phase.FELL_BACK: SlotState(),
    Phase.REJECTED: SlotState(),
    Phase.SAFE_MODE: SlotState(),
}


def state(phase: Phase, **changes) -> SlotState:
    base = {
        "phase": phase, "active": GOOD, "previous": OLD, "wanted": Wish(ref=ref("c")),
        "install": 5, "boot_id": HERE, "clean": False, "obeyed": Obeyed(epoch=1, generation=5),
    }  # fmt: skip
    return replace(STATES[phase], **{**base, **changes})


EVENTS = {
    ev.Started: ev.Started(HERE),
    ev.Stopped: ev.Stopped(),
    ev.Wished: wished("d"),
    ev.Downloaded: ev.Downloaded(5, NEW),
    ev.Interrupted: ev.Interrupted(5),
    ev.Verified: ev.Verified(5),
    ev.Probed: ev.Probed(5),
    ev.ProbeFailed: ev.ProbeFailed(5, "golden-mismatch", "w"),
    ev.Refused: ev.Refused(5, "untrusted-bundle", "w"),
    ev.Failed: ev.Failed(5, "disk-full", "w"),
    ev.Loaded: ev.Loaded(5, GOOD.digest),
    ev.LoadFailed: ev.LoadFailed(5, GOOD.digest, "load-failed", "w"),
    ev.ProbationPassed: ev.ProbationPassed(5, exercised=True),
    ev.ProbationTripped: ev.ProbationTripped(5, "errors", "w"),
    ev.Announced: ev.Announced(5),
    ev.Recalled: ev.Recalled(5),
    ev.Revived: ev.Revived(),
}

# One letter a phase, in the order of Phase: where the event leads, or "-" where it is a bug.
# I idle, D downloading, V verified, P probing, A activating, T probation (trial), S succeeded,
# F failed, B fell back, R rejected, M safe mode
EXPECTED = {
    #                       I D V P A T S F B R M
    ev.Started:            "I D D D A A S F B R M",
    ev.Stopped:            "I D V P A T S F B R M",
    ev.Wished:             "D D D D A T D D D D D",
    ev.Downloaded:         "- V - - - - - - - - -",
    ev.Interrupted:        "- D - - - - - - - - -",
    ev.Verified:           "- - P - - - - - - - -",
    ev.Probed:             "- - - A - - - - - - -",
    ev.ProbeFailed:        "- - - F - - - - - - -",
    ev.Refused:            "- R R R - - - - - - -",
    ev.Failed:             "- F F F - - - - - - -",
    ev.Loaded:             "I D V P A T S F B R M",
    ev.LoadFailed:         "I D V P A T S F B R M",
    ev.ProbationPassed:    "- - - - - S - - - - -",
    ev.ProbationTripped:   "- - - - - B - - - - -",
    ev.Announced:          "I - - - - - S F B R M",
    ev.Recalled:           "I - - - - - S F B R M",
    ev.Revived:            "I - - - - - S F B R M",
}  # fmt: skip
LETTERS = dict(zip("IDVPATSFBRM", Phase, strict=True))
ROWS = [
    (phase, kind, None if letter == "-" else LETTERS[letter])
    for kind, row in EXPECTED.items()
    for phase, letter in zip(Phase, row.split(), strict=True)
]


def test_the_table_of_this_test_is_complete():
    assert set(EXPECTED) == set(EVENTS) == set(get_args(ev.Event))
    assert set(Phase) == PREPARING | RESTING | TRIAL
    assert set(TABLE) == {(p, kind) for p, kind, there in ROWS if there}


@pytest.mark.parametrize(("phase", "kind", "there"), ROWS)
def test_every_pair(phase, kind, there):
    before = state(phase)
    if there is None:
        with pytest.raises(UnexpectedEventError, match=kind.__name__):
            step(before, EVENTS[kind])
        return
    taken = step(before, EVENTS[kind])
    assert taken.state.phase == there
    # pure: the same again gives the same, and the state passed in is untouched
    assert step(before, EVENTS[kind]) == taken
    assert before == state(phase)


@pytest.mark.parametrize("kind", [kind for kind in EVENTS if issubclass(kind, ev.InstallEvent)])
@pytest.mark.parametrize("phase", Phase)
def test_what_belongs_to_an_earlier_install_is_ignored(phase, kind):
    stale = dataclasses.replace(EVENTS[kind], install=4)
    assert step(state(phase), stale) == Step(state(phase))


@pytest.mark.parametrize("phase", Phase)
def test_a_start_serves_the_good_model_first_and_is_repeatable(phase):
    once = step(state(phase, announced=False), ev.Started(HERE))
    first = ev.Serve(
        once.state.install, GOOD.digest, keep_previous=False, resumed=phase not in TRIAL
    )
    assert once.effects[0] == first
    loaded = step(once.state, ev.Loaded(once.state.install, GOOD.digest)).state
    again = step(replace(loaded, clean=True), ev.Started(HERE))
    assert [type(e) for e in again.effects] == [type(e) for e in once.effects]
    assert again.state.phase == once.state.phase


def test_effects_of_the_way_to_success():
    def kinds(taken):
        return [type(effect).__name__ for effect in taken.effects]

    taken = step(state(Phase.SUCCEEDED), wished("c"))
    assert kinds(taken) == ["Report", "Download"]
    number = taken.state.install
    assert number == 6
    taken = step(taken.state, ev.Downloaded(number, NEW))
    assert kinds(taken) == ["Report", "Verify"]
    taken = step(taken.state, ev.Verified(number))
    assert kinds(taken) == ["Report", "Probe"]
    taken = step(taken.state, ev.Probed(number))
    assert taken.effects[1] == ev.Serve(number, NEW.digest, keep_previous=True)
    assert taken.state.attempts == 1
    taken = step(taken.state, ev.Loaded(number, NEW.digest))
    assert taken.effects[1] == ev.Watch(number, NEW.digest, Probation())
    assert (taken.state.active, taken.state.previous) == (GOOD, OLD)
    taken = step(taken.state, ev.ProbationPassed(number, exercised=True))
    assert kinds(taken) == ["Report", "Announce", "Collect"]
    assert (taken.state.active, taken.state.previous, taken.state.trial) == (NEW, GOOD, None)
    assert not taken.state.announced


def test_a_fallback_serves_before_it_says_so():
    taken = step(state(Phase.PROBATION), ev.ProbationTripped(5, "errors", "many"))
    assert [type(effect).__name__ for effect in taken.effects] == [
        "Serve", "Report", "Announce", "Collect",
    ]  # fmt: skip
    assert taken.effects[0] == ev.Serve(5, GOOD.digest, keep_previous=False)
    assert (taken.state.code, taken.state.words) == ("errors", "many")
    assert taken.state.blocked == (NEW.digest,)
    assert taken.state.active == GOOD


def test_a_trial_without_a_good_model_ends_in_safe_mode():
    before = state(Phase.PROBATION, active=None, previous=None)
    taken = step(before, ev.ProbationTripped(5, "errors", "w"))
    assert taken.state.phase == Phase.SAFE_MODE
    assert taken.effects[0] == ev.Unserve()


def test_three_loads_and_no_fourth():
    now = state(Phase.ACTIVATING)
    seen = []
    for _ in range(3):
        taken = step(now, ev.LoadFailed(5, NEW.digest, "load-failed", "w"))
        now = taken.state
        seen.append((now.phase, now.attempts))
    assert seen == [(Phase.ACTIVATING, 2), (Phase.ACTIVATING, 3), (Phase.FELL_BACK, 0)]


def test_a_final_failure_is_not_tried_again():
    taken = step(state(Phase.ACTIVATING), ev.LoadFailed(5, NEW.digest, "revoked", "w", final=True))
    assert taken.state.phase == Phase.FELL_BACK


def test_the_attempt_is_in_the_state_that_orders_the_load():
    taken = step(state(Phase.PROBATION, attempts=1), ev.Started(HERE))
    assert taken.state.attempts == 2
    assert ev.Serve(5, NEW.digest, keep_previous=True) in taken.effects


@pytest.mark.parametrize(
    ("clean", "boot", "cuts", "attempts"),
    [(False, HERE, 0, 2), (True, HERE, 0, 1), (False, "boot-2", 0, 1), (False, "boot-2", 4, 2)],
)
def test_which_restarts_count(clean, boot, cuts, attempts):
    before = state(Phase.PROBATION, clean=clean, power_cuts=cuts)
    assert step(before, ev.Started(boot)).state.attempts == attempts


def test_a_bad_start_of_the_good_model_counts_until_it_is_warm():
    now = state(Phase.SUCCEEDED)
    for starts in (1, 2, 3):
        now = step(now, ev.Started(HERE)).state
        assert now.starts == starts
    assert step(now, ev.Loaded(5, GOOD.digest)).state.starts == 0
    fallen = step(now, ev.Started(HERE))
    assert (fallen.state.phase, fallen.state.active) == (Phase.FELL_BACK, OLD)
    assert fallen.effects[0] == ev.Serve(5, OLD.digest, keep_previous=False)


def test_a_good_model_lost_during_a_download_gives_way_without_ending_it():
    lost = ev.LoadFailed(5, GOOD.digest, "rotten", "w", final=True)
    taken = step(state(Phase.DOWNLOADING), lost)
    assert (taken.state.phase, taken.state.active) == (Phase.DOWNLOADING, OLD)
    assert taken.state.blocked == (GOOD.digest,)


def test_with_no_model_left_it_is_safe_mode():
    lost = ev.LoadFailed(5, GOOD.digest, "rotten", "w", final=True)
    taken = step(state(Phase.SUCCEEDED, previous=None), lost)
    assert (taken.state.phase, taken.state.active) == (Phase.SAFE_MODE, None)
    assert taken.effects[0] == ev.Unserve()


def test_a_crash_while_checking_counts_and_the_third_ends_the_install():
    now = state(Phase.PROBING)
    for _ in range(2):
        now = replace(step(now, ev.Started(HERE)).state, phase=Phase.PROBING, trial=NEW, starts=0)
    taken = step(now, ev.Started(HERE))
    assert (taken.state.phase, taken.state.code) == (Phase.FAILED, "crash-loop")
    assert taken.state.blocked == (NEW.digest,)
    again = step(taken.state, wished("c"))
    assert again.state.phase is Phase.FAILED
    released = step(again.state, wished("c", 10, retry_blocked=(NEW.digest,)))
    assert released.state.phase is Phase.DOWNLOADING


def test_a_kill_in_a_long_download_is_not_held_against_the_bundle():
    now = state(Phase.DOWNLOADING)
    for _ in range(9):
        now = replace(step(now, ev.Started(HERE)).state, starts=0)
    assert (now.phase, now.attempts, now.blocked) == (Phase.DOWNLOADING, 0, ())


BAD_PROBE = ev.ProbeFailed(5, "latency-budget", "fast: 9 ms")


def test_the_next_alternative_follows_a_probe_that_went_badly():
    now = state(Phase.PROBING, alternatives=3, attempts=2)
    taken = step(now, BAD_PROBE)
    assert taken.effects[1] == ev.Download(5, ref("c"), 1)
    assert (taken.state.phase, taken.state.alternative) == (Phase.DOWNLOADING, 1)
    assert (taken.state.attempts, taken.state.trial, taken.state.blocked) == (0, None, ())
    assert taken.state.words == "fast: 9 ms"
    again = step(taken.state, ev.Started(HERE))
    assert ev.Download(5, ref("c"), 1) in again.effects
    stopped = step(taken.state, ev.Interrupted(5))
    assert stopped.effects == (ev.Download(5, ref("c"), 1),)
    last = step(replace(now, alternative=2, words="before"), BAD_PROBE).state
    assert (last.phase, last.words) == (Phase.FAILED, "before; fast: 9 ms")
    assert last.blocked == (NEW.digest,)


def test_the_words_of_all_alternatives_fit():
    now = state(Phase.PROBING, alternatives=8)
    for number in range(8):
        failed = ev.ProbeFailed(5, "latency-budget", f"variant-{number}: " + "slow " * 99)
        now = replace(step(now, failed).state, phase=Phase.PROBING, trial=NEW)
    assert all(f"variant-{number}: " in now.words for number in range(8))
    assert len(now.words) <= 200


def test_a_transient_failure_is_of_the_same_alternative():
    taken = step(
        state(Phase.PROBING, alternatives=2), dataclasses.replace(BAD_PROBE, transient=True)
    )
    assert taken.effects == (ev.Probe(5, NEW.digest),)


def test_the_recorded_previous_is_taken_as_the_store_has_it():
    back = state(Phase.SUCCEEDED)
    taken = step(back, wished("b"))
    assert taken.effects[1] == ev.Download(6, ref("b"), None)
    probing = replace(taken.state, phase=Phase.PROBING, trial=OLD, alternatives=3)
    assert step(probing, dataclasses.replace(BAD_PROBE, install=6)).state.phase == Phase.FAILED


def test_a_new_wish_begins_with_the_best_alternative():
    busy = state(Phase.PROBING, alternative=2, alternatives=3, words="fast: 9 ms")
    taken = step(busy, wished("d"))
    assert taken.effects[1] == ev.Download(6, ref("d"), 0)
    assert (taken.state.alternatives, taken.state.words) == (1, "")


def test_only_a_newer_generation_is_acted_upon():
    rest = state(Phase.FAILED)
    repeated = step(rest, wished("c", generation=5))
    assert (repeated.state.phase, repeated.effects) == (Phase.FAILED, (ev.Report(),))
    assert step(rest, wished("c", generation=6)).state.phase == Phase.DOWNLOADING
    assert step(rest, ev.Wished(ref("c"))).state.phase == Phase.DOWNLOADING


def test_a_repeated_document_releases_nothing():
    rest = state(Phase.FELL_BACK, blocked=(NEW.digest,))
    again = wished("c", generation=5, retry_blocked=(NEW.digest,))
    assert step(rest, again).state.blocked == (NEW.digest,)
    fresh = wished("c", generation=6, retry_blocked=(NEW.digest,))
    assert step(rest, fresh).state.phase == Phase.DOWNLOADING


def test_a_blocked_bundle_keeps_saying_how_it_failed():
    rest = state(Phase.FELL_BACK, blocked=(NEW.digest,), code="errors")
    taken = step(rest, wished("c", generation=6))
    assert (taken.state.phase, taken.state.code) == (Phase.FELL_BACK, "errors")
    other = state(Phase.SUCCEEDED, wanted=Wish(ref=ref("a")), blocked=(NEW.digest,))
    taken = step(other, wished("c", generation=6))
    assert (taken.state.phase, taken.state.code) == (Phase.REJECTED, "blocked")


def test_a_wish_in_a_trial_waits_and_the_newest_one_wins():
    now = step(state(Phase.PROBATION), wished("d", 6)).state
    now = step(now, wished("e", 7)).state
    assert now.pending
    assert now.pending.ref.digest == digest("e")
    ended = step(now, ev.ProbationPassed(5, exercised=True))
    assert ended.effects[-1] == ev.Recall(5)
    begun = step(ended.state, ev.Recalled(5)).state
    assert (begun.phase, begun.wanted_digest, begun.pending) == (
        Phase.DOWNLOADING, digest("e"), None,
    )  # fmt: skip


def test_the_trial_wished_again_forgets_what_was_waiting():
    now = step(state(Phase.PROBATION), wished("d", 6)).state
    now = step(now, wished("c", 7)).state
    assert now.pending is None
    assert now.phase == Phase.PROBATION


def test_the_good_model_wished_in_a_trial_returns_at_once():
    taken = step(state(Phase.PROBATION), wished("a"))
    assert (taken.state.phase, taken.state.trial) == (Phase.SUCCEEDED, None)
    assert taken.effects[0] == ev.Serve(6, GOOD.digest, keep_previous=False)


LOW, HIGH = made("c", security_version=3), made("c", security_version=7)
FLOORS = {"digits": 4, "letters": 9}


@pytest.mark.parametrize(
    ("changes", "event", "code"),
    [
        ({}, ev.Downloaded(5, LOW), "below-floor"),
        ({"floors": {"digits": 3}}, ev.Downloaded(5, LOW), ""),
        ({"floors": {"letters": 9}}, ev.Downloaded(5, LOW), ""),
        ({"floors": {}}, ev.Downloaded(5, LOW, floor=4), "below-floor"),
        ({"floors": {}}, ev.Downloaded(5, LOW, floor=3), ""),
        ({"previous": LOW}, ev.Downloaded(5, LOW), ""),
        ({"previous": LOW}, ev.Downloaded(5, LOW, floor=9), ""),
        ({"active": None, "previous": None}, ev.Downloaded(5, LOW), "below-floor"),
    ],
    ids=[
        "below", "at it", "of another name", "below another slot's", "at another slot's",
        "the recorded previous", "the recorded previous, whatever others have run", "emptied slot",
    ],
)  # fmt: skip
def test_what_a_floor_lets_through(changes, event, code):
    taken = step(state(Phase.DOWNLOADING, **{"floors": FLOORS, **changes}), event).state
    assert taken.code == code
    assert taken.phase == (Phase.REJECTED if code else Phase.VERIFIED)


@pytest.mark.parametrize(
    ("trial", "event", "floors"),
    [
        (HIGH, ev.ProbationPassed(5, exercised=True), {"digits": 7, "letters": 9}),
        (LOW, ev.ProbationPassed(5, exercised=True), FLOORS),
        (HIGH, ev.ProbationTripped(5, "errors", "w"), FLOORS),
        (HIGH, ev.Wished(ref("a")), FLOORS),
        (HIGH, wished("a"), FLOORS),
        (HIGH, ev.Wished(None), FLOORS),
        (HIGH, ev.Wished(None, obeyed=Obeyed(epoch=2, generation=1)), {}),
        (HIGH, ev.Wished(ref("d"), obeyed=Obeyed(epoch=2, generation=1)), {}),
    ],
    ids=["passed", "an older one passed", "tripped", "abandoned", "told otherwise", "emptied",
         "emptied by a new epoch", "a new epoch"],
)  # fmt: skip
def test_when_a_floor_moves(trial, event, floors):
    assert step(state(Phase.PROBATION, floors=FLOORS, trial=trial), event).state.floors == floors


def test_a_fallback_asks_for_no_floor():
    """Nor does it ask whether it is below what has run: it was good before."""
    before = state(Phase.PROBATION, floors=FLOORS, active=LOW, trial=made("d", 9))
    taken = step(before, ev.ProbationTripped(5, "errors", "w"))
    assert taken.effects[0] == ev.Serve(5, LOW.digest, keep_previous=False)
    assert taken.state.active == LOW


def test_a_revoked_good_model_is_not_fallen_back_to():
    refused = ev.LoadFailed(5, GOOD.digest, "revoked-digest", "w", final=True)
    fallen = step(state(Phase.PROBATION), ev.ProbationTripped(5, "errors", "w")).state
    taken = step(fallen, refused)
    assert taken.effects[0] == ev.Serve(5, OLD.digest, keep_previous=False)
    last = step(taken.state, dataclasses.replace(refused, digest=OLD.digest))
    assert (last.state.phase, last.effects[0]) == (Phase.SAFE_MODE, ev.Unserve())


def test_a_load_after_a_restart_that_is_tried_again_is_still_one():
    failed = ev.LoadFailed(5, GOOD.digest, "busy", "w", resumed=True)
    (serve,) = step(state(Phase.SUCCEEDED, starts=1), failed).effects
    assert serve.resumed


def test_a_slot_is_bound_to_a_name_until_it_is_emptied():
    other = ev.Wished(Ref(name="letters", digest=digest("d"), sources=[]))
    assert step(state(Phase.SUCCEEDED), other).state.code == "wrong-name"
    emptied = step(state(Phase.SUCCEEDED), ev.Wished(None)).state
    assert step(emptied, other).state.phase == Phase.DOWNLOADING
    assert (state(Phase.SUCCEEDED).name, emptied.name) == ("digits", None)


def test_floors_of_at_most_so_many_names_and_bytes_are_kept():
    floors: dict[str, int] = {}
    for number in range(40):
        floors = raise_floor(floors, f"n{number:02}", 100 + number)
    assert len(floors) == MAX_FLOORS
    assert floors["n39"] == 139
    assert "n23" not in floors
    for number in range(5):
        floors = raise_floor(floors, f"{number}" * 63, 200)
    assert len(msgspec.json.encode(floors)) <= FLOOR_BYTES
    assert floors["4" * 63] == 200
    assert raise_floor({"a": 5}, "a", 3) == {"a": 5}


OWNER_A, OWNER_B, KEY_A, KEY_B = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


def test_what_another_enrolment_resets():
    told = state(Phase.SUCCEEDED, floors=FLOORS)
    first = belonging(told, owner=OWNER_A, enrolment=KEY_A)
    assert (first.floors, first.obeyed) == (FLOORS, told.obeyed)
    assert belonging(first, owner=OWNER_A, enrolment=KEY_A) == first
    again = belonging(first, owner=OWNER_A, enrolment=KEY_B)
    assert (again.floors, again.obeyed) == (FLOORS, Obeyed(epoch=1))
    assert step(again, wished("d", generation=1)).state.phase == Phase.DOWNLOADING
    sold = belonging(first, owner=OWNER_B, enrolment=KEY_B)
    assert (sold.floors, sold.obeyed) == ({}, Obeyed())
    assert sold.active == told.active


def test_a_trial_that_is_the_previous_one_and_trips_is_no_previous_any_more():
    before = state(Phase.PROBATION, previous=NEW)
    assert step(before, ev.ProbationTripped(5, "errors", "w")).state.previous is None


def test_what_must_stay_in_the_store():
    assert state(Phase.DOWNLOADING).keep == {GOOD.digest, OLD.digest, NEW.digest}
    assert state(Phase.PROBATION).keep == {GOOD.digest, OLD.digest, NEW.digest}
    assert state(Phase.FAILED).keep == {GOOD.digest, OLD.digest}


def test_at_most_so_many_are_blocked_and_the_oldest_is_forgotten():
    blocked: tuple[str, ...] = ()
    for number in range(MAX_BLOCKED + 2):
        blocked = block(blocked, f"sha256:{number:064x}")
    assert len(blocked) == MAX_BLOCKED
    assert blocked[0] == f"sha256:{2:064x}"
    assert block(blocked, blocked[0])[-1] == blocked[0]


def test_what_is_written_down_is_short():
    long = ref("a", "https://h/" + "x" * 300, "https://a/r", "https://b/r", "https://c/r")
    assert short_ref(long).sources == ["https://a/r", "https://b/r"]
    assert short_words("\u00e9\n" * 500).startswith("? ? ?")
    assert len(short_words("a" * 999)) == 200


@pytest.mark.parametrize(
    ("words", "most", "short"),
    [
        ("a model is slow", 15, "a model is slow"),
        ("a model is slow here", 18, "a model is slow..."),
        ("a model is slow, here", 19, "a model is slow..."),
        ("a model is slowish", 17, "a model is..."),
        ("see /a/long/path/of/a/file", 20, "see /a/long/path/..."),
    ],
    ids=["fits", "whole word", "comma", "within a word", "path"],
)
def test_too_many_words_end_at_one_with_an_ellipsis(words, most, short):
    assert short_words(words, most=most) == short


def test_an_alternative_leaves_the_room_that_it_does_not_need_to_the_next():
    slow = "rpi5-fp32: 12.3 ms here for 95 % of single rows, 5.25 ms allowed by this bundle"
    now = state(Phase.PROBING, alternatives=4, alternative=3, words="a: golden-mismatch; " * 4)
    failed = ev.ProbeFailed(5, "latency-budget", slow)
    assert step(now, failed).state.words.endswith(slow)
    crowded = replace(now, alternative=0, words="")
    assert step(crowded, failed).state.words == "rpi5-fp32: 12.3 ms here for 95 % of single..."


def test_a_state_survives_being_written():
    for phase in Phase:
        now = state(phase, pending=Wish(ref=ref("e", "https://h/r")))
        assert msgspec.json.decode(msgspec.json.encode(now), type=SlotState) == now

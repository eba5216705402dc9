"""One slot from wish to end, on a real disk with real bundles."""

from __future__ import annotations

import errno
import threading
import time

import bundle_samples
import pytest
from msgspec.structs import replace
from slot_world import PROBATION, Crash, World, bundle

from edgepack_contract.errors import UntrustedBundleError
from edgepack_contract.instructions import Obeyed
from edgepack_contract.messages import SlotDesired
from edgepack_contract.states import Phase
from edgepack_runtime.activation.guard import Counters
from edgepack_runtime.storage import store as store_module

A, B, C = bundle("1.0.0"), bundle("1.1.0"), bundle("1.2.0")

HAPPY = ["downloading", "verified", "probing", "activating", "probation", "succeeded"]


@pytest.fixture
def running(world) -> World:
    """A slot that runs A."""
    world.start()
    world.install(A)
    world.host.phases.clear()
    return world


def test_a_first_install_reports_every_phase_and_succeeds(world):
    world.start()
    world.wish(A)
    world.settle()
    assert world.host.phases == ["idle", *HAPPY]
    status = world.agent.status()
    assert (status.running, status.wanted, status.previous) == (A.digest, A.digest, None)
    assert (status.version, status.exercised, status.blocked) == ("1.0.0", True, [])
    assert world.host.events == [("installed", A.digest, "")]


def test_an_update_keeps_the_former_model_as_the_previous_one(running):
    running.install(B)
    assert running.host.phases == HAPPY
    assert running.agent.status().previous == A.digest
    assert running.state.floors == {"digits": 3}
    running.install(C)
    assert not running.store.has(A.digest)
    assert running.store.has(B.digest)


def test_the_former_model_stays_loaded_in_probation_and_some_time_after(running):
    running.wish(B)
    running.run_to(Phase.PROBATION)
    assert (running.host.serving, running.host.shadow) == (B.digest, A.digest)
    assert running.agent.status().previous == A.digest
    running.settle()
    assert running.host.shadow == A.digest
    since = running.now
    while running.host.shadow and running.now < since + 10:
        running.agent.turn()
    assert running.host.shadow is None


def test_a_wish_for_what_runs_changes_nothing(running):
    before = running.host.served.copy()
    running.wish(A)
    running.settle()
    assert running.host.served == before
    assert running.state.obeyed.generation == running.generation


def test_the_same_document_again_changes_nothing_even_after_a_failure(running):
    running.temper.probe_codes[B.digest] = ["golden-mismatch"]
    running.wish(B)
    running.settle()
    assert running.state.phase == Phase.FAILED
    running.wish(B, repeat=True)
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.FAILED, "golden-mismatch")


def test_a_rollback_needs_no_download_and_goes_the_whole_way(running):
    running.install(B)
    running.host.phases.clear()
    running.temper.source_failures = 100
    running.wish(A)
    running.settle()
    assert running.host.phases == HAPPY
    assert running.host.serving == A.digest
    assert running.agent.status().previous == B.digest


def test_a_tripped_probation_returns_to_the_former_model_and_blocks_the_new_one(running):
    running.temper.counters[B.digest] = Counters(requests=100, errors=30)
    running.wish(B)
    running.settle()
    assert running.host.phases == [*HAPPY[:-1], "fell_back"]
    status = running.agent.status()
    assert (status.running, status.wanted, status.code) == (A.digest, B.digest, "errors")
    assert status.blocked == [B.digest]
    assert running.host.events[-1] == ("fallback", B.digest, "errors")
    assert not running.store.has(B.digest)


def test_a_blocked_bundle_is_tried_again_only_when_it_is_released(running):
    running.temper.counters[B.digest] = Counters(requests=100, errors=30)
    running.wish(B)
    running.settle()
    running.install(C)
    running.temper.counters.clear()
    running.wish(B)
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.REJECTED, "blocked")
    assert running.host.serving == C.digest
    running.wish(B, retry_blocked=[B.digest])
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, B.digest)


def test_without_requests_the_golden_inputs_decide(running):
    running.temper.counters[B.digest] = Counters()
    running.wish(B)
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.SUCCEEDED, "unexercised")
    assert running.agent.status().exercised is False
    running.temper.counters[C.digest] = Counters()
    running.temper.golden_wrong.add(C.digest)
    running.wish(C)
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.FELL_BACK, "golden-mismatch")
    assert running.host.serving == B.digest


def test_a_load_is_tried_three_times(running):
    running.temper.load_failures[B.digest] = 2
    running.install(B)
    running.temper.load_failures[C.digest] = 3
    running.wish(C)
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.FELL_BACK, B.digest)
    assert running.state.blocked == (C.digest,)


def test_a_busy_machine_may_fail_a_probe_twice(running):
    running.temper.probe_codes[B.digest] = ["probe-timeout", "probe-memory"]
    running.install(B)


@pytest.mark.parametrize(("after", "phase"), [(60, Phase.SUCCEEDED), (80, Phase.FELL_BACK)])
def test_memory_is_counted_from_before_the_model_was_loaded(running, after, phase):
    """The first look comes late: by then requests have made the model take what it takes."""
    running.temper.counters[A.digest] = Counters(requests=1000, memory_bytes=10_000_000)
    grown = Counters(requests=1000, memory_bytes=10_000_000 + after * 1_000_000)
    running.temper.counters[B.digest] = grown
    running.wish(B)
    running.settle()
    assert running.state.phase == phase
    assert running.state.code == ("" if phase == Phase.SUCCEEDED else "memory")


def test_a_first_model_that_misbehaves_leads_to_safe_mode_and_the_next_one_out_of_it(world):
    world.start()
    world.temper.counters[A.digest] = Counters(requests=100, nonfinite=50)
    world.wish(A)
    world.settle()
    assert (world.state.phase, world.host.serving) == (Phase.SAFE_MODE, None)
    assert world.state.code == "nonfinite-outputs"
    world.install(B)


def test_a_newer_wish_replaces_a_download(running):
    running.wish(B)
    running.wish(C)
    running.settle()
    assert running.host.serving == C.digest
    assert B.digest not in running.host.served


def test_a_newer_wish_in_probation_waits_for_its_end(running):
    running.wish(B)
    running.run_to(Phase.PROBATION)
    running.wish(C)
    running.agent.turn()
    assert running.agent.status().wanted == C.digest
    assert running.state.phase == Phase.PROBATION
    running.settle()
    assert running.host.serving == C.digest
    assert running.agent.status().previous == B.digest


def test_a_rollback_in_probation_takes_effect_at_once_and_blocks_nothing(running):
    running.wish(B)
    running.run_to(Phase.PROBATION)
    at = running.now
    running.wish(A)
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, A.digest)
    assert running.now == at
    assert running.state.blocked == ()


def test_sources_that_do_not_answer_are_asked_again(running):
    running.temper.source_failures = 3
    running.install(B)
    running.temper.source_failures = 4
    running.wish(C)
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.FAILED, "source-unavailable")
    assert running.host.serving == B.digest
    running.wish(C)
    running.settle()
    assert running.host.serving == C.digest


def test_a_bundle_below_the_floor_is_refused_but_the_recorded_previous_is_not(running):
    risen = bundle("1.3.0", security_version=9)
    running.install(risen)
    assert running.state.floors == {"digits": 9}
    running.wish(B)
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.REJECTED, "below-floor")
    running.install(A)
    assert running.state.floors == {"digits": 9}


def test_a_larger_epoch_resets_the_floor(running):
    running.install(bundle("1.3.0", security_version=9))
    running.wish(B, epoch=2)
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, B.digest)


def test_the_floor_rises_only_with_success(running):
    risen = bundle("1.3.0", security_version=9)
    running.temper.counters[risen.digest] = Counters(requests=100, errors=100)
    running.wish(risen)
    running.settle()
    assert (running.state.phase, running.agent.status().floor) == (Phase.FELL_BACK, 3)


def test_a_slot_is_bound_to_one_name(running):
    running.wish(bundle("1.0.0", name="letters"))
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.REJECTED, "wrong-name")


def test_a_bundle_of_a_stranger_is_refused(running):
    running.keyring = bundle_samples.keyring(key=bundle_samples.STRANGER)
    running.wish(B)
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.REJECTED, A.digest)
    assert running.host.events[-1][0] == "verify-failed"


def test_a_revoked_bundle_is_never_loaded_not_even_to_fall_back(running):
    running.install(B)
    running.keyring = replace(running.keyring, revoked_digests=[B.digest])
    running.temper.counters[C.digest] = Counters(requests=100, errors=100)
    running.wish(C)
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.FELL_BACK, A.digest)


def test_what_runs_goes_on_when_it_is_revoked_and_says_so(running):
    running.install(B)
    running.keyring = replace(running.keyring, revoked_digests=[B.digest])
    said = running.agent.status()
    assert (said.running, said.phase, said.code) == (B.digest, Phase.SUCCEEDED, "revoked-digest")
    assert said.words.startswith("what runs is revoked; it goes on until")
    for crashed in (False, True):
        running.start(crashed_boot=crashed)
        assert running.host.serving == B.digest
    running.wish(C)
    running.settle()
    assert (running.agent.status().running, running.agent.status().code) == (C.digest, "")
    running.wish(B)
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.REJECTED, "revoked-digest")


def test_a_revoked_bundle_is_the_end_when_there_is_no_other_to_fall_back_to(running):
    running.keyring = replace(running.keyring, revoked_digests=[A.digest])
    running.temper.counters[C.digest] = Counters(requests=100, errors=100)
    running.wish(C)
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.SAFE_MODE, None)


def test_the_floor_of_another_slot_counts(running):
    parts = running.agent._parts
    running.agent._runner._floor_elsewhere = lambda name: {"digits": 4}[name]
    assert parts.floor_elsewhere("digits") == 0
    running.wish(B)
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.REJECTED, "below-floor")


def test_a_local_install_needs_no_fleet_and_outlives_a_repeated_document(running):
    found = running.agent.install_local(B.path, probation=PROBATION)
    assert found.bundle is not None
    assert (found.bundle.digest, found.bundle.version) == (B.digest, "1.1.0")
    running.settle()
    running.wish(A, repeat=True)
    running.settle()
    assert running.host.serving == B.digest


def test_a_local_install_of_an_untrusted_file_is_refused_at_once(running):
    running.keyring = bundle_samples.keyring(key=bundle_samples.STRANGER)
    with pytest.raises(UntrustedBundleError):
        running.agent.install_local(B.path)


def test_files_named_from_afar_are_not_opened(running):
    running.generation += 1
    desired = SlotDesired(active=B.ref(str(B.path)), probation=PROBATION)
    running.agent.wish(desired, Obeyed(epoch=1, generation=running.generation))
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.FAILED, "no-source")


def test_a_slot_can_be_emptied(running):
    running.generation += 1
    running.agent.wish(SlotDesired(active=None), Obeyed(epoch=1, generation=running.generation))
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.IDLE, None)
    assert not running.store.has(A.digest)


def test_a_clean_restart_serves_what_was_served_and_says_nothing_new(running):
    running.install(B)
    running.stop()
    running.start()
    assert running.host.served == [B.digest]
    assert running.host.events == []
    assert running.agent.status().phase == Phase.SUCCEEDED


def test_a_crash_in_service_is_told(running):
    running.start()
    assert running.host.events == [("crash", A.digest, "crash")]
    assert running.host.serving == A.digest


def test_three_crashes_in_probation_bring_the_former_model_back(running):
    running.wish(B)
    for _ in range(3):
        running.run_to(Phase.PROBATION)
        running.start()
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.FELL_BACK, "crash-loop")
    assert running.host.serving == A.digest
    assert running.state.blocked == (B.digest,)


def test_clean_restarts_in_probation_never_count(running):
    running.wish(B)
    for _ in range(9):
        running.run_to(Phase.PROBATION)
        running.stop()
        running.start()
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, B.digest)


@pytest.mark.parametrize(("cuts", "phase"), [(6, Phase.SUCCEEDED), (7, Phase.FELL_BACK)])
def test_power_cuts_count_from_the_fifth(running, cuts, phase):
    running.wish(B)
    for _ in range(cuts):
        running.run_to(Phase.PROBATION)
        running.start(crashed_boot=True)
    running.settle()
    assert running.state.phase == phase


def test_a_good_model_that_kills_the_process_at_every_start_gives_way(running):
    running.install(B)

    def die(folder, digest, *, keep_previous):
        raise Crash if digest == B.digest else AssertionError

    for _ in range(3):
        running.boot_process()
        running.host.serve = die
        running.agent.open()
        with pytest.raises(Crash):
            running.agent.begin()
    running.start()
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.FELL_BACK, A.digest)
    assert running.state.blocked == (B.digest,)


def test_a_good_model_whose_files_rot_gives_way_after_an_unclean_stop(running):
    running.install(B)
    model = running.store.model(B.digest) / "model.onnx"
    model.write_bytes(b"x" + model.read_bytes()[1:])
    running.start()
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.FELL_BACK, A.digest)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO])
def test_a_file_that_cannot_be_opened_for_a_moment_costs_no_model(running, monkeypatch, number):
    whole, left = store_module._open_no_link, [number, number]

    def short(path, flags):
        if left:
            raise OSError(left.pop(), "for a moment")
        return whole(path, flags)

    monkeypatch.setattr(store_module, "_open_no_link", short)
    running.start()
    running.settle()
    assert left == []
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, A.digest)
    assert running.state.blocked == ()
    assert running.store.has(A.digest)


def test_rotten_files_in_the_store_are_fetched_again(running):
    running.install(B)
    index = next((running.store.entry(A.digest) / "proof").glob(A.digest.replace(":", "-")))
    index.write_bytes(b"{}")
    running.install(A)


def test_no_room_is_said_before_a_byte_is_fetched(running):
    running.stop()
    running.reserve_bytes = 2**60
    running.start()
    running.wish(B)
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.FAILED, "disk-full")
    assert running.host.serving == A.digest


def test_a_lost_report_or_event_never_causes_a_fallback(running):
    running.temper.reports_fail = running.temper.events_fail = True
    running.wish(B)
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, B.digest)
    running.stop()
    running.temper.reports_fail = running.temper.events_fail = False
    running.start()
    assert running.host.events == [("installed", B.digest, "")]
    assert running.state.announced


def test_a_damaged_journal_falls_back_to_its_copy(running):
    running.install(B)
    running.stop()
    path = running.root / "slots" / "main" / "CURRENT"
    path.write_bytes(path.read_bytes()[:-9])
    running.start()
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, B.digest)


def test_throttling_pauses_the_probation_but_not_for_ever(running):
    running.temper.throttled = True
    running.wish(B)
    running.run_to(Phase.PROBATION)
    at = running.now
    running.settle()
    assert running.host.serving == B.digest
    assert PROBATION.max_seconds <= running.now - at < PROBATION.max_seconds + 1


def test_a_host_that_cannot_be_watched_ends_the_probation(running):
    def broken():
        raise RuntimeError("no counters")

    running.wish(B)
    running.run_to(Phase.PROBATION)
    running.host.counters = broken
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.FELL_BACK, "internal")


def test_in_its_own_thread(world):
    agent = world.boot_process(thread=True)
    agent.start()
    world.generation += 1
    ref = A.ref(f"https://fleet.example/{A.path.name}")
    brief = replace(PROBATION, seconds=0.01)
    desired = SlotDesired(active=ref, probation=brief)
    agent.wish(desired, Obeyed(epoch=1, generation=1))
    changed = threading.Event()
    deadline = time.monotonic() + 20
    while world.host.serving != A.digest or agent.status().phase != Phase.SUCCEEDED:
        assert time.monotonic() < deadline, agent.status()
        changed.wait(0.005)
    assert agent.alive
    agent.stop()
    assert not agent.alive
    assert agent.state.clean

"""Of ranked variants the first that does well: which is tried when, and what is said of it."""

from __future__ import annotations

import pytest
from slot_world import PROBATION, Crash, World, bundle, ranked

from edgepack_contract.states import Phase
from edgepack_runtime.activation.figures import chosen_figures, read_tried
from edgepack_runtime.activation.guard import Counters

A, B, C = bundle("1.0.0"), ranked("2.0.0"), ranked("2.1.0")


@pytest.fixture
def running(world):
    """A slot that runs A."""
    world.start()
    world.install(A)
    world.host.phases.clear()
    world.probed.clear()
    return world


def variant(world, digest=None):
    """The variant that the store has of a bundle, by its files."""
    folder = world.store.model(digest or world.host.serving)
    return world.agent._parts.installer.describe(f"sha256:{folder.parent.name}").variant


def evidence(world):
    """What the last event says of the alternatives: variant and code."""
    said = world.host.evidence[-1]["alternatives"]
    return [(one["variant"], one["code"]) for one in said]


def test_the_best_that_does_well_is_the_only_one_tried(running):
    running.install(B)
    assert (running.probed, variant(running)) == (["fast"], "fast")
    assert (running.state.code, running.state.words) == ("", "")
    assert chosen_figures(running.store.model(B.digest)).p95_ms == 1.5


def test_the_next_is_tried_when_one_does_badly(running):
    running.temper.probe_codes["fast"] = ["latency-budget"]
    running.install(B)
    assert (running.probed, variant(running)) == (["fast", "alt1"], "alt1")
    assert running.host.phases == [
        "downloading", "verified", "probing", "downloading", "verified", "probing",
        "activating", "probation", "succeeded",
    ]  # fmt: skip
    assert running.agent.status().words == "fast: latency-budget; alt1 was chosen"
    assert evidence(running) == [("fast", "latency-budget"), ("alt1", "")]
    assert [one.variant for one in read_tried(running.store.model(B.digest))] == ["fast", "alt1"]


def test_the_install_fails_when_none_does_well(running):
    running.temper.probe_codes |= {
        "fast": ["golden-mismatch"], "alt1": ["load-failed"], "fp32": ["probe-crashed"],
    }  # fmt: skip
    running.wish(B)
    running.settle()
    assert running.probed == ["fast", "alt1", "fp32"]
    said = running.agent.status()
    assert (said.phase, said.running, said.code) == (Phase.FAILED, A.digest, "probe-crashed")
    assert said.words == "fast: golden-mismatch; alt1: load-failed; fp32: probe-crashed"
    assert said.blocked == [B.digest]
    assert evidence(running) == [
        ("fast", "golden-mismatch"), ("alt1", "load-failed"), ("fp32", "probe-crashed"),
    ]  # fmt: skip
    assert not running.store.has(B.digest)
    running.wish(B, retry_blocked=[B.digest])
    running.settle()
    assert (running.state.phase, variant(running)) == (Phase.SUCCEEDED, "fast")


def test_a_variant_of_other_features_is_no_alternative(running):
    running.temper.probe_codes |= {name: ["golden-mismatch"] for name in ("fast", "alt1", "fp32")}
    running.wish(B)
    running.settle()
    assert "generic" not in running.probed


def test_a_busy_machine_is_asked_again_before_the_next_is_tried(running):
    running.temper.probe_codes["fast"] = ["probe-timeout"] * 3
    running.install(B)
    assert running.probed == ["fast", "fast", "fast", "alt1"]
    assert evidence(running) == [("fast", "probe-timeout"), ("alt1", "")]


@pytest.mark.parametrize("code", ["malformed-model", "undescribed-model", "external-data"])
def test_a_graph_that_must_not_be_refuses_the_whole_bundle(running, code):
    running.temper.probe_codes["fast"] = [code]
    running.wish(B)
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.REJECTED, code)
    assert running.probed == ["fast"]
    assert running.host.events[-1][0] == "verify-failed"
    assert running.host.serving == A.digest


def test_an_alternative_is_what_a_restart_goes_on_with(running):
    running.temper.probe_codes["fast"] = ["latency-budget"]
    running.wish(B)
    running.run_to(Phase.PROBING)
    while running.state.alternative == 0:
        running.agent.turn()
    running.stop()
    running.start()
    running.settle()
    assert running.probed == ["fast", "alt1"]
    assert (running.state.phase, variant(running)) == (Phase.SUCCEEDED, "alt1")
    running.start()
    assert (running.host.serving, variant(running)) == (B.digest, "alt1")
    assert running.agent.status().words == "fast: latency-budget; alt1 was chosen"


def test_a_variant_that_ends_the_process_gives_way_to_the_next(running):
    def die(folder):
        raise Crash

    running.wish(B)
    for _ in range(3):
        running.run_to(Phase.VERIFIED)
        running.agent._runner._probe = die
        with pytest.raises(Crash):
            running.agent.turn()
        running.start()
    running.settle()
    assert (running.state.phase, variant(running)) == (Phase.SUCCEEDED, "alt1")
    assert running.state.words.startswith("the process ended 3 times while it checked")


def test_the_recorded_previous_comes_back_as_the_variant_that_it_was(running):
    running.temper.probe_codes["fast"] = ["latency-budget"]
    running.install(B)
    running.install(A)
    running.probed.clear()
    running.temper.source_failures = 100
    running.install(B)
    assert (running.probed, variant(running)) == (["alt1"], "alt1")


def test_the_files_of_the_recorded_previous_are_never_replaced(running):
    running.install(B)
    running.install(A)
    running.temper.probe_codes["fast"] = ["golden-mismatch"]
    running.wish(B)
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.FAILED, "golden-mismatch")
    assert variant(running, B.digest) == "fast"


def test_another_alternative_is_not_tried_after_it_answered(running):
    """What a probation finds may lie in any of them; the device goes back to what was good."""
    running.temper.counters[B.digest] = Counters(requests=100, errors=30)
    running.wish(B)
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.FELL_BACK, A.digest)
    assert running.probed == ["fast"]


def test_a_new_wish_begins_with_the_best(running):
    running.temper.probe_codes["fast"] = ["latency-budget"]
    running.wish(B)
    running.run_to(Phase.PROBING)
    while running.state.alternative == 0:
        running.agent.turn()
    running.install(C)
    assert (variant(running), running.state.words) == ("fast", "")


def test_a_source_that_is_gone_meanwhile_keeps_the_words_of_those_before(running):
    running.temper.probe_codes["fast"] = ["latency-budget"]
    running.wish(B)
    running.run_to(Phase.PROBING)
    running.temper.source_failures = 100
    running.settle()
    assert (running.state.phase, running.state.code) == (Phase.FAILED, "source-unavailable")
    assert running.state.words.startswith("fast: latency-budget; ")
    assert running.state.blocked == ()
    running.temper.source_failures = 0
    running.wish(B)
    running.settle()
    assert (running.state.phase, variant(running)) == (Phase.SUCCEEDED, "fast")


def test_figures_that_cannot_be_kept_change_nothing(running):
    running.wish(B)
    running.run_to(Phase.VERIFIED)

    def fail(name, count):
        if name == "replace" and running.state.phase == Phase.PROBING:
            running.calls.fault = None
            raise OSError(28, "No space left on device")

    running.calls.fault = fail
    running.settle()
    assert (running.state.phase, running.host.serving) == (Phase.SUCCEEDED, B.digest)
    assert chosen_figures(running.store.model(B.digest)) is None


def test_a_local_file_has_its_alternatives_tried_too(running):
    running.temper.probe_codes["fast"] = ["probe-crashed"]
    running.agent.install_local(B.path, probation=PROBATION)
    running.settle()
    assert (running.state.phase, variant(running)) == (Phase.SUCCEEDED, "alt1")


def choose(world, fault=None):
    """Install B, whose best variant does badly here; ``fault`` sees every change of the disk."""
    world.temper.probe_codes["fast"] = ["latency-budget"] * 9
    world.calls.count = 0
    world.calls.fault = fault
    world.wish(B)
    world.settle()


def prepared(root, number):
    """A device of its own that runs A."""
    world = World(root / str(number))
    world.start()
    world.install(A)
    return world


def test_a_process_that_ends_at_some_change_of_the_disk_chooses_the_same(root):
    whole = prepared(root, 0)
    choose(whole)
    total = whole.calls.count
    assert total > 90
    for end_at in range(1, total + 1, 7):
        world = prepared(root, end_at)

        def end(_name, count, end_at=end_at):
            if count == end_at:
                raise Crash

        with pytest.raises(Crash):
            choose(world, end)
        world.calls.fault = None
        world.start()
        assert world.host.serving in (A.digest, B.digest)
        world.settle()
        if world.state.wanted_digest != B.digest:
            world.wish(B)
            world.settle()
        assert (world.state.phase, variant(world)) == (Phase.SUCCEEDED, "alt1"), end_at
        assert (world.host.serving, world.state.active.digest) == (B.digest, B.digest)
        kept = {
            one.digest.removeprefix("sha256:") for one in (world.state.active, world.state.previous)
        }
        slot = world.root / "slots" / "main"
        assert {entry.name for entry in (slot / "store").iterdir()} == kept
        assert not list((slot / "staging").iterdir())
        assert not list(slot.rglob("*.tmp-*"))

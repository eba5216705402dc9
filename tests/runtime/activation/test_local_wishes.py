"""What a person at the device asks of a slot: go back, start over; and the factory bundle."""

from __future__ import annotations

import logging
import shutil

import bundle_samples
import pytest
from msgspec.structs import replace
from slot_world import PROBATION, Crash, World, bundle

from edgepack_contract.instructions import Obeyed
from edgepack_contract.messages import Ref, SlotDesired
from edgepack_contract.states import Phase
from edgepack_runtime.activation.factory import is_due, lacks_model
from edgepack_runtime.activation.guard import Counters
from edgepack_runtime.activation.state import SlotState
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.sources.archive import ArchiveSource

A, B, C = bundle("1.0.0"), bundle("1.1.0"), bundle("1.2.0")
SAFER = bundle("2.0.0", security_version=7)


@pytest.fixture
def updated(world) -> World:
    """A slot that ran A and runs the safer one."""
    world.start()
    world.install(A)
    world.install(SAFER)
    return world


def test_an_install_from_a_file_goes_on_after_a_kill(world, tmp_path, monkeypatch):
    world.start()
    world.install(A)
    file = shutil.copy(B.path, tmp_path / B.path.name)
    assert world.agent.install_local(file, probation=PROBATION).resumes

    def killed(_path):
        raise Crash

    monkeypatch.setattr(ArchiveSource, "open", killed)
    with pytest.raises(Crash):
        world.settle()
    monkeypatch.undo()
    world.start()
    assert world.state.phase == Phase.DOWNLOADING
    world.settle()
    assert (world.state.phase, world.host.serving) == (Phase.SUCCEEDED, B.digest)


def test_a_path_that_is_too_long_to_be_kept_is_said_so(world, tmp_path):
    world.start()
    folder = tmp_path / ("a" * 200)
    folder.mkdir()
    file = shutil.copy(A.path, folder / A.path.name)
    assert not world.agent.install_local(file, probation=PROBATION).resumes
    world.settle()
    assert world.host.serving == A.digest


def test_a_document_of_the_fleet_names_no_file_of_this_machine(world):
    world.start()
    ref = Ref(name="digits", digest=A.digest, sources=[str(A.path), "file:///etc/shadow"])
    world.agent.wish(SlotDesired(active=ref), Obeyed(epoch=1, generation=1))
    world.settle()
    assert world.state.phase == Phase.FAILED
    assert world.state.wanted.ref.sources == []


def with_factory(world: World, sample) -> World:
    world.factory = sample.path
    return world


def test_rolling_back_goes_through_probation_and_under_the_floor(updated):
    asked = updated.agent.roll_back(probation=PROBATION)
    assert asked.bundle is not None
    assert asked.bundle.digest == A.digest
    updated.run_to(Phase.PROBATION)
    updated.settle()
    assert (updated.state.phase, updated.host.serving) == (Phase.SUCCEEDED, A.digest)
    assert updated.state.floors == {"digits": 7}
    # and forth again
    updated.agent.roll_back(probation=PROBATION)
    updated.settle()
    assert updated.host.serving == SAFER.digest


def test_rolling_back_to_what_is_revoked_is_refused(updated):
    updated.keyring = replace(updated.keyring, revoked_digests=[A.digest])
    updated.agent.roll_back()
    updated.settle()
    assert (updated.state.phase, updated.state.code) == (Phase.REJECTED, "revoked-digest")
    assert updated.host.serving == SAFER.digest


def test_rolling_back_in_a_trial_ends_the_trial(updated):
    updated.wish(bundle("2.1.0", security_version=7))
    updated.run_to(Phase.PROBATION)
    assert updated.agent.roll_back().bundle.digest == SAFER.digest
    updated.settle()
    assert (updated.state.phase, updated.host.serving) == (Phase.SUCCEEDED, SAFER.digest)


def test_there_is_nothing_to_go_back_to(world):
    world.start()
    with pytest.raises(DeviceError, match="no bundle to go back to") as caught:
        world.agent.roll_back()
    assert caught.value.code == "no-previous"


def test_a_ticket_is_attended_when_the_slot_has_taken_notice(updated):
    asked = updated.agent.roll_back(probation=PROBATION)
    assert asked.ticket > updated.agent.attended
    updated.agent.turn()
    assert asked.ticket == updated.agent.attended


def test_a_reset_forgets_all_but_floors_and_orders(updated):
    updated.temper.counters[B.digest] = Counters(requests=100, errors=50)
    updated.agent.install_local(B.path)
    updated.settle()
    before = updated.state
    updated.agent.reset()
    updated.settle()
    state = updated.state
    assert (state.phase, state.code, updated.host.serving) == (Phase.IDLE, "emptied-here", None)
    assert (state.active, state.previous, state.blocked) == (None, None, ())
    assert (state.floors, state.obeyed) == (before.floors, before.obeyed)
    assert not updated.store.has(A.digest)
    assert updated.agent._parts.history.records() == []


def test_the_order_before_a_reset_is_not_obeyed_again_but_the_next_is(updated):
    updated.agent.reset()
    updated.settle()
    updated.wish(SAFER, repeat=True)
    updated.settle()
    assert updated.state.phase == Phase.IDLE
    updated.install(SAFER)


def test_a_first_start_takes_the_factory_bundle(world):
    with_factory(world, A).start()
    world.agent.turn()
    world.settle()
    assert (world.state.phase, world.host.serving) == (Phase.SUCCEEDED, A.digest)


def test_safe_mode_takes_the_factory_bundle(world):
    with_factory(world, B).start()
    world.temper.counters[A.digest] = Counters(requests=100, errors=50)
    world.wish(A)
    world.run_to(Phase.SAFE_MODE)
    world.agent.turn()
    assert world.state.phase == Phase.SAFE_MODE
    for _ in range(60):
        world.agent.turn()
    assert (world.state.phase, world.host.serving) == (Phase.SUCCEEDED, B.digest)
    assert A.digest in world.state.blocked


def test_a_factory_bundle_that_fails_is_not_tried_for_ever(world):
    world.temper.counters[A.digest] = Counters(requests=100, errors=50)
    with_factory(world, A).start()
    for _ in range(60):
        world.agent.turn()
    assert (world.state.phase, world.state.install) == (Phase.SAFE_MODE, 1)


def test_a_factory_bundle_is_verified_like_any_other(world, caplog):
    caplog.set_level(logging.WARNING)
    world.keyring = bundle_samples.keyring(key=bundle_samples.STRANGER)
    with_factory(world, A).start()
    for _ in range(10):
        world.agent.turn()
    assert (world.state.phase, world.host.serving) == (Phase.IDLE, None)
    assert caplog.text.count("cannot be taken: the bundle is signed by an unknown key") == 1
    assert "unknown key" in world.agent.factory_trouble


def test_a_slot_that_the_fleet_wants_empty_stays_empty(world):
    with_factory(world, A).start()
    world.agent.wish(SlotDesired(active=None), Obeyed(epoch=1, generation=1))
    world.settle()
    for _ in range(10):
        world.agent.turn()
    assert (world.state.phase, world.host.serving) == (Phase.IDLE, None)


def test_a_reset_slot_takes_its_factory_bundle(updated):
    updated.stop()
    with_factory(updated, bundle("0.9.0", security_version=7)).start()
    updated.agent.reset()
    for _ in range(60):
        updated.agent.turn()
    assert updated.agent.status().version == "0.9.0"


def test_what_the_fleet_wants_takes_the_place_of_the_factory_bundle(world):
    with_factory(world, A).start()
    world.agent.turn()
    world.settle()
    world.install(B)


IDLE = SlotState()


@pytest.mark.parametrize(
    ("state", "lacks", "due"),
    [
        (IDLE, True, True),
        (replace(IDLE, obeyed=Obeyed(epoch=1, generation=3)), False, False),
        (replace(IDLE, obeyed=Obeyed(generation=3), code="emptied-here"), True, True),
        (replace(IDLE, phase=Phase.SAFE_MODE), True, True),
        (replace(IDLE, phase=Phase.SAFE_MODE, blocked=("sha256:f",)), True, False),
        (replace(IDLE, phase=Phase.DOWNLOADING), False, False),
    ],
    ids=["new", "emptied", "reset", "safe", "blocked", "busy"],
)
def test_when_a_factory_bundle_is_due(state, lacks, due):
    assert (lacks_model(state), is_due(state, "sha256:f")) == (lacks, due)

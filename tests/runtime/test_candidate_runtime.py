"""What a candidate's agent is told, and what is remembered of it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from edgepack_contract.instructions import Obeyed
from edgepack_contract.messages import Candidate, CandidateMode, Ref, SlotDesired, SlotReported
from edgepack_contract.states import Phase
from edgepack_runtime.activation.state import Installed, SlotState
from edgepack_runtime.candidate_runtime import CandidateRuntime
from edgepack_runtime.errors import StorageFaultError
from edgepack_runtime.serving.slot import Slot
from edgepack_runtime.storage.fsio import DurableFS

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
SHADOW, SPLIT = CandidateMode.SHADOW, CandidateMode.SPLIT


class FakeAgent:
    """Keeps the wishes it is given; its state is what a test says."""

    def __init__(self):
        active = Installed(digest=ONE, name="pump", version="1.0.0", security_version=0)
        self.state = SlotState(phase=Phase.SUCCEEDED, active=active)
        self.wishes, self.alive, self.resets = [], True, 0

    def start(self):
        self.state = SlotState()

    def stop(self):
        self.alive = False

    def wish(self, desired, obeyed):
        self.wishes.append((desired.active.digest if desired.active else None, obeyed.generation))
        self.retried = desired.retry_blocked

    def empty(self):
        self.wishes.append("emptied")

    def reset(self):
        self.resets += 1

    def status(self):
        return SlotReported(
            phase=self.state.phase, running=None, version=None, previous=None, wanted=None,
            code=self.state.code, words=self.state.words,
        )  # fmt: skip


class Here:
    def __init__(self, folder, slot):
        self.fs, self.folder, self.slot = DurableFS(), folder, slot
        self.active, self.agent = FakeAgent(), FakeAgent()
        self.runtime = self.opened()

    def opened(self):
        runtime = CandidateRuntime(
            self.slot, self.active, lambda: self.agent, fs=self.fs, folder=self.folder
        )
        runtime.open()
        return runtime

    def wish(self, digest=TWO, *, generation=1, active=ONE, mode=SHADOW, name="pump", **more):
        candidate = None
        if digest is not None:
            ref = Ref(name=name, digest=digest, sources=[])
            candidate = Candidate(ref=ref, mode=mode, share=0.5)
        desired = SlotDesired(
            active=Ref(name="pump", digest=active, sources=[]), candidate=candidate, **more
        )
        self.runtime.wish(desired, Obeyed(epoch=1, generation=generation))


@pytest.fixture
def here(tmp_path):
    async def made():
        return Slot("pump")

    slot = asyncio.run(made())
    yield Here(tmp_path / "candidate", slot)
    asyncio.run(slot.close())


def test_without_a_candidate_there_is_no_agent_and_no_file(here):
    here.wish(None)
    assert here.runtime.agent is None
    assert here.runtime.status() is None
    assert here.runtime.alive
    assert not here.folder.exists()


def test_what_it_does_survives_a_restart(here):
    here.wish(mode=SPLIT)
    assert here.agent.wishes == [(TWO, 1)]
    again = here.opened()
    assert again.wanted == TWO
    said = again.status()
    assert (said.wanted, said.mode, said.share) == (TWO, SPLIT, 0.5)
    assert (here.slot.candidate.mode, here.slot.candidate.share) == (SPLIT, 0.5)
    here.wish(None, generation=2)
    assert here.agent.wishes[-1] == (None, 2)
    assert here.opened().agent is None


@pytest.mark.parametrize("raw", [b"", b"{", b'{"digest": 1}'])
def test_terms_that_cannot_be_read_are_none(here, raw):
    here.folder.mkdir()
    (here.folder / "terms.json").write_bytes(raw)
    assert here.opened().status() is None


@pytest.mark.parametrize(
    ("wish", "blocked", "code"),
    [
        ({"digest": ONE}, (), "same-bundle"),
        ({"name": "fan"}, (), "wrong-name"),
        ({}, (TWO,), "blocked"),
    ],
)
def test_what_must_not_be_a_candidate_is_not_installed(here, wish, blocked, code):
    here.active.state = msgspec.structs.replace(here.active.state, blocked=blocked)
    here.wish(**wish)
    assert here.agent.wishes == [(None, 1)]
    said = here.runtime.status()
    assert (said.phase, said.code) == (Phase.FAILED, code)
    assert here.runtime.wanted is None


def test_what_failed_as_the_active_model_can_be_released(here):
    here.active.state = msgspec.structs.replace(here.active.state, blocked=(TWO,))
    here.wish(retry_blocked=[TWO])
    assert here.agent.wishes == [(TWO, 1)]


def test_a_candidate_that_had_to_go_for_a_later_one_is_begun_anew(here):
    three = "sha256:" + "3" * 64
    here.wish(TWO)
    here.wish(three, generation=2)
    # the later one failed: the agent went back to the first, which nobody wanted then
    before = Installed(digest=TWO, name="pump", version="1.0.0", security_version=0)
    here.agent.state = SlotState(phase=Phase.FELL_BACK, active=before)
    here.wish(TWO, generation=3)
    assert here.agent.wishes == [(TWO, 1), (three, 2), "emptied", (TWO, 3)]


def test_a_candidate_is_dropped_until_another_document_wants_it(here):
    here.runtime.drop("no-memory", "no candidate, nothing to drop")
    here.wish()
    here.runtime.drop("no-memory", "the next active model needs the memory")
    assert here.agent.resets == 1
    assert here.runtime.wanted is None
    assert here.opened().status().code == "no-memory"
    here.wish(generation=2)
    assert here.agent.wishes[-1] == (TWO, 2)
    assert here.runtime.status().code == ""


def test_a_lack_of_memory_is_not_held_against_a_bundle(here):
    here.wish()
    here.agent.state = SlotState(phase=Phase.SAFE_MODE, code="no-memory", blocked=(TWO,))
    assert here.runtime.status().phase is Phase.FAILED
    here.wish(generation=2)
    assert here.agent.retried == [TWO]


def test_a_candidate_that_becomes_active_stays_until_it_has(here, monkeypatch):
    here.wish()
    model = type("Model", (), {"digest": TWO, "version": "2.0.0"})()
    monkeypatch.setattr(type(here.slot.candidate), "active", property(lambda self: model))
    here.wish(None, generation=2, active=TWO)
    told = Obeyed(epoch=1, generation=2)
    for phase, obeyed in (
        (Phase.SUCCEEDED, Obeyed(epoch=1, generation=1)),
        (Phase.DOWNLOADING, told),
        (Phase.ACTIVATING, told),
    ):
        here.active.state = msgspec.structs.replace(here.active.state, phase=phase, obeyed=obeyed)
        here.runtime.active_changed()
        assert here.agent.wishes == [(TWO, 1)]
    here.active.state = msgspec.structs.replace(here.active.state, phase=Phase.PROBATION)
    here.runtime.active_changed()
    here.runtime.active_changed()
    assert here.agent.wishes == [(TWO, 1), (None, 2)]


def test_a_disk_that_takes_nothing_leaves_what_is_there(here, monkeypatch):
    here.wish()

    def broken(path, data):
        raise StorageFaultError("no")

    monkeypatch.setattr(here.fs, "atomic_write", broken)
    with pytest.raises(StorageFaultError):
        here.wish(mode=SPLIT, generation=2)
    assert here.runtime.status().mode is SHADOW
    with pytest.raises(StorageFaultError):
        here.runtime.drop("revoked-digest", "the owner has revoked this bundle")
    assert (here.agent.resets, here.runtime.wanted) == (1, None)

"""The durable state: whole or the one before, never an error, never over a block of the disk."""

from __future__ import annotations

import functools
import json
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from slot_world import TestCalls

from edgepack_contract.instructions import Obeyed
from edgepack_contract.messages import Probation, Ref
from edgepack_contract.states import Phase
from edgepack_runtime.activation.journal import MAX_BYTES, Journal, encode
from edgepack_runtime.activation.state import (
    MAX_BLOCKED,
    MAX_SOURCE_CHARS,
    MAX_SOURCES,
    MAX_WORDS,
    Installed,
    Lost,
    SlotState,
    Wish,
    raise_floor,
)
from edgepack_runtime.errors import DiskFullError, JournalError, StorageFaultError
from edgepack_runtime.storage.fsio import DurableFS

GOLDEN = Path(__file__).parent / "golden" / "CURRENT.v1"


def made(letter: str, *, long: bool = False) -> Installed:
    return Installed(
        digest=f"sha256:{letter * 64}",
        name="n" * 63 if long else "digits",
        version=f"1.0.0-{'v' * 58}" if long else "1.0.0",
        security_version=2**53 if long else 3,
    )


def wish(letter: str, *sources: str) -> Wish:
    ref = Ref(name="digits", digest=f"sha256:{letter * 64}", sources=list(sources))
    return Wish(ref=ref, probation=Probation(seconds=4.0))


STATE = SlotState(
    phase=Phase.PROBATION, active=made("a"), previous=made("b"), trial=made("c"),
    wanted=wish("c", "https://fleet.example/models/digits"), install=7, attempts=1,
    floors={"digits": 3}, owner="0" * 16, enrolment="1" * 16,
    blocked=(f"sha256:{'d' * 64}",), obeyed=Obeyed(epoch=1, generation=9, slots_digest="x"),
    boot_id="0b7c3a1e", clean=False,
)  # fmt: skip


@pytest.fixture
def calls():
    return TestCalls()


@pytest.fixture
def journal(tmp_path, calls) -> Journal:
    journal = Journal(DurableFS(calls), tmp_path / "slots" / "main")
    journal.load()
    return journal


def reopened(journal: Journal) -> Journal:
    return Journal(DurableFS(TestCalls()), journal.path.parent)


def test_there_is_none_at_first(tmp_path):
    found = Journal(DurableFS(), tmp_path / "slots" / "main").load()
    assert (found.state, found.fresh) == (SlotState(), True)


def test_what_was_saved_is_there_again(journal):
    saved = journal.save(STATE)
    assert saved == replace(STATE, seq=1)
    found = reopened(journal).load()
    assert (found.state, found.fresh) == (saved, False)


def test_the_copy_is_one_step_behind(journal):
    first = journal.save(STATE)
    journal.save(replace(first, attempts=2))
    journal.path.write_bytes(b"edgepack-slot/1 00000000 {}\n")
    assert reopened(journal).load().state == first


@given(st.data())
def test_any_damage_to_the_file_leads_to_the_copy(data):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(DurableFS(TestCalls()), Path(folder))
        journal.load()
        first = journal.save(STATE)
        journal.save(replace(first, attempts=2))
        raw = bytearray(journal.path.read_bytes())
        at = data.draw(st.integers(0, len(raw) - 2))
        raw[at] ^= data.draw(st.integers(1, 255))
        journal.path.write_bytes(raw[: data.draw(st.sampled_from([len(raw), at]))])
        assert reopened(journal).load().state == first


def test_damage_to_both_is_safe_mode(journal):
    journal.save(journal.save(STATE))
    journal.path.write_bytes(b"")
    journal.copy.write_bytes(b"\0" * 512)
    found = reopened(journal).load()
    assert (found.state.phase, found.state.code) == (Phase.SAFE_MODE, "journal-lost")
    assert not found.fresh


def test_an_enormous_file_is_not_read(journal):
    journal.path.write_bytes(b"x" * (MAX_BYTES + 1))
    assert reopened(journal).load().state.phase == Phase.SAFE_MODE


def line(**changes) -> bytes:
    body = json.dumps({**json.loads(encode(STATE).split(b" ", 2)[2]), **changes}).encode()
    return b"edgepack-slot/1 %08x %s\n" % (zlib.crc32(body), body)


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2}, {"phase": "contemplating"}, {"new_field": 1}, {"attempts": "many"},
        {"trial": None}, {"wanted": None}, {"trial": {"unheard": "of"}},
    ],
    ids=str,
)  # fmt: skip
def test_what_another_version_wrote_means_falling_back(journal, changes):
    journal.path.write_bytes(line(**changes))
    state = reopened(journal).load().state
    assert (state.phase, state.code) == (Phase.FELL_BACK, "unknown-state")
    assert (state.active, state.trial) == (STATE.active, None)
    assert (state.floors, state.blocked) == ({"digits": 3}, STATE.blocked)
    assert (state.obeyed, state.owner, state.enrolment) == (
        STATE.obeyed, STATE.owner, STATE.enrolment,
    )  # fmt: skip


def test_what_is_not_understood_at_all_means_safe_mode(journal):
    journal.path.write_bytes(line(active=7, previous=8, floors="x", owner=1, obeyed=[], v="y"))
    state = reopened(journal).load().state
    assert (state.phase, state.active, state.floors) == (Phase.SAFE_MODE, None, {})


def test_the_longest_state_fits_one_block_of_the_disk():
    source = "https://" + "h" * (MAX_SOURCE_CHARS - 8)
    longest = SlotState(
        seq=2**53, phase=Phase.DOWNLOADING, install=2**53, alternative=7, alternatives=8,
        active=made("a", long=True), previous=made("b", long=True), trial=made("c", long=True),
        wanted=wish("c", *[source] * MAX_SOURCES), pending=wish("d", *[source] * MAX_SOURCES),
        blocked=tuple(f"sha256:{n:064x}" for n in range(MAX_BLOCKED)),
        floors=functools.reduce(
            lambda floors, n: raise_floor(floors, f"{n:063}", 2**53), range(20), {}
        ),
        owner="0" * 16, enrolment="1" * 16,
        obeyed=Obeyed(epoch=2**53, generation=2**53, slots_digest="s" * 71, issued=2**53),
        boot_id="0" * 36, code="c" * 32, words="w" * MAX_WORDS,
    )  # fmt: skip
    assert len(encode(longest)) <= MAX_BYTES


def test_what_worked_last_is_understood_of_another_version_too(journal):
    lost = json.loads(msgspec.json.encode(Lost(bundle=made("a"), tries=3)))
    changes = {"active": None, "previous": None, "new_field": 1, "lost": lost}
    journal.path.write_bytes(line(**changes))
    state = reopened(journal).load().state
    assert (state.phase, state.lost) == (Phase.SAFE_MODE, Lost(bundle=made("a"), tries=3))


def test_a_state_that_does_not_fit_is_refused_before_it_is_written(journal):
    journal.save(STATE)
    before = journal.path.read_bytes()
    with pytest.raises(JournalError):
        journal.save(replace(STATE, words="w" * MAX_BYTES))
    assert journal.path.read_bytes() == before


def test_a_full_disk_leaves_the_last_state(journal, calls):
    first = journal.save(STATE)
    calls.full = True
    with pytest.raises(DiskFullError):
        journal.save(replace(first, attempts=2))
    assert reopened(journal).load().state == first
    calls.full = False
    assert journal.save(replace(first, attempts=2)).seq == 2


def test_after_a_broken_disk_nothing_is_written_any_more(journal, calls):
    first = journal.save(STATE)
    calls.broken = True
    with pytest.raises(StorageFaultError):
        journal.save(replace(first, attempts=2))
    calls.broken = False
    count = calls.count
    with pytest.raises(StorageFaultError):
        journal.save(replace(first, attempts=2))
    assert calls.count == count
    assert reopened(journal).load().state == first


def test_leftovers_of_a_write_that_was_cut_off_are_removed(journal):
    stray = journal.path.with_name("CURRENT.tmp-1-1")
    stray.write_bytes(b"half")
    reopened(journal).load()
    assert not stray.exists()


def test_a_file_of_the_first_format_still_opens(journal):
    journal.path.write_bytes(GOLDEN.read_bytes())
    assert reopened(journal).load().state == replace(STATE, seq=1)

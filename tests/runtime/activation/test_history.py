"""What a slot remembers of its installs, for people: bounded, durable, and of no consequence."""

from __future__ import annotations

import json

import bundle_samples
import pytest
from msgspec.structs import replace
from slot_world import Crash, TestCalls, World, bundle

from edgepack_contract.messages import EventKind
from edgepack_contract.states import Phase
from edgepack_runtime.activation.guard import Counters
from edgepack_runtime.activation.history import MOST_RECORDS, History, Record, figures_of
from edgepack_runtime.errors import DiskFullError
from edgepack_runtime.storage.fsio import DurableFS

A, B, C = bundle("1.0.0"), bundle("1.1.0"), bundle("1.2.0")


def history_of(world: World) -> list[Record]:
    return History(DurableFS(), world.root / "slots" / "main").records()


def record(install: int, **changes) -> Record:
    return replace(Record(at=install, install=install, outcome=EventKind.INSTALLED), **changes)


def test_every_end_of_an_install_is_kept(world):
    world.start()
    world.install(A)
    world.temper.counters[B.digest] = Counters(requests=100, errors=50)
    world.wish(B)
    world.settle()
    world.temper.probe_codes[C.digest] = ["golden-mismatch"]
    world.wish(C)
    world.settle()
    first, second, third = history_of(world)
    assert (first.outcome, first.version, first.digest) == ("installed", "1.0.0", A.digest)
    assert (second.outcome, second.digest, second.active) == ("fallback", B.digest, A.digest)
    assert second.figures["errors"] == 50.0
    assert (third.outcome, third.code, third.version) == ("failed", "golden-mismatch", "1.2.0")
    assert (first.name, first.install, second.install, third.install) == ("digits", 1, 2, 3)


def test_a_refused_bundle_is_kept_with_its_words(world):
    world.start()
    world.keyring = bundle_samples.keyring(key=bundle_samples.STRANGER)
    world.wish(A)
    world.settle()
    (only,) = history_of(world)
    assert (only.outcome, only.code, only.active) == ("verify-failed", "unknown-publisher", None)
    assert "signed by an unknown key" in only.words


def test_a_crash_is_kept(world):
    world.start()
    world.install(A)
    world.start()
    assert [one.outcome for one in history_of(world)] == ["installed", "crash"]


def test_an_end_that_is_announced_twice_is_kept_once(world):
    world.start()

    def end(name, _count):
        # the record is there, and the slot has not written down yet that it was announced
        if name == "create" and history_of(world):
            world.calls.fault = None
            raise Crash

    world.calls.fault = end
    world.wish(A)
    with pytest.raises(Crash):
        world.settle()
    world.start()
    world.settle()
    assert world.host.events[0] == ("installed", A.digest, "")
    assert [one.outcome for one in history_of(world)] == ["installed", "crash"]


def test_a_disk_that_takes_no_history_changes_nothing_else(world):
    world.start()

    def full(name, _count):
        if name == "create" and world.state.phase == Phase.SUCCEEDED and not world.state.announced:
            raise OSError(28, "No space left on device")

    world.calls.fault = full
    world.wish(A)
    world.settle()
    assert (world.state.phase, world.host.serving) == (Phase.SUCCEEDED, A.digest)
    assert history_of(world) == []


def test_the_newest_are_kept(tmp_path):
    history = History(DurableFS(TestCalls()), tmp_path)
    for install in range(MOST_RECORDS + 3):
        history.remember(record(install))
    kept = [one.install for one in history.records()]
    assert kept == list(range(3, MOST_RECORDS + 3))


@pytest.mark.parametrize("content", [b"", b"nonsense", b'[{"at": 1}]', b"x" * (1 << 21)], ids=len)
def test_a_damaged_file_is_begun_anew(tmp_path, content):
    history = History(DurableFS(TestCalls()), tmp_path)
    (tmp_path / "history.json").write_bytes(content)
    assert history.records() == []
    history.remember(record(1))
    assert history.records() == [record(1)]


def test_a_full_disk_leaves_the_old_list(tmp_path):
    calls = TestCalls()
    history = History(DurableFS(calls), tmp_path)
    history.remember(record(1))
    calls.full = True
    with pytest.raises(DiskFullError):
        history.remember(record(2))
    assert history.records() == [record(1)]


def test_a_version_that_knows_more_fields_can_be_read(tmp_path):
    known = {"at": 5, "install": 1, "outcome": "failed", "later": True}
    (tmp_path / "history.json").write_text(json.dumps([known]))
    assert History(DurableFS(), tmp_path).records()[0].outcome == EventKind.FAILED


def test_figures_are_the_numbers_of_the_evidence():
    tried = [{"variant": "a", "p50_ms": 9.0}, {"variant": "b", "p50_ms": 1.5, "peak_bytes": None}]
    evidence = {"requests": 3, "words": "x", "exercised": True, "alternatives": tried}
    assert figures_of(evidence) == {"requests": 3.0, "probe_p50_ms": 1.5}
    assert figures_of({}) == {}

"""What an install asks of the serving side: from its own thread, as in the daemon."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from concurrent.futures import Future

import numpy as np
import pytest

from edgepack_contract.messages import CandidateMode, EventKind, SlotReported
from edgepack_contract.states import Phase
from edgepack_runtime import machine_state, memory
from edgepack_runtime.errors import DiskFullError
from edgepack_runtime.inference.errors import ModelLoadError
from edgepack_runtime.inference.golden import GoldenRows, golden_bytes, load_golden
from edgepack_runtime.serving.codec import Payload
from edgepack_runtime.serving.errors import NoModelError
from edgepack_runtime.serving.instances import InstancesCodec
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.predict import predict
from edgepack_runtime.serving.slot import Slot
from edgepack_runtime.serving_host import STOPPED_FIRST, ActiveHost, CandidateHost, yielding

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
ROW = b'{"instances": [[1.0, 2.0, 3.0, 4.0]]}'


class Here:
    """A loop in a thread with a slot on it; the test's thread is the one that installs."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.changes: list[str] = []
        self.events = []
        self.keep_fails: Exception | None = None
        self.slot = self.call(lambda: Slot("pump"))
        self.dropped: list[str] = []
        self.wanted = TWO
        around = {
            "loop": self.loop, "session": 7, "keep_event": self._keep, "now_ms": lambda: 5,
            "changed": lambda: self.changes.append(threading.current_thread().name),
        }  # fmt: skip
        self.host = ActiveHost(self.slot, lambda code, _: self.dropped.append(code), **around)
        self.beside = CandidateHost(self.slot.candidate, lambda: self.wanted, **around)

    def _keep(self, event):
        kept: Future[int] = Future()
        if self.keep_fails:
            kept.set_exception(self.keep_fails)
        else:
            self.events.append(event)
            kept.set_result(len(self.events))
        return kept

    def call(self, work):
        async def run():
            return work()

        return self.wait(run())

    def wait(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def ask(self):
        """The version that answers a request."""
        return self.wait(predict(self.slot, InstancesCodec(), Payload(ROW))).version

    def close(self):
        self.wait(self.slot.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()


@pytest.fixture
def here():
    here = Here()
    yield here
    here.close()


@pytest.fixture(scope="module")
def one(make_variant):
    return make_variant("one", version="1.0.0", seed=1)


@pytest.fixture(scope="module")
def two(make_variant):
    return make_variant("two", version="2.0.0", seed=2)


@pytest.fixture
def loads(monkeypatch):
    """Every load of a model, with what the slot held at that moment."""
    seen = []
    load = ServingModel.load.__func__

    def recording(cls, folder, digest, **options):
        seen.append(digest)
        return load(cls, folder, digest, **options)

    monkeypatch.setattr(ServingModel, "load", classmethod(recording))
    return seen


def test_what_is_served_answers(here, one):
    here.host.serve(one, ONE, keep_previous=True)
    assert here.ask() == "1.0.0"
    assert here.slot.active.digest == ONE


def test_serving_the_same_twice_changes_nothing(here, one, two, loads):
    here.host.serve(one, ONE, keep_previous=True)
    here.host.serve(two, TWO, keep_previous=True)
    before = (here.slot.active, here.slot.previous, here.slot.totals.swaps)
    here.host.serve(two, TWO, keep_previous=True)
    assert (here.slot.active, here.slot.previous, here.slot.totals.swaps) == before
    assert loads == [ONE, TWO]


def test_the_previous_model_is_taken_back_without_loading_it(here, one, two, loads):
    here.host.serve(one, ONE, keep_previous=True)
    here.host.serve(two, TWO, keep_previous=True)
    here.host.serve(one, ONE, keep_previous=False)
    assert loads == [ONE, TWO]
    assert here.ask() == "1.0.0"
    assert here.slot.previous is None


def test_without_the_previous_model_it_is_loaded_again(here, one, two, loads):
    here.host.serve(one, ONE, keep_previous=True)
    here.host.serve(two, TWO, keep_previous=True)
    here.host.end_shadow()
    assert here.slot.previous is None
    here.host.serve(one, ONE, keep_previous=False)
    assert loads == [ONE, TWO, ONE]
    assert here.ask() == "1.0.0"


def test_when_memory_is_short_the_old_model_stops_first(here, one, two, monkeypatch, caplog):
    here.host.serve(one, ONE, keep_previous=True)
    monkeypatch.setattr(memory, "RESERVE_BYTES", 2**62)
    held = []
    load = ServingModel.load
    monkeypatch.setattr(
        ServingModel,
        "load",
        lambda *of, **more: (held.append((here.slot.active, here.host.words)), load(*of, **more))[
            1
        ],
    )
    here.host.serve(two, TWO, keep_previous=True)
    assert held == [(None, STOPPED_FIRST)]
    assert here.host.words == ""
    tell(here)
    assert here.events[-1].evidence == {"n": 3, "stopped_first": True}
    assert here.ask() == "2.0.0"
    assert here.slot.previous is None
    assert [record.event for record in caplog.records] == ["stop_first"]


def test_a_model_that_fails_after_the_old_one_stopped_leaves_it_to_be_loaded_again(
    here, one, tmp_path, monkeypatch
):
    here.host.serve(one, ONE, keep_previous=True)
    broken = shutil.copytree(one, tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"no graph")
    monkeypatch.setattr(memory, "RESERVE_BYTES", 2**62)
    with pytest.raises(ModelLoadError):
        here.host.serve(broken, TWO, keep_previous=True)
    assert here.slot.active is None
    assert here.host.words == STOPPED_FIRST
    here.host.serve(one, ONE, keep_previous=False)
    assert (here.ask(), here.host.words) == ("1.0.0", "")


def test_the_active_model_gives_way_to_a_trial_only_where_it_is_in_the_way(
    here, one, two, monkeypatch, caplog
):
    assert here.host.make_room(two) is False, "there is no model"
    here.host.serve(one, ONE, keep_previous=False)
    assert here.host.make_room(two) is False, "there is room for both"
    monkeypatch.setattr(memory, "RESERVE_BYTES", 2**62)
    assert here.beside.make_room(two) is False, "a candidate takes what is left"
    assert here.ask() == "1.0.0"
    assert here.host.make_room(two) is True
    assert here.slot.active is None
    with pytest.raises(NoModelError, match="gives way to its next version, for want of memory"):
        here.ask()
    assert here.host.words == STOPPED_FIRST
    here.host.serve(one, ONE, keep_previous=False)
    assert (here.ask(), here.host.words) == ("1.0.0", "")
    tell(here)
    assert here.events[-1].evidence["stopped_first"]
    assert [record.event for record in caplog.records] == ["stop_first"]


def test_a_candidate_gives_way_to_the_next_one(here, one, two, monkeypatch):
    here.host.serve(one, ONE, keep_previous=False)
    here.beside.serve(two, TWO, keep_previous=False)
    monkeypatch.setattr(memory, "fits", lambda _: here.slot.candidate.active is None)
    here.wanted = "sha256:" + "3" * 64
    here.beside.serve(two, here.wanted, keep_previous=False)
    assert here.slot.candidate.active.digest == here.wanted


def test_a_candidate_gives_way_to_the_active_the_active_model(here, one, two, monkeypatch, caplog):
    here.host.serve(one, ONE, keep_previous=False)
    here.beside.serve(two, TWO, keep_previous=True)
    assert here.slot.candidate.active.digest == TWO
    monkeypatch.setattr(memory, "fits", lambda _: here.slot.candidate.active is None)
    here.host.serve(two, "sha256:" + "3" * 64, keep_previous=True)
    assert here.dropped == ["no-memory"]
    assert here.slot.candidate.active is None
    assert here.slot.previous.digest == ONE
    assert caplog.records == [], "the old model did not have to stop"


def test_a_candidate_never_stops_the_active_model(here, one, two, monkeypatch):
    here.host.serve(one, ONE, keep_previous=False)
    monkeypatch.setattr(memory, "RESERVE_BYTES", 2**62)
    with pytest.raises(ModelLoadError, match="beside the active model") as raised:
        here.beside.serve(two, TWO, keep_previous=True)
    assert raised.value.code == "no-memory"
    assert here.ask() == "1.0.0"


def test_a_candidate_that_is_no_longer_wanted_stays_away(here, one, two):
    here.beside.serve(two, TWO, keep_previous=False)
    here.wanted = "sha256:" + "3" * 64
    here.beside.serve(one, ONE, keep_previous=False)
    assert here.slot.candidate.active is None


def test_a_candidate_comes_back_by_itself_only_while_it_is_wanted(here):
    assert (here.beside.wants(TWO), here.beside.wants(ONE)) == (True, False)
    assert here.host.wants(ONE)


def test_the_share_of_a_split_that_fails_goes_back_to_the_active_model(here, one, two):
    here.host.serve(one, ONE, keep_previous=True)
    here.call(lambda: here.slot.candidate.settle(CandidateMode.SPLIT, 1.0))
    here.beside.serve(two, TWO, keep_previous=False)
    assert here.ask() == "2.0.0"
    here.beside.event(EventKind.FALLBACK, digest=ONE, code="x", words="early", evidence={})
    here.beside.unserve()
    assert here.ask() == "1.0.0"
    for words in ("too many errors", ""):
        here.beside.event(EventKind.FALLBACK, digest=TWO, code="errors", words=words, evidence={})
    share = "the active model answers the share of 100% that it had"
    assert [event.words for event in here.events] == [
        "early", f"too many errors; {share}", share,
    ]  # fmt: skip


def test_the_candidate_before_goes_when_the_next_one_fails(here, one, two):
    here.host.serve(one, ONE, keep_previous=True)
    here.call(lambda: here.slot.candidate.settle(CandidateMode.SPLIT, 1.0))
    here.beside.serve(two, TWO, keep_previous=False)
    here.wanted = "sha256:" + "3" * 64
    assert here.ask() == "2.0.0"
    here.beside.event(EventKind.FAILED, digest=here.wanted, code="x", words="", evidence={})
    assert here.ask() == "1.0.0"
    assert here.events[0].words.startswith("the active model answers the share")


def test_a_candidate_that_is_dropped_while_it_is_loaded_stays_away(here, two, monkeypatch):
    load = ServingModel.load

    def dropped_meanwhile(*of, **more):
        here.wanted = None
        return load(*of, **more)

    monkeypatch.setattr(ServingModel, "load", dropped_meanwhile)
    here.beside.serve(two, TWO, keep_previous=False)
    assert here.slot.candidate.active is None


def test_the_candidate_becomes_the_active_model_without_another_load(here, one, two, loads):
    here.host.serve(one, ONE, keep_previous=False)
    here.beside.serve(two, TWO, keep_previous=False)
    model = here.slot.candidate.active
    here.host.serve(two, TWO, keep_previous=True)
    assert here.slot.active is model
    assert here.slot.previous.digest == ONE
    assert here.slot.candidate.active is None
    assert loads == [ONE, TWO]
    assert here.ask() == "2.0.0"


def test_another_variant_of_the_candidate_is_loaded(here, one, make_variant, loads):
    other = make_variant("other", version="2.0.0", seed=2, variant="other")
    here.beside.serve(one, TWO, keep_previous=False)
    here.host.serve(other, TWO, keep_previous=True)
    assert loads == [TWO, TWO]


def test_what_yields_runs_at_a_lower_priority():
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert yielding(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())) == own + 10
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
    with pytest.raises(ZeroDivisionError):
        yielding(lambda: 1 // 0)


def test_the_first_model_stops_nothing_however_short_memory_is(here, one, monkeypatch, caplog):
    monkeypatch.setattr(memory, "RESERVE_BYTES", 2**62)
    here.host.serve(one, ONE, keep_previous=True)
    assert here.ask() == "1.0.0"
    assert caplog.records == []


def test_a_machine_that_does_not_tell_its_memory_holds_both(here, one, two, monkeypatch):
    monkeypatch.setattr(machine_state, "_kib_field", lambda *_: None)
    here.host.serve(one, ONE, keep_previous=True)
    here.host.serve(two, TWO, keep_previous=True)
    assert here.slot.previous.digest == ONE


def test_a_model_that_does_not_load_leaves_the_other_serving(here, one, tmp_path):
    here.host.serve(one, ONE, keep_previous=True)
    broken = shutil.copytree(one, tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelLoadError):
        here.host.serve(broken, TWO, keep_previous=True)
    assert here.ask() == "1.0.0"


def test_counters_are_the_active_models_with_the_memory_of_the_process(here, one):
    assert here.host.counters().requests == 0
    here.host.serve(one, ONE, keep_previous=True)
    for _ in range(3):
        here.ask()
    counters = here.host.counters()
    assert (counters.requests, counters.errors) == (3, 0)
    assert counters.memory_bytes > 2**20
    assert here.host.throttled() is False


def test_golden_rows_are_checked_on_demand(here, one, make_variant, monkeypatch):
    with pytest.raises(ModelLoadError, match="no model is active"):
        here.host.run_golden()
    here.host.serve(one, ONE, keep_previous=True)
    here.host.run_golden()
    rows = load_golden(one / "golden.safetensors")
    moved = {name: array + np.ones((), array.dtype) for name, array in rows.outputs.items()}
    altered = one.parent / "altered.safetensors"
    altered.write_bytes(golden_bytes(GoldenRows(rows.inputs, moved)))
    monkeypatch.setattr(here.slot.active, "_golden", load_golden(altered))
    with pytest.raises(ModelLoadError, match="golden rows differ") as raised:
        here.host.run_golden()
    assert raised.value.code == "golden-mismatch"


def test_unserve_holds_no_model(here, one):
    here.host.serve(one, ONE, keep_previous=True)
    here.host.unserve()
    assert here.slot.active is None


def test_a_report_is_told_on_the_loop(here):
    reported = SlotReported(
        phase=Phase.PROBATION, running=ONE, version="1.0.0", previous=None, wanted=ONE
    )
    here.host.report(reported)
    loop_thread = here.call(lambda: threading.current_thread().name)
    assert here.changes == [loop_thread]


def tell(here):
    here.host.event(
        EventKind.FALLBACK, digest=ONE, code="errors", words="it failed", evidence={"n": 3}
    )


def test_an_event_is_kept_with_session_and_slot(here):
    tell(here)
    (event,) = here.events
    assert (event.session, event.slot, event.at, event.kind) == (7, "pump", 5, "fallback")
    assert (event.digest, event.code, event.evidence) == (ONE, "errors", {"n": 3})


@pytest.mark.parametrize("error", [DiskFullError("no room"), TimeoutError()])
def test_an_event_that_cannot_be_kept_undoes_nothing(here, error, caplog):
    here.keep_fails = error
    tell(here)
    assert [record.event for record in caplog.records] == ["event_lost"]


def test_what_fails_on_the_loop_fails_for_who_asked(here, monkeypatch):
    def fails():
        raise ZeroDivisionError

    monkeypatch.setattr(here.slot, "clear", fails)
    with pytest.raises(ZeroDivisionError):
        here.host.unserve()
    monkeypatch.undo()

"""Captured requests: what is left out, what survives, what is dropped, and what comes back."""

from __future__ import annotations

import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from slot_world import TestCalls
from world_waiting import eventually

from edgepack_contract.description import TensorSpec
from edgepack_runtime.capture import recorder as recording
from edgepack_runtime.capture.reading import joined, read_captured
from edgepack_runtime.capture.recorder import Recorder
from edgepack_runtime.capture.records import (
    KEY,
    Captured,
    CaptureError,
    Origin,
    decode,
    encode,
    redacted,
)
from edgepack_runtime.capture.ring import Ring, clear, read_records, segments
from edgepack_runtime.config import CaptureConfig
from edgepack_runtime.serving.codec import PredictRequest
from edgepack_runtime.storage.fsio import DurableFS

FEATURES = ["age", "name", "income"]
SPECS = [TensorSpec(name="x", dtype="float32", shape=["n", 3], features=FEATURES)]
OUTPUTS = [TensorSpec(name="p", dtype="float32", shape=["n"])]
MODEL = SimpleNamespace(
    description=SimpleNamespace(inputs=SPECS, outputs=OUTPUTS), version="1.2.0", digest="sha256:ab"
)


def origin(**changes) -> Origin:
    return Origin(
        **({"at": 5, "slot": "churn", "version": "1.2.0", "digest": "sha256:ab"} | changes)
    )


def row(value: float, *, rows: int = 1) -> PredictRequest:
    return PredictRequest({"x": np.full((rows, 3), value, np.float32)}, id=f"r{value:g}")


def answer(rows: int = 1) -> dict:
    return {"p": np.zeros(rows, np.float32)}


@pytest.fixture
def make(tmp_path):
    """Makes recorders on one folder, and ends them."""
    made = []

    def recorder(calls=None, **settings) -> Recorder:
        config = CaptureConfig(**({"share": 1.0} | settings))
        fs = DurableFS(calls or TestCalls())
        one = Recorder(tmp_path, config, fs=fs, now_ms=lambda: 7, rng=random.Random(3))
        made.append(one)
        return one

    yield recorder
    for one in made:
        one.close()


def kept(folder, **which):
    return [one.captured for one in read_captured(folder, **which)]


@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros((0, 3), np.float16), np.array(True), np.arange(6, dtype=np.int8).reshape(2, 3),
        np.array([1.5, np.nan]), np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2],
        np.array([2**63], np.uint64),
    ],
    ids=["empty", "scalar", "int8", "nan", "strided", "uint64"],
)  # fmt: skip
def test_a_tensor_comes_back_as_it_was(tensor):
    found = decode(encode(Captured(origin(), {"input:x": tensor})))
    np.testing.assert_array_equal(found.tensors["input:x"], tensor)
    assert found.tensors["input:x"].dtype == tensor.dtype


def test_texts_come_back_and_one_long_one_does_not_make_all_long():
    texts = np.array([["ä", ""], ["x" * 10_000, "日本"]], dtype=object)
    raw = encode(Captured(origin(request="7"), {"input:x": texts}))
    found = decode(raw)
    assert found.tensors["input:x"].tolist() == texts.tolist()
    assert (found.origin.request, len(raw) < 12_000) == ("7", True)


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0" * 8, b"\xff" * 64, b"\2" + b"\0" * 7 + b"{}", b"\4" + b"\0" * 7 + b"null"],
    ids=["nothing", "zeros", "ones", "no-origin", "null"],
)  # fmt: skip
def test_what_is_no_record_is_refused(raw):
    with pytest.raises(CaptureError):
        decode(raw)


def test_columns_and_tensors_are_left_out():
    tensors = {"x": np.arange(6.0).reshape(2, 3), "id": np.zeros(2)}
    left, columns = redacted(tensors, SPECS, ["name", "id"])
    assert left["x"].tolist() == [[0.0, 2.0], [3.0, 5.0]]
    assert (list(left), columns) == (["x"], {"x": ["age", "income"]})
    assert redacted(tensors, SPECS, [*FEATURES, "id"]) == ({}, {})


def test_what_is_redacted_is_nowhere_in_the_file(make, tmp_path):
    secret = np.array([[1.0, 1234567.0, 2.0]], np.float32)
    recorder = make(redact=["name", "p"])
    recorder.for_slot("churn").offer(MODEL, PredictRequest({"x": secret}), {"p": secret[0]})
    recorder.close()
    (segment,) = segments(tmp_path)
    assert secret[0, 1].tobytes() not in segment.read_bytes()
    assert segment.stat().st_mode & 0o777 == 0o600
    (found,) = kept(tmp_path)
    assert found.tensors["input:x"].tolist() == [[1.0, 2.0]]
    assert list(found.tensors) == ["input:x"]


def test_who_asked_and_what_answered_is_kept(make, tmp_path):
    recorder = make()
    recorder.for_slot("churn").offer(MODEL, row(3.0), answer())
    recorder.close()
    (found,) = kept(tmp_path)
    assert found.origin == origin(at=7, request="r3")
    assert (recorder.kept, recorder.dropped) == (1, 0)


def test_whom_a_request_is_about_is_kept_unless_that_is_redacted(make, tmp_path, caplog):
    asked = PredictRequest({"x": np.zeros((1, 3), np.float32)}, key=b"pump-7\xff")
    for names in ([], [KEY]):
        recorder = make(redact=names)
        recorder.offer("churn", MODEL, asked, answer())
        recorder.close()
    assert [one.origin.key for one in kept(tmp_path)] == ["pump-7\N{REPLACEMENT CHARACTER}", None]
    assert caplog.text == ""


def test_a_share_of_the_requests_is_kept(make, tmp_path):
    recorder = make(share=0.25)
    for number in range(200):
        recorder.offer("churn", MODEL, row(number), answer())
    recorder.close()
    assert 30 < len(kept(tmp_path)) == recorder.kept < 70


def test_it_goes_on_after_a_restart_and_old_segments_stay(make, tmp_path):
    for value in (1.0, 2.0):
        recorder = make()
        recorder.offer("churn", MODEL, row(value), answer())
        recorder.close()
    assert [one.origin.request for one in kept(tmp_path)] == ["r1", "r2"]
    assert len(segments(tmp_path)) == 2


def test_a_full_queue_drops_and_counts(make, monkeypatch):
    recorder, writing, go_on = make(), threading.Event(), threading.Event()

    def slow(*_):
        writing.set()
        assert go_on.wait(60)

    monkeypatch.setattr(Ring, "append", slow)
    monkeypatch.setattr(recording, "FLUSH_SECONDS", 0.0)
    recorder.offer("churn", MODEL, row(0.0), answer())
    assert writing.wait(60)
    for number in range(recording.QUEUED + 5):
        recorder.offer("churn", MODEL, row(number), answer())
    assert recorder.dropped == 5
    go_on.set()


def test_a_name_that_a_model_lacks_is_said_once(make, caplog):
    recorder = make()
    for _ in range(2):
        recorder._write(recorder._ring, [sample()], ["nmae", "age"])
    assert caplog.text.count("of 'nmae' there is nothing in churn 1.2.0") == 1


def test_what_is_too_large_is_dropped(make):
    recorder = make()
    recorder.offer("churn", MODEL, row(0.0, rows=400_000), answer())
    assert recorder.dropped == 1


def test_a_full_disk_is_said_once_and_capturing_goes_on(make, tmp_path, caplog):
    calls = TestCalls()
    recorder = make(calls)
    calls.full = True
    for _ in range(2):
        recorder._write(recorder._ring, [sample()], [])
    assert caplog.text.count("nothing is captured: no room") == 1
    calls.full = False
    recorder._write(recorder._ring, [sample()], [])
    assert (recorder.kept, recorder.dropped) == (1, 2)


def sample():
    return recording._Sample(7, "churn", MODEL, row(1.0), answer(), 20)


def test_new_settings_hold_for_the_next_request(make, tmp_path):
    recorder = make(share=0.0)
    recorder.offer("churn", MODEL, row(1.0), answer())
    recorder.reconfigure(CaptureConfig(share=1.0, redact=["x"]))
    recorder.offer("churn", MODEL, row(2.0), answer())
    recorder.close()
    assert [list(one.tensors) for one in kept(tmp_path)] == [["output:p"]]


def test_it_writes_without_being_asked(make, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "FLUSH_SECONDS", 0.0)
    make().offer("churn", MODEL, row(1.0), answer())
    eventually(lambda: kept(tmp_path), "a captured request")


def ring(folder, most: int = 1 << 16) -> Ring:
    return Ring(DurableFS(TestCalls()), folder, max_bytes=most)


def test_the_ring_keeps_the_newest_and_its_bound(tmp_path):
    writer = ring(tmp_path)
    for number in range(400):
        writer.append([bytes([number % 256]) * 1000])
    found = [raw for segment in segments(tmp_path) for _, raw in read_records(segment)]
    assert found[-1] == bytes([399 % 256]) * 1000
    size = sum(path.stat().st_size for path in segments(tmp_path))
    assert (1 << 15) < size <= 1 << 16
    assert len(segments(tmp_path)) <= 17


def test_a_record_larger_than_the_ring_is_left_out(tmp_path):
    ring(tmp_path).append([b"x" * (1 << 17)])
    assert segments(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 7, 500])
def test_a_torn_end_costs_one_record(tmp_path, cut):
    ring(tmp_path).append([b"a" * 600, b"b" * 600])
    (segment,) = segments(tmp_path)
    segment.write_bytes(segment.read_bytes()[:-cut])
    assert [raw for _, raw in read_records(segment)] == [b"a" * 600]
    ring(tmp_path).append([b"c"])
    assert [path.stem[-1] for path in segments(tmp_path)] == ["1", "2"]


def test_bytes_that_changed_are_not_believed(tmp_path):
    ring(tmp_path).append([b"a" * 600, b"b" * 600])
    (segment,) = segments(tmp_path)
    raw = bytearray(segment.read_bytes())
    raw[100] ^= 1
    segment.write_bytes(raw)
    assert list(read_records(segment)) == []


def test_clearing_takes_only_segments_and_the_ring_goes_on(tmp_path):
    writer = ring(tmp_path)
    writer.append([b"a"])
    (tmp_path / "note.txt").touch()
    assert clear(DurableFS(TestCalls()), tmp_path) == 1
    writer.append([b"b"])
    assert [raw for path in segments(tmp_path) for _, raw in read_records(path)] == [b"b"]
    assert (tmp_path / "note.txt").exists()


def captured(tensors: dict, **changes) -> Captured:
    return Captured(origin(**changes), tensors)


def test_rows_are_joined_below_each_other():
    texts = np.array(["a", "bcd"], dtype=object)
    found = joined(
        [
            captured({"input:x": np.zeros((2, 3)), "input:t": texts, "output:p": np.zeros(2)}),
            captured({"input:x": np.ones((1, 3)), "input:t": texts[:1], "output:p": np.ones(1)}),
        ]
    )
    assert (list(found), found["x"].shape, found["t"].tolist()) == (
        ["x", "t"], (3, 3), ["a", "bcd", "a"],
    )  # fmt: skip
    assert found["t"].dtype.kind == "U"


def test_rows_know_whose_they_are():
    rows = {"input:x": np.zeros((2, 3)), "output:p": np.zeros(2)}
    found = joined(
        [captured(rows, request="r1", at=6), captured({"input:x": np.ones((1, 3))}, key="seven")],
        origins=True,
    )
    assert {name: array.tolist() for name, array in found.items() if name != "x"} == {
        "origin:request": ["r1", "r1", ""], "origin:key": ["", "", "seven"],
        "origin:at": [6, 6, 5],
    }  # fmt: skip
    assert joined([captured({})], origins=True) == {}


def test_a_tensor_with_redacted_columns_becomes_its_columns():
    kept_columns = {"input:x": ["age", "income"]}
    one = captured({"input:x": np.array([[1.0, 2.0]])}, columns=kept_columns)
    assert {name: array.tolist() for name, array in joined([one, one]).items()} == {
        "age": [1.0, 1.0], "income": [2.0, 2.0],
    }  # fmt: skip


@pytest.mark.parametrize(
    "other", [{"input:x": np.zeros((1, 4))}, {"input:y": np.zeros((1, 3))}], ids=["shape", "name"]
)
def test_requests_of_different_models_are_not_joined(other):
    with pytest.raises(CaptureError, match="name one model with --slot and --version"):
        joined([captured({"input:x": np.zeros((1, 3))}), captured(other)])


def test_only_what_is_named_is_read(tmp_path):
    writer = ring(tmp_path)
    writer.append([encode(captured({}, slot=slot, version="1.0.0")) for slot in ("a", "b")])
    assert [one.origin.slot for one in kept(tmp_path, slot="b")] == ["b"]
    assert kept(tmp_path, version="9.9.9") == []
    writer.append([encode(captured({}, request="r1")), encode(captured({}, key="r1", slot="c"))])
    assert [one.origin.slot for one in kept(tmp_path, request="r1")] == ["churn", "c"]

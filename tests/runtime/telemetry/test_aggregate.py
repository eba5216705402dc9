"""An aggregator's windows say exactly what was recorded, however it was batched."""

from __future__ import annotations

import json

import numpy as np
import pytest
from telemetry_rows import BUNDLE, LABELS, describe, rows

from edgepack_contract.canonical import canonical_json
from edgepack_contract.description import TensorSpec
from edgepack_contract.statistics import (
    InputCounter,
    OutputCounter,
    build_reference,
    empty_output_reference,
)
from edgepack_contract.window import merge_bodies, parse_window, place
from edgepack_runtime.telemetry.aggregate import MOST_BLOCK_ROWS, WIDE_EVERY, SlotAggregator
from edgepack_runtime.telemetry.buffer import MOST_BYTES

OLD = "sha256:" + "2" * 64


def aggregator(reference=None, **changes) -> SlotAggregator:
    return SlotAggregator("main", BUNDLE, describe(**changes), reference, 1_000)


def serve(slot: SlotAggregator, x: np.ndarray, p: np.ndarray, batch: int, seconds=0.002) -> None:
    for start in range(0, len(x), batch):
        slot.record({"x": x[start : start + batch]}, {"p": p[start : start + batch]}, seconds)


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_a_window_is_what_counting_all_rows_at_once_gives(reference, batch):
    x, p = rows(1, 1000)
    slot = aggregator(reference)
    serve(slot, x, p, batch)
    body = slot.roll(61_000)
    inputs, outputs = InputCounter(reference.inputs), OutputCounter(
        describe().outputs, reference.outputs
    )  # fmt: skip
    expected = inputs.columns(inputs.count({"x": x}))
    assert (body.rows, body.sampled, body.n) == (1000, 1000, -(-1000 // batch))
    assert (body.inputs.counts, body.inputs.null) == (expected.counts, expected.null)
    assert body.inputs.mean == pytest.approx(expected.mean, abs=1e-12)
    assert body.inputs.m2 == pytest.approx(expected.m2, rel=1e-9)
    assert body.outputs.classes == [*np.bincount(p.argmax(axis=1), minlength=3).tolist(), 0]
    assert body.outputs.score == outputs.columns(outputs.count({"p": p})).score


@pytest.mark.parametrize("kind", ["sizes", "types", "ranks", "large"])
def test_requests_that_are_not_alike_are_all_counted(reference, kind):
    x, p = rows(9, 600)
    slot, start = aggregator(reference), 0
    while start < len(x):
        size = (1, 7, 1, 200)[start % 4] if kind in ("sizes", "large") else 1
        part, answer = x[start : start + size], p[start : start + size]
        if kind == "types" and start % 3:
            part, answer = part.astype(np.float64), answer.astype(np.float64)
        if kind == "ranks" and start % 3:
            part, answer = part.reshape(-1, 1, 2), answer.reshape(-1, 3, 1)
        if kind == "large":
            answer = np.repeat(answer, MOST_BYTES // answer[0].nbytes, axis=0)
        slot.record({"x": part}, {"p": answer}, 0.001)
        start += len(part)
    body, counter = slot.roll(2_000), InputCounter(reference.inputs)
    expected = counter.columns(counter.count({"x": x}))
    assert (body.rows, body.sampled, body.inputs.counts) == (600, 600, expected.counts)
    assert body.inputs.mean == pytest.approx(expected.mean, abs=1e-12)
    classes = np.bincount(p.argmax(axis=1), minlength=3)
    if kind != "large":
        assert body.outputs.classes == [*classes.tolist(), 0]
    assert sum(body.outputs.classes) >= 600


def test_windows_do_not_overlap_and_merge_to_the_whole(reference):
    x, p = rows(2, 500)
    parts, whole = aggregator(reference), aggregator(reference)
    serve(parts, x[:200], p[:200], 3)
    first = parts.roll(2_000)
    serve(parts, x[200:], p[200:], 3)
    second = parts.roll(3_000)
    serve(whole, x[:200], p[:200], 3)
    serve(whole, x[200:], p[200:], 3)
    both, once = merge_bodies(first, second), whole.roll(3_000)
    assert (first.start_ms, first.end_ms, second.start_ms, second.end_ms) == (
        1_000, 2_000, 2_000, 3_000,
    )  # fmt: skip
    assert both.inputs.counts == once.inputs.counts
    assert both.outputs == once.outputs
    assert both.latency == once.latency
    assert both.inputs.m2 == pytest.approx(once.inputs.m2, rel=1e-9)


def test_an_empty_window_is_valid_and_empty(reference):
    body = aggregator(reference).roll(2_000)
    read = parse_window(canonical_json(place(body, session=1, first=1, last=1)))
    assert (read.n, read.p50_ms, read.drift) == (0, None, "no-data")
    assert sum(map(sum, read.inputs.counts)) == 0


def test_rows_are_copied_so_that_a_caller_may_reuse_its_buffer(reference):
    slot = aggregator(reference)
    x, p = rows(3, 1)
    slot.record({"x": x}, {"p": p}, 0.001)
    x[:] = 1e6
    counts = slot.roll(2_000).inputs.counts
    assert [row[-1] for row in counts] == [0, 0]


def test_errors_budget_and_latency_are_counted(reference):
    slot = aggregator(reference)
    x, p = rows(4, 4)
    serve(slot, x[:2], p[:2], 1, seconds=0.011)
    serve(slot, x[2:], p[2:], 2, seconds=0.011)
    slot.record_error("shape")
    slot.record_error("shape")
    slot.record_error("backend")
    body = slot.roll(2_000)
    # the budget of 10 ms is for one row: the batch of two had 20
    assert (body.n, body.over_budget, body.errors) == (3, 2, 3)
    assert body.errors_by_kind == {"backend": 1, "shape": 2}
    assert body.p50_ms == pytest.approx(11.0, rel=0.03)
    assert (slot.totals.n, slot.totals.rows, slot.totals.errors["shape"]) == (3, 4, 2)
    assert slot.latency_totals.n == 3
    assert slot.roll(3_000).errors == 0


def test_a_large_batch_is_sampled_evenly_and_says_so(reference):
    slot = aggregator(reference)
    x, p = rows(5, 10 * MOST_BLOCK_ROWS)
    slot.record({"x": x}, {"p": p}, 0.05)
    body = slot.roll(2_000)
    assert (body.rows, body.sampled) == (len(x), MOST_BLOCK_ROWS)
    assert sum(body.inputs.counts[0]) == MOST_BLOCK_ROWS


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"x": np.ones((1, 3), np.float32)},
        {"x": np.ones((0, 2), np.float32)},
        {"x": np.float32(1.0).reshape(())},
    ],
    ids=["no tensor", "another width", "no rows", "a scalar"],
)
def test_what_does_not_fit_is_left_out_and_never_fails(reference, inputs):
    slot = aggregator(reference)
    x, p = rows(6, 3)
    serve(slot, x, p, 1)
    slot.record(inputs, {}, 0.001)
    body = slot.roll(2_000)
    assert (body.n, body.sampled) == (4, 3)


def test_without_a_reference_outputs_are_still_counted():
    slot = aggregator(None)
    x, p = rows(7, 50)
    serve(slot, x, p, 1)
    body = slot.roll(2_000)
    assert (body.reference, body.drift, body.sampled) == (None, None, 0)
    assert sum(body.outputs.classes) == 50
    assert slot.drift_evidence() is None


def test_pairs_are_counted_by_flip():
    slot = aggregator(None)
    slot.record_pair(1, 1)
    slot.compare_with(OLD)
    for new, old in ((1, 1), (2, 0), (2, 0), (40, 1), (-1, -1)):
        slot.record_pair(new, old)
    pairs = slot.roll(2_000).pairs
    assert (pairs.against, pairs.n, pairs.agree) == (OLD, 5, 1)
    assert (pairs.flips, pairs.flips_other) == ({"0>2": 2}, 2)
    assert slot.roll(3_000).pairs.n == 0
    slot.compare_with(None)
    assert slot.roll(4_000).pairs is None


def test_the_class_of_an_answer_can_be_asked_for():
    _, p = rows(8, 20)
    assert aggregator(None).classes({"p": p}) == p.argmax(axis=1).tolist()
    values = [TensorSpec(name="y", dtype="float32", shape=["n", 1], kind="values")]
    assert aggregator(None, outputs=values).classes({"y": p[:, :1]}) is None


def test_text_rows_are_kept_whatever_their_length():
    inputs = [TensorSpec(name="t", dtype="str", shape=["n", 1], features=["colour"])]
    what = describe(inputs=inputs)
    _, p = rows(9, 4)
    old = np.array([["red"], ["blue"], ["red"], ["blue"]], dtype=object)
    made = build_reference(what, {"t": old}, {"p": p})
    slot = aggregator(made, inputs=inputs)
    slot.record({"t": np.array([["red"]])}, {"p": p[:1]}, 0.001)
    slot.record({"t": np.array([["ultramarine"]])}, {"p": p[:1]}, 0.001)
    slot.record({"t": np.array([[None]], dtype=object)}, {"p": p[:1]}, 0.001)
    body = slot.roll(2_000)
    assert (body.inputs.counts, body.inputs.null) == ([[0, 1, 1]], [1])


def test_images_are_described_on_a_share_of_requests():
    inputs = [TensorSpec(name="image", dtype="float32", shape=["n", 3, 32, 32])]
    what = describe(inputs=inputs)
    rng = np.random.default_rng(10)
    images = rng.normal(size=(40, 3, 32, 32)).astype(np.float32)
    _, p = rows(10, 40)
    made = build_reference(what, {"image": images}, {"p": p})
    slot = aggregator(made, inputs=inputs)
    for start in range(40):
        slot.record({"image": images[start : start + 1]}, {"p": p[start : start + 1]}, 0.01)
    body = slot.roll(2_000)
    assert body.sampled == 40 // WIDE_EVERY
    assert sum(body.inputs.counts[0]) == body.sampled
    assert sum(body.outputs.classes) == 40


def test_a_clock_set_back_does_not_make_an_impossible_window(reference):
    slot = aggregator(reference)
    assert slot.roll(500).end_ms == 1_000
    assert slot.roll(900).start_ms == 500


def test_drift_is_found_once_a_minute_is_over(reference):
    slot = aggregator(reference)
    x, p = rows(11, 4000, moved=1.0)
    serve(slot, x, p, 1)
    assert slot.roll(30_000).drift == "no-data"
    assert slot.drift_evidence() is None
    slot.roll(61_000)
    report = slot.drift_evidence().judge(1e-6)
    assert report.verdict == "drift"
    evidence = report.evidence()
    assert set(evidence) == {"x/u", "x/v"}
    assert evidence["x/u"]["span"] == "minute"
    json.dumps(evidence, allow_nan=False)
    slot.settle(report)
    assert slot.roll(62_000).drift == "drift"
    assert slot.drift_evidence() is None


def test_a_quiet_slot_is_judged_by_the_hour(reference):
    slot = aggregator(reference)
    x, p = rows(12, 60 * 30)
    for minute in range(60):
        part = slice(30 * minute, 30 * (minute + 1))
        serve(slot, x[part], p[part], 1)
        slot.roll(1_000 + 60_000 * (minute + 1))
        evidence = slot.drift_evidence()
        if minute < 59:
            assert evidence.judge(1e-6).verdict == "no-data"
    report = evidence.judge(1e-6)
    assert report.verdict == "ok"
    assert {span for span, _ in report.features.values()} == {"hour"}


def test_counting_without_labels_uses_the_columns_of_the_output():
    outputs = [TensorSpec(name="p", dtype="float32", shape=["n", 3], kind="probabilities")]
    assert empty_output_reference(outputs).classes == ["0", "1", "2"]
    assert empty_output_reference(describe().outputs).classes == LABELS


def test_requests_without_rows_are_counted_and_nothing_of_them_is_kept(reference):
    slot = aggregator(reference)
    empty = {"x": np.ones((0, 2), np.float32)}
    for _ in range(10 * MOST_BLOCK_ROWS):
        slot.record(empty, {"p": np.ones((0, 3), np.float32)}, 0.001)
    assert slot._input_rows.kept == slot._output_rows.kept == 0
    body = slot.roll(2_000)
    assert (body.n, body.rows, body.sampled) == (10 * MOST_BLOCK_ROWS, 0, 0)


def test_inputs_and_outputs_are_not_counted_in_the_same_instant(reference, monkeypatch):
    counted: list[str] = []
    for name in ("_count_inputs", "_count_outputs"):
        monkeypatch.setattr(
            SlotAggregator, name, lambda _self, _block, name=name: counted.append(name)
        )
    slot = aggregator(reference)
    x, p = rows(8, 3 * MOST_BLOCK_ROWS)
    both = 0
    for row in range(len(x)):
        before = len(counted)
        slot.record({"x": x[row : row + 1]}, {"p": p[row : row + 1]}, 0.001)
        both += len(counted) == before + 2
    assert (both, counted.count("_count_inputs"), counted.count("_count_outputs")) == (0, 3, 3)

"""Requests that come together are answered by one run, as if each had had its own."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from edgepack_contract.description import TensorSpec
from edgepack_runtime.config import BatchingConfig
from edgepack_runtime.inference.errors import ModelRunError
from edgepack_runtime.inference.golden import GoldenRows
from edgepack_runtime.serving.batching import Batcher, why_not_batched, why_not_by_rows
from edgepack_runtime.serving.codec import Payload
from edgepack_runtime.serving.errors import OverloadError
from edgepack_runtime.serving.instances import InstancesCodec
from edgepack_runtime.serving.predict import predict
from edgepack_runtime.serving.slot import Slot


class Doubler:
    """A model that doubles its rows, refuses a 13 among them, and keeps the rows of each run."""

    def __init__(self):
        self.runs = []

    async def run(self, feeds):
        x = feeds["x"]
        self.runs.append(len(x))
        await asyncio.sleep(0)
        if 13.0 in x:
            raise ModelRunError("13 is bad luck")
        return {"y": 2 * x}


def rows(*values, width=1):
    return {"x": np.repeat(np.array(values, np.float32)[:, None], width, axis=1)}


def answer(requests, *, most_rows=8, waiting=100, delay_s=0.0):
    """What each request gets, an error where it fails; and the runs that it took."""
    model = Doubler()

    async def ask():
        batcher = Batcher(model.run, rows=most_rows, delay_s=delay_s, most_waiting=waiting)
        jobs = [batcher.run(request) for request in requests]
        return await asyncio.gather(*jobs, return_exceptions=True), batcher.stats()

    answers, stats = asyncio.run(ask())
    return answers, model.runs, stats


def test_rows_are_joined_and_each_request_gets_its_own():
    answers, runs, stats = answer([rows(1), rows(2, 3), rows(4)])
    assert runs == [4]
    assert [one["y"].ravel().tolist() for one in answers] == [[2], [4, 6], [8]]
    assert [(entry["batch_size"], entry["compute_infer"]["count"]) for entry in stats] == [(4, 1)]


def test_a_full_batch_does_not_wait():
    answers, runs, _ = answer([rows(1)] * 16, delay_s=3600.0)
    assert runs == [8, 8]
    assert len(answers) == 16


def test_what_does_not_fit_any_more_begins_the_next_batch():
    _, runs, _ = answer([rows(1, 2, 3, 4, 5), rows(6, 7, 8, 9)])
    assert runs == [5, 4]


def test_a_large_request_and_an_empty_one_run_alone():
    _, runs, _ = answer([rows(*range(20)), {"x": np.zeros((0, 1), np.float32)}, rows(1), rows(2)])
    assert sorted(runs) == [0, 2, 20]


def test_rows_of_other_shapes_are_not_joined():
    answers, runs, _ = answer([rows(1), rows(2, width=3), rows(3)])
    assert sorted(runs) == [1, 2]
    assert answers[1]["y"].shape == (1, 3)


def test_the_error_of_one_request_is_not_that_of_the_others():
    answers, runs, _ = answer([rows(1), rows(13), rows(3)])
    assert runs[0] == 3
    assert isinstance(answers[1], ModelRunError)
    assert [answers[0]["y"].item(), answers[2]["y"].item()] == [2.0, 6.0]


def test_a_model_that_mixes_rows_up_is_asked_one_by_one():
    async def run(feeds):
        return {"y": feeds["x"][:1]}

    async def ask():
        batcher = Batcher(run, rows=8, delay_s=0.0, most_waiting=9)
        return await asyncio.gather(batcher.run(rows(1)), batcher.run(rows(2)))

    assert [one["y"].item() for one in asyncio.run(ask())] == [1.0, 2.0]


def test_only_so_many_wait():
    answers, _, _ = answer([rows(1)] * 5, waiting=3)
    assert [isinstance(one, OverloadError) for one in answers] == [False] * 3 + [True] * 2


def test_who_gives_up_is_left_out():
    model = Doubler()

    async def ask():
        batcher = Batcher(model.run, rows=8, delay_s=0.001, most_waiting=9)
        jobs = [asyncio.create_task(batcher.run(rows(value))) for value in (1, 2, 3)]
        await asyncio.sleep(0)
        jobs[1].cancel()
        return await asyncio.gather(*jobs, return_exceptions=True)

    answers = asyncio.run(ask())
    assert model.runs == [2]
    assert isinstance(answers[1], asyncio.CancelledError)
    assert answers[2]["y"].item() == 6.0


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ([["n", 4]], [["n", 3]], None),
        ([["n", 4], ["n"]], [["n"]], None),
        ([[1, 4]], [[1, 3]], "first dimension"),
        ([["n", 4], ["m", 4]], [["n"]], "first dimension"),
        ([[]], [["n"]], "first dimension"),
        ([["n", 4]], [["n"], [3]], "output 'o1'"),
        ([["n", 4]], [[]], "output 'o0'"),
    ],
)
def test_which_models_take_joined_rows(load, inputs, outputs, words):
    description = msgspec.structs.replace(
        load("one").description,
        inputs=[
            TensorSpec(name=f"i{k}", dtype="float32", shape=shape) for k, shape in enumerate(inputs)
        ],
        outputs=[
            TensorSpec(name=f"o{k}", dtype="float32", shape=shape)
            for k, shape in enumerate(outputs)
        ],
    )
    why = why_not_by_rows(description)
    assert why is None if words is None else words in why


def test_a_model_whose_answers_depend_on_the_batch_is_not_joined(load, monkeypatch):
    model = load("one")
    assert why_not_batched(model) is None
    golden = model._golden
    moved = {name: array + np.ones((), array.dtype) for name, array in golden.outputs.items()}
    monkeypatch.setattr(model, "_golden", GoldenRows(golden.inputs, moved))
    assert "otherwise than single ones" in why_not_batched(model)
    monkeypatch.setattr(model, "_golden", replace(golden, inputs={"x": golden.inputs["x"][:, :2]}))
    assert "fails on several rows" in why_not_batched(model)


def test_a_slot_joins_what_comes_together_and_counts_each_request(load, monkeypatch):
    model = load("one")
    runs, whole = [], model.run

    def counted(feeds):
        runs.append(len(feeds["x"]))
        return whole(feeds)

    monkeypatch.setattr(model, "run", counted)
    monkeypatch.setattr(model, "joinable", True)

    async def work():
        slot = Slot("pump", batching=BatchingConfig(rows=64, delay_ms=1.0))
        slot.swap(model, keep_previous=False)
        bodies = [b'{"instances": [[%d, 1, 2, 3]]}' % number for number in range(6)]
        bodies.append(b'{"instances": [["no", 1, 2, 3]]}')
        found = await asyncio.gather(
            *(predict(slot, InstancesCodec(), Payload(body)) for body in bodies),
            return_exceptions=True,
        )
        counted = slot.counters().requests, slot.totals.errors["shape"]
        (window,) = slot.roll()
        batches = [entry["batch_size"] for entry in slot.tenure.batcher.stats()]
        monkeypatch.setattr(model, "release", lambda: None)
        await slot.close()
        return found, counted, window, batches

    found, counted_requests, window, batches = asyncio.run(work())
    assert runs == [6]
    assert batches == [6]
    assert isinstance(found[-1], Exception)
    assert (window.n, window.rows, window.errors) == (6, 6, 1)
    assert counted_requests[0] == 6
    alone = [
        InstancesCodec().encode("pump", model, request, whole(request.feeds)).body
        for request in (
            InstancesCodec().decode(model, Payload(b'{"instances": [[%d, 1, 2, 3]]}' % number))
            for number in range(6)
        )
    ]
    assert [one.encoded.body for one in found[:-1]] == alone

"""A model that does not come back: its requests end, and nothing else of the daemon waits."""

from __future__ import annotations

import asyncio
import threading
import time

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack_contract.description import (
    GOLDEN_PATH,
    MODEL_PATH,
    SessionOptions,
    TensorSpec,
    parse_description,
)
from edgepack_runtime.inference.errors import ModelRunError
from edgepack_runtime.inference.golden import GoldenRows, golden_bytes, run_rows
from edgepack_runtime.inference.session import open_session
from edgepack_runtime.serving.codec import Payload
from edgepack_runtime.serving.errors import DeadlineError, OverloadError
from edgepack_runtime.serving.instances import InstancesCodec
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.predict import predict
from edgepack_runtime.serving.slot import Slot

GOOD = b'{"instances": [[1, 1, 1, 1]]}'
FOR_EVER = b'{"instances": [[1e18, 1, 1, 1]]}'
DEADLINE = 30.0


def looping_graph() -> bytes:
    """y = x, after as many rounds as the largest element of x says."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Mul", ["v", "k"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(np.float32(1.0), "k")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["rounds"], to=TensorProto.INT64),
            helper.make_node("Loop", ["rounds", "yes", "x"], ["y"], body=body),
        ],
        "looping",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.array(True), "yes")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def looping(make_variant):
    """A model that takes as long as its input says."""
    folder = make_variant("looping", reference=False)
    (folder / MODEL_PATH).write_bytes(looping_graph())
    inputs = {"x": np.ones((8, 4), np.float32)}
    answers = run_rows(open_session(folder / MODEL_PATH, SessionOptions()), inputs, 8)
    (folder / GOLDEN_PATH).write_bytes(golden_bytes(GoldenRows(inputs, answers)))
    described = parse_description((folder / "edgepack.json").read_bytes())
    described = msgspec.structs.replace(
        described,
        task="regression",
        operators=["ai.onnx:Cast", "ai.onnx:Loop", "ai.onnx:ReduceMax"],
        inputs=[TensorSpec(name="x", dtype="float32", shape=["n", 4])],
        outputs=[TensorSpec(name="y", dtype="float32", shape=["n", 4])],
    )
    (folder / "edgepack.json").write_bytes(described.to_bytes())
    return ServingModel.load(folder, "sha256:" + "1" * 64)


async def until(condition):
    ends = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < ends, "the condition did not come true"
        await asyncio.sleep(0)


async def ask(slot, body=GOOD):
    return await predict(slot, InstancesCodec(), Payload(body))


def run(work, model, **options):
    async def with_slot():
        slot = Slot("pump", now_ms=lambda: 1_000, **options)
        slot.swap(model, keep_previous=False)
        try:
            await work(slot)
        finally:
            slot._active = None  # the model is shared by these tests
            await slot.close()

    asyncio.run(with_slot())


def test_how_long_a_loop_takes_nobody_can_estimate(looping, load):
    feeds = {"x": np.ones((1, 4), np.float32)}
    assert looping.estimated_seconds(feeds) == float("inf")
    assert load("one").estimated_seconds(feeds) < 1.0


def test_a_run_that_does_not_end_is_ended_and_the_model_to_blame(looping):
    async def work(slot):
        # more of them than there are threads
        jobs = [asyncio.create_task(ask(slot, FOR_EVER)) for _ in range(3)]
        found = await asyncio.gather(*jobs, return_exceptions=True)
        assert {type(one) for one in found} <= {DeadlineError, OverloadError}
        late = sum(isinstance(one, DeadlineError) for one in found)
        assert late >= 2
        assert slot.totals.errors["deadline"] == slot.counters().errors == late
        assert slot._pool.lost == 0
        assert (await ask(slot)).version == "1.0.0"
        (window,) = slot.roll()
        assert window.errors_by_kind["deadline"] == late

    run(work, looping, run_seconds=0.2)


def test_a_request_that_is_ended_beside_another_begins_anew(looping, monkeypatch):
    feeds = {"x": np.full((1, 4), 1e18, np.float32)}
    begun, tries = threading.Event(), []

    def innocent():
        tries.append(len(tries))
        if tries == [0]:
            begun.set()
            return looping.run(feeds)
        return "answered"

    async def work(slot):
        job = asyncio.create_task(slot.in_pool(innocent, looping))
        await until(begun.is_set)
        looping.interrupt()
        while not job.done():
            # the run may not have begun when it was first interrupted
            looping.interrupt()
            await asyncio.sleep(0.001)
        assert await job == "answered"

    run(work, looping)


def test_a_thread_that_heeds_nothing_is_given_up(looping, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr("edgepack_runtime.serving.slot.GRACE_SECONDS", 0.01)

    async def work(slot):
        for _ in range(3):
            with pytest.raises(DeadlineError, match=r"within 0\.05 s"):
                await slot.in_pool(lambda: go_on.wait(DEADLINE), looping)
        assert slot._pool.lost == 3
        assert await slot.in_pool(lambda: 7) == 7
        go_on.set()
        await until(lambda: slot._pool.lost == 0)

    run(work, looping, run_seconds=0.05)


def test_an_interrupted_session_goes_on_with_the_next_run(looping):
    looping.interrupt()
    assert looping.run({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[1.0] * 4]
    failed = []

    def ask_for_ever():
        try:
            looping.run({"x": np.full((1, 4), 1e18, np.float32)})
        except ModelRunError as error:
            failed.append(error.code)

    thread = threading.Thread(target=ask_for_ever)
    thread.start()
    ends = time.monotonic() + DEADLINE
    while thread.is_alive():
        assert time.monotonic() < ends
        looping.interrupt()
        thread.join(0.001)
    assert failed == ["interrupted"]

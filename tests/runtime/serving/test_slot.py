from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from edgepack_runtime.inference.errors import ModelRunError
from edgepack_runtime.serving.codec import Payload
from edgepack_runtime.serving.errors import NoModelError, OverloadError
from edgepack_runtime.serving.instances import InstancesCodec
from edgepack_runtime.serving.predict import predict
from edgepack_runtime.serving.slot import Slot

BODY = b'{"instances": [[0.5, -1.0, 2.0, 0.0]]}'
BIG = b'{"instances": [' + b",".join([b"[0.5, -1.0, 2.0, 0.0]"] * 5000) + b"]}"
DEADLINE = 30.0


async def until(condition):
    """Wait for a condition with a deadline, letting the loop run."""
    ends = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < ends, "the condition did not come true"
        await asyncio.sleep(0)


def released(model):
    try:
        model.run({"x": np.zeros((1, 4), np.float32)})
    except ModelRunError:
        return True
    return False


async def ask(slot, body=BODY):
    return await predict(slot, InstancesCodec(), Payload(body))


def run(work):
    """Run a test's coroutine with a slot, which is closed afterwards."""

    async def with_slot():
        slot = Slot("pump", now_ms=lambda: 1_000)
        try:
            await work(slot)
        finally:
            await slot.close()

    asyncio.run(with_slot())


def test_an_empty_slot_answers_nobody():
    async def work(slot):
        with pytest.raises(NoModelError):
            await ask(slot)
        assert slot.totals.unavailable == 1
        assert slot.roll() == []
        assert slot.fall_back() is False

    run(work)


def test_a_swap_lets_go_of_the_old_model(load):
    one, two = load("one", version="1.0.0"), load("two", version="2.0.0")

    async def work(slot):
        slot.swap(one, keep_previous=False)
        assert (await ask(slot)).version == "1.0.0"
        slot.swap(two, keep_previous=False)
        assert (await ask(slot)).version == "2.0.0"
        assert slot.previous is None
        await until(lambda: released(one))
        assert not released(two)

    run(work)


def test_requests_in_flight_finish_on_the_model_they_began_with(load, monkeypatch):
    one, two = load("one", version="1.0.0"), load("two", version="2.0.0")
    entered, go_on = threading.Event(), threading.Event()
    whole = one.run

    def slow(feeds):
        entered.set()
        assert go_on.wait(DEADLINE)
        return whole(feeds)

    monkeypatch.setattr(one, "run", slow)

    async def work(slot):
        slot.swap(one, keep_previous=False)
        waiting = asyncio.create_task(ask(slot, BIG))
        await until(entered.is_set)
        slot.swap(two, keep_previous=False)
        assert (await ask(slot)).version == "2.0.0"
        assert slot.in_flight == 1
        first, second = slot.roll(), slot.roll()
        assert [body.bundle for body in first + second] == [two.digest, two.digest]
        monkeypatch.setattr(one, "run", whole)
        assert not released(one)
        go_on.set()
        assert (await waiting).version == "1.0.0"
        await until(lambda: released(one))
        late = {body.bundle: body.n for body in slot.roll()}
        assert late == {one.digest: 1, two.digest: 0}

    run(work)


def test_a_new_model_begins_with_new_counts(load):
    one, two = load("one"), load("two")

    async def work(slot):
        slot.swap(one, keep_previous=False)
        await ask(slot)
        assert slot.counters().requests == 1
        slot.swap(two, keep_previous=False)
        assert slot.counters().requests == 0
        assert slot.totals.answered == 1
        assert slot.totals.swaps == 2

    run(work)


def test_the_previous_model_answers_again_at_once(load):
    one, two = load("one", version="1.0.0"), load("two", version="2.0.0")

    async def work(slot):
        slot.swap(one, keep_previous=False)
        slot.swap(two, keep_previous=True)
        assert slot.previous is one
        assert slot.fall_back()
        assert slot.active is one
        assert slot.previous is None
        assert slot.shadow is None
        assert (await ask(slot)).version == "1.0.0"
        await until(lambda: released(two))
        assert not released(one)
        assert not slot.fall_back()

    run(work)


def test_pairs_are_counted_by_reverse_shadow(load):
    one, two = load("one", bias=50.0), load("two", bias=-50.0)

    async def work(slot):
        slot.swap(one, keep_previous=False)
        slot.swap(two, keep_previous=True)
        for _ in range(10):
            await ask(slot)
        bodies = slot.roll(probation=True)
        ends = time.monotonic() + DEADLINE
        while sum(body.pairs.n for body in bodies if body.pairs) < 10:
            assert time.monotonic() < ends
            await asyncio.sleep(0)
            bodies += slot.roll(probation=True)
        pairs = [body.pairs for body in bodies if body.pairs and body.pairs.n]
        assert {item.against for item in pairs} == {one.digest}
        assert {body.bundle for body in bodies if body.pairs} == {two.digest}
        assert sum(item.agree for item in pairs) == 0
        flips = {flip for item in pairs for flip in item.flips}
        assert len(flips) == 1
        assert flips.pop().startswith("0>")
        assert slot.shadow.failed == slot.shadow.dropped == 0
        slot.end_shadow()
        assert slot.previous is None
        (last,) = slot.roll()
        assert last.pairs is not None
        (after,) = slot.roll()
        assert after.pairs is None
        await until(lambda: released(one))

    run(work)


def test_labels_are_compared_by_name_not_by_place(load):
    one = load("one", bias=50.0)
    two = load("two", bias=50.0)
    # the same decision, but the old bundle lists its classes in another order
    one.reader.labels[:] = ["broken", "worn", "ok"]

    async def work(slot):
        slot.swap(one, keep_previous=False)
        slot.swap(two, keep_previous=True)
        await ask(slot)
        await until(lambda: slot._active.aggregator._pairs == 1)
        (body, *_) = [item for item in slot.roll() if item.pairs]
        assert (body.pairs.agree, body.pairs.flips) == (0, {"2>0": 1})

    run(work)


def test_nothing_is_sampled_with_a_share_of_nothing(load):
    one, two = load("one"), load("two")

    async def work(slot):
        slot.swap(one, keep_previous=False)
        slot.swap(two, keep_previous=True, share=0.0)
        for _ in range(20):
            await ask(slot)
        shadow = slot.shadow
        shadow.stop()
        await asyncio.to_thread(shadow.join, DEADLINE)
        bodies = slot.roll()
        assert sum(body.pairs.n for body in bodies if body.pairs) == 0

    run(work)


def test_a_slow_previous_model_drops_samples_and_delays_nobody(load, monkeypatch):
    one, two = load("one"), load("two")
    go_on, whole = threading.Event(), one.run

    def stuck(feeds):
        assert go_on.wait(DEADLINE)
        return whole(feeds)

    monkeypatch.setattr(one, "run", stuck)

    async def work(slot):
        slot.swap(one, keep_previous=False)
        slot.swap(two, keep_previous=True)
        for _ in range(200):
            await ask(slot)
        assert slot.counters().requests == 200
        assert slot.shadow.dropped >= 200 - 128 - 1
        go_on.set()

    run(work)


def test_models_that_take_other_inputs_are_not_compared(load):
    one, two = load("one"), load("two")
    one.description.inputs[0] = type(one.description.inputs[0])(
        name="y", dtype="float32", shape=["batch", 4]
    )

    async def work(slot):
        slot.swap(one, keep_previous=False)
        slot.swap(two, keep_previous=True)
        assert slot.shadow is None
        assert slot.previous is one

    run(work)


def test_a_previous_model_that_fails_is_no_fault_of_the_new_one(load, monkeypatch):
    one, two = load("one"), load("two")

    def broken(feeds):
        raise ModelRunError("no")

    monkeypatch.setattr(one, "run", broken)

    async def work(slot):
        slot.swap(one, keep_previous=False)
        slot.swap(two, keep_previous=True)
        await ask(slot)
        await until(lambda: slot.shadow.failed == 1)
        assert slot.counters().errors == 0

    run(work)


def test_a_cleared_slot_lets_go_of_both_models(load):
    one, two = load("one"), load("two")

    async def work(slot):
        slot.swap(one, keep_previous=False)
        slot.swap(two, keep_previous=True)
        slot.clear()
        assert slot.active is None
        assert slot.previous is None
        await until(lambda: released(one) and released(two))
        with pytest.raises(NoModelError):
            await ask(slot)

    run(work)


def test_the_pool_is_bounded(load):
    go_on = threading.Event()

    async def work():
        slot = Slot("pump", most_waiting=3)
        jobs = [asyncio.create_task(slot.in_pool(lambda: go_on.wait(DEADLINE))) for _ in range(3)]
        await until(lambda: slot._waiting == 3)
        with pytest.raises(OverloadError, match="3 requests wait"):
            await slot.in_pool(lambda: None)
        go_on.set()
        assert await asyncio.gather(*jobs) == [True] * 3
        assert await slot.in_pool(lambda: 7) == 7
        await slot.close()

    asyncio.run(work())


def test_one_output_for_everything_shows_in_the_counters(load, monkeypatch):
    model = load("one")
    stuck = model.run({"x": np.zeros((1, 4), np.float32)})
    monkeypatch.setattr(model, "run", lambda feeds: stuck)

    async def work(slot):
        slot.swap(model, keep_previous=False)
        for value in range(55):
            await ask(slot, b'{"instances": [[%d, 0, 0, 0]]}' % value)
        assert slot.counters().identical_inputs == 55

    run(work)

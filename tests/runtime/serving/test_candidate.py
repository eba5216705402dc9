"""A second model in a slot: what it sees, what it answers, and that it touches nothing else."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from edgepack_contract.description import TensorSpec
from edgepack_contract.messages import CandidateMode
from edgepack_contract.statistics import ClassReader
from edgepack_runtime.inference.errors import ModelRunError
from edgepack_runtime.serving.candidate import KEY_BYTES, share_of
from edgepack_runtime.serving.codec import Payload
from edgepack_runtime.serving.errors import NoModelError, UnknownModelError
from edgepack_runtime.serving.instances import InstancesCodec
from edgepack_runtime.serving.predict import predict
from edgepack_runtime.serving.slot import Slot

BODY = b'{"instances": [[0.5, -1.0, 2.0, 0.0]]}'
SHADOW, SPLIT = CandidateMode.SHADOW, CandidateMode.SPLIT
DEADLINE = 30.0


async def until(condition):
    ends = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < ends, "the condition did not come true"
        await asyncio.sleep(0)


async def ask(slot, body=BODY, *, key=None, version=None):
    return await predict(slot, InstancesCodec(), Payload(body, key=key), version)


def run(work, active, candidate, mode=SHADOW, share=1.0):
    """Run a test's coroutine with a slot that holds both models."""

    async def with_slot():
        slot = Slot("pump", now_ms=lambda: 1_000)
        slot.swap(active, keep_previous=False)
        slot.candidate.settle(mode, share)
        slot.candidate.swap(candidate, keep_previous=True)
        try:
            await work(slot)
        finally:
            await slot.close()

    asyncio.run(with_slot())


@pytest.fixture
def pair(load):
    return load("one", version="1.0.0", bias=50.0), load("two", version="2.0.0", bias=-50.0)


def of(bodies, digest):
    return [body for body in bodies if body.bundle == digest]


def test_a_shadow_answers_nobody_and_is_compared_with_who_did(pair):
    one, two = pair

    async def work(slot):
        for _ in range(10):
            assert (await ask(slot)).version == "1.0.0"
        await until(lambda: slot.candidate.counters().requests == 10)
        active, shadow = slot.roll()
        assert (active.bundle, active.role, active.n) == (one.digest, "active", 10)
        assert (shadow.bundle, shadow.role, shadow.n, shadow.rows) == (two.digest, "shadow", 10, 10)
        assert (shadow.pairs.against, shadow.pairs.n, shadow.pairs.agree) == (one.digest, 10, 0)
        assert [flip[:2] for flip in shadow.pairs.flips] == ["0>"]
        assert sum(shadow.latency.counts) == 10
        assert active.pairs is None
        assert slot.totals.answered == 10

    run(work, one, two)


def test_the_windows_of_two_models_take_turns_so_that_neighbours_merge(pair):
    async def work(slot):
        rolls = [[body.role for body in slot.roll()] for _ in range(4)]
        assert rolls == [["active", "shadow"], ["shadow", "active"]] * 2

    run(work, *pair)


def test_a_shadow_that_fails_or_gives_nan_is_counted_as_its_own_fault(pair, monkeypatch):
    one, two = pair

    def broken(feeds):
        raise ModelRunError("no")

    monkeypatch.setattr(two, "run", broken)

    async def work(slot):
        for _ in range(5):
            assert (await ask(slot)).version == "1.0.0"
        await until(lambda: slot.candidate.counters().errors == 5)
        nothing = {"label": np.zeros(1, np.int64), "probabilities": np.full((1, 3), np.nan)}
        monkeypatch.setattr(two, "run", lambda feeds: nothing)
        await ask(slot)
        await until(lambda: slot.candidate.counters().nonfinite == 1)
        assert slot.counters().errors == slot.counters().nonfinite == 0
        active, shadow = slot.roll()
        assert (active.n, active.errors) == (6, 0)
        assert shadow.errors_by_kind == {"backend": 5, "nonfinite_output": 1}

    run(work, one, two)


def test_a_shadow_sees_only_its_share(pair):
    async def work(slot):
        slot.candidate.settle(SHADOW, 0.0)
        await ask(slot)
        assert slot.candidate.watching is None
        slot.candidate.settle(SHADOW, 0.5)
        assert slot.candidate.watching is not None

    run(work, *pair)


def test_a_slow_shadow_delays_nobody(pair, monkeypatch):
    one, two = pair
    go_on = threading.Event()
    monkeypatch.setattr(two, "run", lambda feeds: go_on.wait(DEADLINE) and one.run(feeds))

    async def work(slot):
        for _ in range(200):
            await ask(slot)
        assert slot.counters().requests == 200
        assert slot.candidate.watching.dropped >= 200 - 128 - 1
        go_on.set()

    run(work, one, two)


def test_a_shadow_that_takes_other_inputs_sees_nothing_and_is_not_to_blame(pair):
    one, two = pair
    two.description.inputs[0] = TensorSpec(name="y", dtype="float32", shape=["batch", 4])

    async def work(slot):
        await ask(slot)
        await until(lambda: slot.candidate.watching.failed == 1)
        assert slot.candidate.counters().requests == 0

    run(work, one, two)


def test_numbers_are_compared_where_there_are_no_classes(pair, monkeypatch):
    one, two = pair
    for model in pair:
        monkeypatch.setattr(model, "reader", ClassReader([]))
    whole = one.run
    shifts = iter([1.0, 3.0])
    monkeypatch.setattr(
        two,
        "run",
        lambda feeds: (
            whole(feeds) | {"probabilities": whole(feeds)["probabilities"] + next(shifts)}
        ),
    )

    async def work(slot):
        for _ in range(2):
            await ask(slot)
        await until(lambda: slot.candidate.counters().requests == 2)
        _, shadow = slot.roll()
        found = shadow.differences
        assert (found.against, found.n) == (one.digest, 6)
        assert (found.mean, found.min, found.max) == pytest.approx((2.0, 1.0, 3.0), abs=1e-6)
        assert found.m2 == pytest.approx(6.0, abs=1e-5)
        assert shadow.pairs is None
        assert all(body.differences is None for body in slot.roll())

    run(work, one, two)


def test_a_split_answers_its_share_of_keys_and_always_the_same(pair):
    one, two = pair

    async def work(slot):
        keys = [str(number).encode() for number in range(200)]
        first = [(await ask(slot, key=key)).version for key in keys]
        again = [(await ask(slot, key=key)).version for key in reversed(keys)]
        assert first == again[::-1]
        assert 20 <= first.count("2.0.0") <= 85
        active, split = slot.roll()
        assert (split.role, split.n) == ("split", 2 * first.count("2.0.0"))
        assert active.n + split.n == slot.totals.answered == 400
        assert slot.candidate.counters().requests == split.n

    run(work, one, two, SPLIT, 0.25)


def test_without_a_key_the_body_decides(pair):
    async def work(slot):
        bodies = [b'{"instances": [[%d, 1, 1, 1]]}' % number for number in range(60)]
        first = [(await ask(slot, body)).version for body in bodies]
        assert first == [(await ask(slot, body)).version for body in bodies]
        assert set(first) == {"1.0.0", "2.0.0"}

    run(work, *pair, SPLIT, 0.5)


def test_shares_are_even_stable_and_of_their_own_for_each_candidate():
    keys = [Payload(b"", key=str(number).encode()) for number in range(4000)]
    found = [share_of(key, salt="sha256:" + "1" * 64) for key in keys]
    assert np.histogram(found, 4, (0, 1))[0].min() > 900
    other = [share_of(key, salt="sha256:" + "2" * 64) for key in keys]
    assert abs(np.corrcoef(found, other)[0, 1]) < 0.06
    # what a device says must hold on every other one
    assert found[0] == pytest.approx(0.2130569, abs=1e-6)
    long = bytes(3 * KEY_BYTES)
    assert share_of(Payload(long), salt="a") != share_of(Payload(long + b"0"), salt="a")


def test_a_version_in_the_path_reaches_the_candidate(pair):
    async def work(slot):
        assert (await ask(slot, version="2.0.0")).version == "2.0.0"
        assert (await ask(slot, version="1.0.0")).version == "1.0.0"
        assert slot.of_version("2.0.0").model is slot.candidate.active
        with pytest.raises(UnknownModelError):
            await ask(slot, version="3.0.0")

    run(work, *pair)


def test_a_candidate_never_answers_for_an_empty_slot(pair):
    async def work(slot):
        slot.clear()
        with pytest.raises(NoModelError):
            await ask(slot)

    run(work, *pair, SPLIT, 1.0)


def test_another_mode_begins_another_window(pair):
    one, two = pair

    async def work(slot):
        await ask(slot, version="2.0.0")
        slot.candidate.settle(SPLIT, 1.0)
        await ask(slot)
        bodies = of(slot.roll(), two.digest)
        assert sorted((body.role, body.n) for body in bodies) == [("shadow", 1), ("split", 1)]
        assert slot.candidate.watching is None

    run(work, one, two)


def test_requests_in_flight_on_a_candidate_that_goes_finish_on_it(pair, monkeypatch):
    one, two = pair
    entered, go_on, whole = threading.Event(), threading.Event(), two.run

    def slow(feeds):
        entered.set()
        assert go_on.wait(DEADLINE)
        return whole(feeds)

    monkeypatch.setattr(two, "run", slow)
    monkeypatch.setattr(two, "estimated_seconds", lambda feeds: 1.0)

    async def work(slot):
        waiting = asyncio.create_task(ask(slot))
        await until(entered.is_set)
        slot.candidate.clear()
        assert not slot.gone.done()
        assert (await ask(slot)).version == "1.0.0"
        go_on.set()
        assert (await waiting).version == "2.0.0"
        await until(slot.gone.done)
        with pytest.raises(ModelRunError):
            whole({"x": np.zeros((1, 4), np.float32)})

    run(work, one, two, SPLIT, 1.0)


def test_a_candidate_that_is_taken_over_answers_as_the_active_model(pair):
    one, two = pair

    async def work(slot):
        slot.take_over(keep_previous=True)
        assert (await ask(slot)).version == "2.0.0"
        assert (slot.previous, slot.candidate.active) == (one, None)
        assert slot.counters().requests == 1

    run(work, one, two)

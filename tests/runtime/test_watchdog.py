"""When the daemon says that it works: only if it does."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from edgepack_runtime.inference.errors import ModelRunError
from edgepack_runtime.serving.codec import Payload
from edgepack_runtime.serving.instances import InstancesCodec
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.predict import predict
from edgepack_runtime.serving.slot import Slot
from edgepack_runtime.watchdog import Watchdog

SECONDS = 20.0
WELL = {"lag": 0.0, "most": 1.0}
DIGEST = "sha256:" + "a" * 64


@pytest.fixture(scope="module")
def variant(make_variant):
    return make_variant("watched")


def watched(variant, test, *, dead=list):
    """Run ``test(watchdog, slot, pets)`` in a loop, with a slot that serves."""

    async def run():
        slot = Slot("main")
        slot.swap(ServingModel.load(variant, DIGEST), keep_previous=False)
        pets = []
        watchdog = Watchdog({"main": slot, "empty": Slot("empty")}, dead=dead,
                            alive=lambda: pets.append(1))  # fmt: skip
        try:
            await test(watchdog, slot, pets)
        finally:
            await slot.close()

    asyncio.run(run())


async def settle(watchdog):
    await asyncio.wait(list(watchdog._canaries.values()), timeout=SECONDS)


def test_a_canary_that_comes_through_is_life(variant):
    async def test(watchdog, slot, pets):
        watchdog.look(**WELL)
        assert list(watchdog._canaries) == ["main"]
        await settle(watchdog)
        assert watchdog.conclude() == []
        assert pets == [1]
        assert slot.totals.answered == 0

    watched(variant, test)


def test_a_model_that_hangs_is_none_until_it_goes_on(variant, monkeypatch):
    async def test(watchdog, slot, pets):
        go_on, whole = threading.Event(), slot.active.run
        monkeypatch.setattr(
            slot.active, "run", lambda feeds: (go_on.wait(SECONDS), whole(feeds))[1]
        )
        for _ in range(3):
            watchdog.look(**WELL)
            await asyncio.sleep(0)
            assert watchdog.conclude() == ["slot main does not answer"]
        assert not pets
        go_on.set()
        await settle(watchdog)
        assert watchdog.conclude() == []
        assert pets == [1]

    watched(variant, test)


def test_a_model_that_fails_is_none(variant, monkeypatch):
    async def test(watchdog, slot, pets):
        def fails(_feeds):
            raise ModelRunError("broken")

        monkeypatch.setattr(slot.active, "run", fails)
        watchdog.look(**WELL)
        await settle(watchdog)
        assert watchdog.conclude() == ["slot main fails: broken"]
        assert not pets

    watched(variant, test)


def test_a_slot_that_answers_others_need_not_be_asked(variant):
    async def test(watchdog, slot, pets):
        watchdog.conclude()
        await predict(slot, InstancesCodec(), Payload(b'{"instances": [[1.0, 2.0, 3.0, 4.0]]}'))
        watchdog.look(**WELL)
        assert not watchdog._canaries
        assert watchdog.conclude() == []
        assert len(pets) == 2

    watched(variant, test)


def test_a_late_loop_and_a_dead_thread_are_no_life(variant):
    async def test(watchdog, _slot, pets):
        watchdog.look(lag=2.0, most=1.0)
        await settle(watchdog)
        assert watchdog.conclude() == [
            "the loop is 2.0 s late",
            "the thread of slot side has ended",
        ]
        assert not pets

    watched(variant, test, dead=lambda: ["side"])


def test_a_model_that_is_taken_away_meanwhile_is_no_failure(variant):
    async def test(watchdog, slot, pets):
        watchdog.look(**WELL)
        slot.clear()
        await settle(watchdog)
        assert watchdog.conclude() == []
        assert pets == [1]

    watched(variant, test)


def test_it_looks_four_times_in_a_period_and_sees_a_loop_that_hangs(variant, caplog):
    async def test(watchdog, _slot, pets):
        running = asyncio.create_task(watchdog.run(0.4))
        async with asyncio.timeout(SECONDS):
            while len(pets) < 5:  # noqa: ASYNC110 - no event says it
                await asyncio.sleep(0.01)
            time.sleep(0.3)  # noqa: ASYNC251 - what a loop that hangs does
            while "loop" not in caplog.text:  # noqa: ASYNC110 - no event says it
                await asyncio.sleep(0.01)
        running.cancel()
        assert [record.event for record in caplog.records][:1] == ["watchdog_unwell"]

    watched(variant, test)

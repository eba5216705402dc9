"""Which documents a device obeys, and which of the others it looks at again."""

from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest
from bundle_samples import fixed_key
from slot_world import TestCalls
from world_device import FLEET, OWNER, keyring_file

from edgepack_contract.clock import BUILT_MS
from edgepack_contract.instructions import Identity, sign_desired
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Desired
from edgepack_runtime.orders import Orders
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.trust import DAY_MS, Trust

NEXT, STRANGER = fixed_key(41), fixed_key(42)
NEXT_PEM = NEXT.public.pem.decode()
NOW = BUILT_MS + 100 * DAY_MS
WHO = Identity("default", "pi-1", "e" * 64)


class Desk:
    """Orders of a device whose disk, clock and reports a test can look at."""

    def __init__(self, folder):
        (folder / "state").mkdir()
        (folder / "keyring.json").write_bytes(keyring_file(1))
        self.system_ms, self.calls = NOW, TestCalls()
        self.trust = Trust(
            DurableFS(self.calls), home=folder / "state", keyring_path=folder / "keyring.json",
            owner=OWNER.public.fingerprint, system_ms=lambda: self.system_ms,
        )  # fmt: skip
        self.obeyed, self.said, self.keyrings, self.tasks = [], [], [], []
        self.orders = Orders(
            self.trust, WHO, obey=lambda desired: self.obeyed.append(desired.generation),
            keyring_changed=lambda before: self.keyrings.append(before.version),
            refusal_changed=lambda: self.said.append(self.orders.refused),
            spawn=lambda work: self.tasks.append(asyncio.ensure_future(work)),
        )  # fmt: skip

    async def settle(self):
        while self.tasks:
            await self.tasks.pop()

    async def keyring(self, raw):
        self.orders.take_keyring(raw)
        await self.settle()

    async def desired(self, generation=1, key=FLEET, **changes):
        made = Desired(
            tenant="default", device="pi-1", enrolment=WHO.enrolment, epoch=1,
            generation=generation, issued=NOW, expires=NOW + DAY_MS, slots={},
        )  # fmt: skip
        self.orders.take_desired(sign_desired(msgspec.structs.replace(made, **changes), key))
        await self.settle()


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def run(work):
    asyncio.run(work)


def test_a_document_that_is_obeyed_dates_the_time(desk):
    async def go():
        await desk.desired()
        assert (desk.obeyed, desk.orders.refused, desk.trust.clock.floor_ms) == ([1], None, NOW)

    run(go())


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"key": STRANGER}, "unknown-key"), ({"expires": NOW - 1}, "expired"),
     ({"epoch": 7}, "wrong-epoch"), ({"device": "pi-2"}, "wrong-device"),
     ({"issued": NOW + DAY_MS}, "future-dated")],
)  # fmt: skip
def test_what_is_refused_dates_nothing_is_counted_and_said_once(desk, changes, code):
    async def go():
        floor = desk.trust.clock.floor_ms
        for _ in range(5):
            await desk.desired(**changes)
        assert desk.orders.refused.startswith(f"{code}: ")
        assert (len(desk.said), desk.orders.counts, desk.obeyed) == (1, {code: 5}, [])
        assert desk.trust.clock.floor_ms == floor
        await desk.desired()
        assert desk.orders.refused is None

    run(go())


def test_a_document_before_its_keyring_is_obeyed_after_it(desk):
    async def go():
        await desk.desired(key=NEXT, epoch=2)
        await desk.desired(generation=5)
        assert desk.obeyed == [5]
        await desk.desired(key=NEXT, epoch=2)
        await desk.keyring(keyring_file(2, epoch=2, fleets=[NEXT_PEM]))
        assert (desk.obeyed, desk.orders.refused) == ([5, 1], None)
        assert desk.orders.obeyed.epoch == 2

    run(go())


def test_a_forgery_does_not_push_out_what_waits_for_another_reason(desk):
    async def go():
        desk.system_ms = NOW + 1000 * DAY_MS
        await desk.desired()
        await desk.desired(key=STRANGER)
        desk.system_ms = NOW
        desk.orders.look_again()
        assert desk.obeyed == [1]

    run(go())


def test_looking_again_while_nothing_has_changed_says_nothing(desk):
    async def go():
        await desk.desired(expires=NOW - 1)
        desk.system_ms += 1000
        desk.orders.look_again()
        assert (len(desk.said), desk.orders.counts["expired"]) == (1, 1)

    run(go())


def test_what_is_too_large_is_not_kept(desk):
    async def go():
        desk.orders.take_desired(b"x" * (LIMITS.desired_bytes + 1))
        assert desk.orders.refused.startswith("too-large: ")
        assert not desk.orders._waiting

    run(go())


def test_a_poisoned_date_is_undone_by_a_new_epoch(desk):
    """A thief with the fleet's key, and a device without a clock."""

    async def go():
        desk.system_ms = 0
        await desk.desired(issued=NOW + 20_000 * DAY_MS, expires=NOW + 30_000 * DAY_MS)
        assert desk.trust.clock.floor_ms == NOW + 20_000 * DAY_MS
        await desk.desired(key=NEXT, epoch=2)
        await desk.keyring(keyring_file(2, epoch=2, fleets=[NEXT_PEM], issued=NOW))
        assert (desk.obeyed, desk.orders.refused) == ([1, 1], None)
        assert desk.trust.clock.floor_ms == NOW

    run(go())


def test_a_keyring_is_said_once_and_only_when_it_is_new(desk):
    async def go():
        await desk.keyring(keyring_file(2))
        await desk.keyring(keyring_file(2))
        assert (desk.keyrings, desk.orders.refused) == ([1], None)
        await desk.keyring(b"junk")
        assert desk.orders.refused.startswith("malformed-document: keyring ")
        await desk.desired(expires=NOW - 1)
        assert desk.orders.refused.startswith("expired: ")
        await desk.desired()
        assert desk.orders.refused.startswith("malformed-document: keyring ")
        await desk.keyring(keyring_file(2))
        assert desk.orders.refused is None

    run(go())


def test_a_full_disk_is_said_and_the_keyring_taken_when_it_comes_again(desk):
    async def go():
        desk.calls.full = True
        await desk.keyring(keyring_file(2))
        assert desk.orders.refused.startswith("disk-full: ")
        assert desk.trust.keyring.version == 1
        desk.calls.full = False
        await desk.keyring(keyring_file(2))
        assert (desk.trust.keyring.version, desk.orders.refused) == (2, None)

    run(go())


def test_of_a_flood_of_keyrings_the_last_is_looked_at(desk, monkeypatch):
    async def go():
        gate, looked = threading.Event(), []
        real = desk.trust.advance

        def advance(raw):
            gate.wait(20)
            looked.append(raw)
            return real(raw)

        monkeypatch.setattr(desk.trust, "advance", advance)
        for number in range(200):
            desk.orders.take_keyring(b"junk %d" % number)
        desk.orders.take_keyring(keyring_file(2))
        gate.set()
        await desk.settle()
        assert desk.trust.keyring.version == 2
        assert len(looked) <= 2

    run(go())

"""Certificates that are renewed: when, by whom, and what becomes of every answer."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
from bundle_samples import fixed_key
from enrol_server import (
    AUTHORITY,
    DAY_MS,
    KEYRING,
    OWNER,
    RENEW,
    STRANGER,
    Reply,
    enrol_server,
    keyring,
    make_authority,
    now_ms,
    refusal,
)
from hypothesis import given
from hypothesis import strategies as st
from slot_world import TestCalls
from world_waiting import SECONDS

from edgepack_contract.certificates import read_certificate
from edgepack_contract.clock import TrustedClock
from edgepack_contract.errors import DocumentError
from edgepack_contract.instructions import Identity
from edgepack_contract.keyring import advance_keyring, open_keyring
from edgepack_contract.keys import write_private_key
from edgepack_contract.tls import client_context
from edgepack_runtime.membership import fleet_client
from edgepack_runtime.membership.fleet_client import Patience
from edgepack_runtime.membership.renewal import (
    LOOK_AGAIN_SECONDS,
    Attempts,
    Life,
    RenewalParts,
    Renewer,
    pause_seconds,
)
from edgepack_runtime.storage.fsio import DurableFS

KEY = fixed_key(50)
LIFE = Life(0, 90 * DAY_MS)
DAY = 86_400.0


class Device:
    """A renewer with the parts of a daemon that it needs, and what it made them do."""

    def __init__(self, home, server, *, system_ms=now_ms):
        self.home, self.server = home, server
        self.calls = TestCalls()
        self.keyring = open_keyring(server.keyring, owner_fingerprint=OWNER.public.fingerprint)
        self.clock = TrustedClock(system_ms, owner_ms=self.keyring.issued)
        self.did = []
        self.renewed = asyncio.Event()
        self.failed = asyncio.Event()
        server.members["pi-1"] = KEY.public
        write_private_key(home / "device.key", KEY)
        self.renewer = Renewer(
            Identity("default", "pi-1", KEY.public.fingerprint),
            server.url,
            key=home / "device.key",
            certificate=home / "device.pem",
            parts=RenewalParts(
                tls=lambda: client_context(self.keyring.authorities, clock=self.clock),
                take_keyring=self.take_keyring,
                reconnect=lambda: self.did.append("reconnect"),
                refuse=self.refuse,
                settle=self.settle,
            ),
            fs=DurableFS(self.calls),
            clock=self.clock,
            rng=random.Random(1),
        )

    def has(self, *, ago=0, days=90, key=KEY.public, name="pi-1"):
        """Give it a certificate that began and ends so many days from now."""
        begin = now_ms() - ago * DAY_MS
        issued = AUTHORITY.issue_client(key, name=name, now_ms=begin, days=days)
        (self.home / "device.pem").write_bytes(issued.pem)
        return issued.pem

    @property
    def pem(self):
        return (self.home / "device.pem").read_bytes()

    def days_left(self):
        return (
            read_certificate(self.pem).not_valid_after_utc.timestamp() * 1000 - now_ms()
        ) / DAY_MS

    async def take_keyring(self, raw):
        before = self.keyring
        with suppress(DocumentError):
            self.keyring = advance_keyring(self.keyring, raw)
        return self.keyring is not before

    def refuse(self, code, words):
        self.did.append(f"{code}: {words}")
        self.failed.set()

    def settle(self):
        self.did.append("settle")
        self.renewed.set()

    async def runs_until(self, event):
        task = asyncio.create_task(self.renewer.run())
        try:
            async with asyncio.timeout(SECONDS):
                await event.wait()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def runs(self):
        """Run until it has renewed; fails when that does not come."""
        asyncio.run(self.runs_until(self.renewed))

    def tries(self):
        """One attempt."""
        asyncio.run(self.renewer._try())


@pytest.fixture
def server(tmp_path):
    with enrol_server(tmp_path / "tls") as server:
        yield server


@pytest.fixture
def device(tmp_path, server):
    (tmp_path / "pi-1").mkdir()
    return Device(tmp_path / "pi-1", server)


def test_it_is_renewed_at_two_thirds_of_its_life(device):
    device.has(ago=70)
    device.runs()
    assert device.days_left() > 89
    assert device.server.paths() == [RENEW]
    # what is connected may stay so: the old certificate is good for weeks
    assert device.did == ["settle"]


def test_before_that_it_is_left_alone(device):
    before = device.has(ago=50)
    assert device.renewer._pause() == LOOK_AGAIN_SECONDS
    assert not device.renewer._is_due()
    assert device.pem == before


def test_one_that_ended_is_renewed_at_once_and_shown_to_the_broker(device):
    device.has(ago=400)
    device.runs()
    assert device.days_left() > 89
    assert device.did == ["settle", "reconnect"]


@pytest.mark.parametrize("damage", ["gone", "junk", "another key"])
def test_one_that_cannot_be_used_is_renewed_at_once(device, damage):
    if damage == "junk":
        (device.home / "device.pem").write_bytes(b"\0" * 100)
    if damage == "another key":
        device.has(key=STRANGER.public)
    device.runs()
    assert device.days_left() > 89
    assert device.did == ["settle", "reconnect"]


def test_a_clock_in_1970_renews_too(tmp_path, server):
    (tmp_path / "pi-1").mkdir()
    device = Device(tmp_path / "pi-1", server, system_ms=lambda: 0)
    device.has(ago=400)
    device.runs()
    assert device.days_left() > 89


def test_the_keyring_comes_along(device):
    device.has(ago=400)
    device.server.keyring = keyring(version=7)
    device.runs()
    assert device.keyring.version == 7


def test_a_keyring_that_is_refused_does_not_cost_the_certificate(device):
    device.has(ago=400)
    device.server.keyring = keyring(STRANGER, version=9)
    device.runs()
    assert device.keyring.version == 2
    assert device.days_left() > 89


def test_a_fleet_with_a_new_authority_is_found_by_its_keyring(tmp_path):
    """Off for a year, in which the fleet got another authority: the owner vouches for it."""
    new = make_authority(51)
    (tmp_path / "pi-1").mkdir()
    with enrol_server(tmp_path / "tls", authority=new) as server:
        device = Device(tmp_path / "pi-1", server)
        device.has(ago=400)
        server.keyring = keyring(version=3, authorities=[new.pem.decode()])
        device.runs()
    assert device.days_left() > 89
    assert server.paths() == [KEYRING, RENEW]


def test_who_is_in_between_is_sent_nothing(tmp_path, caplog):
    (tmp_path / "pi-1").mkdir()
    with enrol_server(tmp_path / "tls", authority=make_authority(51)) as server:
        device = Device(tmp_path / "pi-1", server)
        before = device.has(ago=400)
        device.tries()
    assert server.paths() == [KEYRING]
    assert device.pem == before
    assert "somebody is in between" in caplog.text


def test_a_revoked_device_is_told_so_and_goes_on(device, caplog):
    before = device.has(ago=400)
    device.server.twist[RENEW] = lambda _: refusal(403, "revoked", "pi-1 was revoked")
    asyncio.run(device.runs_until(device.failed))
    (said,) = device.did
    assert said.startswith("revoked: ")
    assert "pi-1 was revoked" in said
    assert "asked again in a day" in caplog.text
    assert 0.9 * DAY <= device.renewer._pause() <= 1.1 * DAY
    assert device.pem == before
    device.server.twist.clear()
    device.tries()
    assert device.did[1:] == ["settle", "reconnect"]


@pytest.mark.parametrize("status", [404, 422, 429, 500, 503])
def test_any_other_no_is_asked_again_before_long(device, status):
    device.has(ago=400)
    device.server.twist[RENEW] = lambda _: refusal(status, "no", "not now")
    device.tries()
    assert device.did == []
    assert 30.0 <= device.renewer._pause() <= 90.0


def altered(**changes):
    return lambda reply: reply.altered(**changes)


def with_certificate(key=KEY.public, name="pi-1", ago=0, days=90):
    begin = now_ms() - ago * DAY_MS
    pem = AUTHORITY.issue_client(key, name=name, now_ms=begin, days=days).pem.decode()
    return altered(certificate=pem)


HOSTILE = {
    "another nonce": (altered(nonce="0" * 32), "wrong-nonce"),
    "another key": (with_certificate(key=STRANGER.public), "wrong-certificate"),
    "another name": (with_certificate(name="pi-2"), "wrong-certificate"),
    "one that ended": (with_certificate(ago=100), "expired-certificate"),
    "one that ends before": (with_certificate(days=5), "stale-certificate"),
    "junk": (altered(certificate="junk"), "bad-certificate"),
    "no JSON": (lambda reply: replace(reply, body=b"<html>"), "malformed-document"),
    "too much": (lambda reply: replace(reply, body=b" " * 2**21), "too-large"),
    "a redirect": (lambda _: Reply(302, b"", {"Location": "https://x/"}), "bad-redirect"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_changes_nothing(device, caplog, name):
    before = device.has(ago=70)
    device.server.twist[RENEW], code = HOSTILE[name]
    device.tries()
    assert device.pem == before
    assert device.did == []
    assert [record.code for record in caplog.records] == [code]


def test_the_same_certificate_again_is_no_failure(device):
    before = device.has(ago=10)
    device.server.twist[RENEW] = altered(certificate=before.decode())
    device.tries()
    assert device.pem == before
    assert "settle" in device.did


def test_a_full_disk_costs_nothing_but_time(device, caplog):
    before = device.has(ago=70)
    device.calls.full = True
    device.tries()
    assert device.pem == before
    assert "certificate not renewed: no room" in caplog.text
    device.calls.full = False
    device.tries()
    assert device.days_left() > 89


def test_a_defect_does_not_end_the_daemon(device, caplog):
    device.has(ago=70)
    device.renewer._parts = replace(device.renewer._parts, settle=lambda: 1 / 0)
    device.tries()
    assert "ZeroDivisionError" in caplog.text


def test_without_its_key_it_says_so(device, caplog):
    device.has(ago=70)
    (device.home / "device.key").unlink()
    device.tries()
    assert "cannot read key" in caplog.text


def test_a_broker_that_refuses_makes_it_ask_once_an_hour(device):
    device.has(ago=1)

    async def refused_by_the_broker():
        device.renewer.ask()
        await device.runs_until(device.renewed)
        device.renewer.ask()
        return device.renewer._asked.is_set()

    assert asyncio.run(refused_by_the_broker()) is False
    assert device.server.paths() == [RENEW]
    assert device.did == ["settle", "reconnect"]


def test_ending_does_not_wait_for_the_fleet(device, monkeypatch):
    device.has(ago=400)
    endless = Patience(60 * SECONDS, 60 * SECONDS)
    monkeypatch.setattr(fleet_client, "Patience", lambda: endless)

    async def begin_and_end():
        loop, seen = asyncio.get_running_loop(), asyncio.Event()

        def hang(reply):
            loop.call_soon_threadsafe(seen.set)
            return replace(reply, length=10**5, hang=True)

        device.server.twist[RENEW] = hang
        await device.runs_until(seen)

    pool = ThreadPoolExecutor()
    ended = pool.submit(asyncio.run, begin_and_end())
    pool.shutdown(wait=False)
    ended.result(SECONDS)


def test_what_is_sent_is_a_signed_wish_and_nothing_secret(device):
    device.has(ago=400)
    device.runs()
    ((_, sent),) = device.server.seen
    assert set(sent) == {"payloadType", "payload", "signatures"}
    assert "PRIVATE" not in json.dumps(sent)


@pytest.mark.parametrize(
    ("now_days", "attempts", "least", "most"),
    [
        (0, Attempts(), 3600.0, 3600.0),
        (59.99, Attempts(), 863.0, 865.0),
        (60, Attempts(), 0.0, 0.0),
        (91, Attempts(), 0.0, 0.0),
        (70, Attempts(failures=1), 30.0, 90.0),
        (70, Attempts(failures=4), 240.0, 720.0),
        (70, Attempts(failures=99), 3 * 3600.0, 9 * 3600.0),
        (91, Attempts(failures=99), 1800.0, 5400.0),
        (70, Attempts(3, refused=True), 0.9 * DAY, 1.1 * DAY),
        # a clock that is ahead finds the new certificate due as well
        (70, Attempts(succeeded=True), DAY, DAY),
        (89.99, Attempts(succeeded=True), 86.0, 87.0),
        (50, Attempts(succeeded=True), 3600.0, 3600.0),
    ],
)
def test_how_long_it_waits(now_days, attempts, least, most):
    now = int(now_days * DAY_MS)
    pause = pause_seconds(LIFE, attempts, now_ms=now, spread=0.0, rng=random.Random(1))
    assert least <= pause <= most


def test_without_a_certificate_it_does_not_wait():
    rng = random.Random(1)
    assert pause_seconds(None, Attempts(), now_ms=0, spread=0.5, rng=rng) == 0.0


@given(st.integers(0, 2**42), st.integers(1, 2**40), st.floats(0, 1, exclude_max=True))
def test_a_fleet_is_spread_but_never_beyond_the_end(issued, length, spread):
    life = Life(issued, issued + length)
    assert Life(issued, issued + length).due_ms(0.0) <= life.due_ms(spread) <= life.expires_ms


@given(
    st.none() | st.builds(Life, st.integers(0, 2**42), st.integers(0, 2**42)),
    st.builds(Attempts, st.integers(0, 10**6), st.booleans(), st.booleans()),
    st.integers(0, 2**42),
    st.integers(0, 99),
)
def test_no_wait_is_negative_or_without_end(life, attempts, now, seed):
    rng = random.Random(seed)
    pause = pause_seconds(life, attempts, now_ms=now, spread=rng.random(), rng=rng)
    assert 0.0 <= pause <= 1.1 * DAY
    if attempts.failures or attempts.refused:
        assert pause >= 30.0


@pytest.fixture(autouse=True)
def _logged(caplog):
    caplog.set_level(logging.WARNING)

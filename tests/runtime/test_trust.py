"""What a device believes: newer keyrings only, times that only grow, and both over a restart."""

from __future__ import annotations

import logging

import msgspec
import pytest
from bundle_samples import fixed_key
from slot_world import TestCalls

from edgepack_contract.clock import BUILT_MS
from edgepack_contract.errors import ConfigError, DocumentError, MalformedDocumentError
from edgepack_contract.keyring import (
    make_keyring,
    open_keyring,
    owner_fingerprint,
    sign_keyring,
    succeed_keyring,
)
from edgepack_runtime.errors import DiskFullError
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.trust import DAY_MS, HOUR_MS, Trust

OWNER, NEXT, STRANGER, FLEET = (fixed_key(number) for number in (30, 32, 33, 31))
PINNED = OWNER.public.fingerprint
NOW = BUILT_MS + 100 * DAY_MS
FIRST = make_keyring(
    OWNER, version=3, epoch=1, publishers=[], fleets=[FLEET.public], issued=BUILT_MS + DAY_MS
)
RING = open_keyring(FIRST, owner_fingerprint=PINNED)


def line(*signers, **changes) -> bytes:
    return sign_keyring(msgspec.structs.replace(RING, **changes), signers or (OWNER,))


NEWER = line(version=4, issued=BUILT_MS + 2 * DAY_MS)


class Place:
    """One device's files; every opening is a new process."""

    def __init__(self, folder) -> None:
        self.home, self.keyring = folder / "state", folder / "keyring.json"
        self.home.mkdir()
        self.keyring.write_bytes(FIRST)
        self.calls = TestCalls()
        self.system_ms = NOW

    def open(self, owner: str = PINNED) -> Trust:
        return Trust(
            DurableFS(self.calls), home=self.home, keyring_path=self.keyring, owner=owner,
            system_ms=lambda: self.system_ms,
        )  # fmt: skip

    @property
    def record(self) -> dict:
        return msgspec.json.decode((self.home / "trust.json").read_bytes())


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_at_first_there_is_the_keyring_and_its_date(place):
    trust = place.open()
    assert trust.keyring == RING
    assert trust.clock.floor_ms == RING.issued
    assert place.record == {
        "schema": "edgepack-trust/1", "owner": PINNED, "version": 3, "epoch": 1,
        "floor_ms": RING.issued,
    }  # fmt: skip
    assert (place.home / "trust.json").stat().st_mode & 0o777 == 0o600


def test_a_newer_keyring_is_in_force_at_once_and_after_a_restart(place):
    trust = place.open()
    assert trust.advance(NEWER)
    for one in (trust, place.open()):
        assert (one.keyring.version, one.clock.floor_ms) == (4, BUILT_MS + 2 * DAY_MS)
    assert not trust.advance(NEWER)
    assert place.keyring.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "malformed-document"),
        (b"junk", "malformed-document"),
        (b"[" * 1000, "too-deep"),
        (b"x" * 300_000, "too-large"),
        (line(version=2), "old-keyring"),
        (line(STRANGER, version=4), "unknown-key"),
        (line(STRANGER, version=4, owners=[STRANGER.public.pem.decode()]), "unknown-key"),
        (line(version=3, issued=5), "keyring-equivocation"),
        (line(version=4, epoch=1, demo=True), "demo-keyring"),
        (line(version=4)[:-30] + b"}", "malformed-document"),
    ],
    ids=["empty", "text", "deep", "large", "older", "strangers", "strangers own", "another of this",
         "demo", "cut"],
)  # fmt: skip
def test_what_is_refused_changes_nothing(place, raw, code):
    trust = place.open()
    record = place.record
    with pytest.raises(DocumentError) as caught:
        trust.advance(raw)
    assert caught.value.code == code
    assert (trust.keyring, place.keyring.read_bytes(), place.record) == (RING, FIRST, record)


def test_an_epoch_never_goes_back(place):
    place.keyring.write_bytes(line(version=3, epoch=2))
    with pytest.raises(DocumentError) as caught:
        place.open().advance(line(version=4, epoch=1))
    assert caught.value.code == "old-epoch"


def test_a_new_epoch_forgets_what_a_fleet_key_dated(place):
    trust = place.open()
    trust.clock.learn(NOW + 10_000 * DAY_MS)
    trust.keep()
    assert trust.advance(line(version=4, epoch=2, issued=NOW))
    for one in (trust, place.open()):
        assert one.clock.floor_ms == NOW


def test_a_newer_keyring_put_in_place_by_hand_forgets_it_too(place):
    trust = place.open()
    trust.clock.learn(NOW + 10_000 * DAY_MS)
    trust.keep()
    place.keyring.write_bytes(line(version=4, epoch=2, issued=NOW))
    assert place.open().clock.floor_ms == NOW


def test_owners_that_changed_are_found_from_the_pinned_ones_at_every_start(place):
    """Whoever sends the newest keyring may leave out the way that leads to it."""
    change = line(OWNER, NEXT, version=4, owners=[NEXT.public.pem.decode()])
    after = line(NEXT, version=5, owners=[NEXT.public.pem.decode()])
    trust = place.open()
    assert trust.advance(succeed_keyring(FIRST, change))
    assert trust.advance(after)
    assert place.open().keyring.version == 5
    with pytest.raises(DocumentError):
        open_keyring(after, owner_fingerprint=PINNED)


def test_several_steps_at_once(place):
    change = line(OWNER, NEXT, version=4, owners=[NEXT.public.pem.decode()])
    after = line(NEXT, version=5, owners=[NEXT.public.pem.decode()])
    assert place.open().advance(b"\n".join([FIRST, change, after]))
    assert place.open().keyring.version == 5


def test_an_older_file_put_in_place_is_refused_with_the_way_out(place):
    place.open().advance(NEWER)
    place.keyring.write_bytes(FIRST)
    with pytest.raises(MalformedDocumentError, match="Put the newest one in its place") as caught:
        place.open()
    assert caught.value.code == "old-keyring"
    assert str(place.keyring) in str(caught.value)
    assert "enrol this device again" in str(caught.value)


def test_another_owners_keyring_is_refused_and_a_missing_one_named(place):
    with pytest.raises(DocumentError) as caught:
        place.open(owner=STRANGER.public.fingerprint)
    assert caught.value.code == "unknown-key"
    place.keyring.unlink()
    with pytest.raises(ConfigError, match=r"keyring\.json"):
        place.open()


def test_a_device_with_other_owners_owes_the_former_ones_nothing(place):
    trust = place.open()
    trust.clock.learn(NOW)
    trust.advance(NEWER)
    ring = make_keyring(STRANGER, version=1, epoch=1, publishers=[], fleets=[])
    place.keyring.write_bytes(ring)
    owner = owner_fingerprint([STRANGER.public], 1)
    assert place.open(owner=owner).clock.floor_ms == BUILT_MS
    assert place.open(owner=owner).keyring.version == 1


@pytest.mark.parametrize(
    "damage",
    [b"", b"junk", b"{}", b"\0" * 100, b"x" * 10_000,
     b'{"schema":"edgepack-trust/1","owner":"o","version":-1,"epoch":1,"floor_ms":1}',
     b'{"schema":"edgepack-trust/1","owner":"o","version":1,"epoch":1,"floor_ms":1e300}'],
    ids=["empty", "text", "object", "zeros", "large", "negative", "enormous"],
)  # fmt: skip
def test_a_damaged_record_is_said_and_begun_anew(place, damage, caplog):
    place.open().clock.learn(NOW)
    (place.home / "trust.json").write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        trust = place.open()
    assert trust.clock.floor_ms == RING.issued
    assert "cannot be used" in caplog.text
    assert place.record["version"] == 3


@pytest.mark.parametrize(
    ("by_ms", "written"), [(0, False), (HOUR_MS - 1, False), (HOUR_MS, True), (3 * DAY_MS, True)]
)
def test_the_floor_is_written_hourly(place, by_ms, written):
    trust = place.open()
    trust.clock.learn(RING.issued + by_ms)
    trust.keep()
    assert (place.record["floor_ms"] == RING.issued + by_ms) == (written or by_ms == 0)
    assert place.open().clock.floor_ms == (RING.issued + by_ms if written else RING.issued)


def test_the_systems_clock_is_never_remembered(place):
    for system_ms in (4_070_908_800_000, 0, NOW):
        place.system_ms = system_ms
        trust = place.open()
        trust.keep()
        assert trust.clock.now_ms() == max(system_ms, RING.issued)
        assert trust.clock.is_behind == (system_ms == 0)
        assert place.record["floor_ms"] == RING.issued


def test_a_clock_that_goes_back_between_runs_is_noticed(place):
    trust = place.open()
    trust.clock.learn(NOW)
    trust.keep()
    place.system_ms = NOW - DAY_MS
    trust = place.open()
    assert (trust.clock.is_behind, trust.clock.now_ms()) == (True, NOW)


def test_a_full_disk_keeps_the_keyring_that_is_there(place):
    trust = place.open()
    place.calls.full = True
    with pytest.raises(DiskFullError):
        trust.advance(NEWER)
    assert (trust.keyring, place.keyring.read_bytes()) == (RING, FIRST)
    trust.clock.learn(NOW)
    trust.keep()  # said, not raised
    place.calls.full = False
    assert trust.advance(NEWER)
    assert place.record["floor_ms"] == NOW


def test_a_keyring_is_on_the_disk_before_it_is_in_force(place):
    """Cut off after the keyring and before the record, the next start goes on from the keyring."""
    trust = place.open()
    record = (place.home / "trust.json").read_bytes()
    trust.advance(NEWER)
    (place.home / "trust.json").write_bytes(record)
    assert place.open().keyring.version == 4
    assert place.record["version"] == 4

"""Devices and groups: what is accepted, what is refused, who is in."""

from __future__ import annotations

import pytest
from fleet_devices import HARDWARE, NOW, ONE, FakeDevice

from edgepack_fleet.db.database import Database
from edgepack_fleet.devices import (
    add_device,
    decommission_device,
    get_device,
    label_device,
    list_devices,
)
from edgepack_fleet.errors import ConflictError, InvalidRequestError, NotFoundError
from edgepack_fleet.groups import create_group, get_group, group_members, list_groups
from edgepack_fleet.ingest import Ingest


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    yield database
    database.close()


@pytest.fixture
def session(database):
    with database.write() as session:
        for name, site in [("pi-1", "a"), ("pi-2", "a"), ("pi-3", "b")]:
            FakeDevice(name).enrol(session, {"site": site})
        yield session


def values(**changes):
    device = FakeDevice("pi-9")
    return {
        "tenant": "default",
        "device": "pi-9",
        "public_key_pem": device.key.public.pem.decode(),
        "mac_key_hex": device.mac_key.hex(),
        "labels": {},
        "now_ms": NOW,
        **changes,
    }


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"device": "Pi 9"}, "device id"),
        ({"device": "../etc"}, "device id"),
        ({"mac_key_hex": "ab"}, "mac_key"),
        ({"mac_key_hex": "AB" * 32}, "mac_key"),
        ({"public_key_pem": "no key"}, "public_key"),
        ({"public_key_pem": "\ud800"}, "public_key"),
        ({"labels": {"Site": "a"}}, "label 'Site'"),
        ({"labels": {"site": "a\nb"}}, "label 'site'"),
        ({"labels": {f"l{n}": "" for n in range(65)}}, "at most 64 labels"),
    ],
)
def test_a_malformed_device_is_refused_by_name(session, change, names):
    with pytest.raises(InvalidRequestError, match=names):
        add_device(session, **values(**change))


def test_the_same_device_again_is_the_same_device(session):
    same = values()
    first = add_device(session, **same)
    assert add_device(session, **{**same, "now_ms": NOW + 9}) is first
    with pytest.raises(ConflictError, match="other keys"):
        add_device(session, **values(mac_key_hex="ab" * 32, public_key_pem=same["public_key_pem"]))
    decommission_device(session, "pi-9", now_ms=NOW)
    with pytest.raises(ConflictError, match="decommissioned"):
        add_device(session, **same)


def test_unknown_names_are_refused(session):
    for ask in (
        lambda: get_device(session, "pi-0"),
        lambda: label_device(session, "pi-0", {}),
        lambda: get_group(session, "none"),
        lambda: create_group(session, name="g", members=["pi-0"], now_ms=NOW),
    ):
        with pytest.raises(NotFoundError):
            ask()


def test_a_group_follows_labels(session):
    group = create_group(session, name="site-a", labels={"site": "a"}, now_ms=NOW)
    assert [device.id for device in group_members(session, group)] == ["pi-1", "pi-2"]
    label_device(session, "pi-3", {"site": "a"})
    label_device(session, "pi-1", {"site": "b"})
    assert [device.id for device in group_members(session, group)] == ["pi-2", "pi-3"]
    decommission_device(session, "pi-2", now_ms=NOW)
    assert [device.id for device in group_members(session, group)] == ["pi-3"]


def test_empty_labels_select_everybody(session):
    group = create_group(session, name="all", labels={}, now_ms=NOW)
    assert len(group_members(session, group)) == 3


def test_a_group_lists_devices_once(session):
    group = create_group(session, name="two", members=["pi-3", "pi-1", "pi-3"], now_ms=NOW)
    assert [device.id for device in group_members(session, group)] == ["pi-1", "pi-3"]
    assert create_group(session, name="two", members=["pi-1", "pi-3"], now_ms=NOW) is group
    with pytest.raises(ConflictError):
        create_group(session, name="two", members=["pi-1"], now_ms=NOW)
    assert [one.name for one in list_groups(session)] == ["two"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "Bad Name", "labels": {}},
        {"name": "g"},
        {"name": "g", "labels": {}, "members": ["pi-1"]},
        {"name": "g", "members": []},
        {"name": "g", "labels": {"A": "b"}},
    ],
)
def test_a_malformed_group_is_refused(session, wrong):
    with pytest.raises(InvalidRequestError):
        create_group(session, now_ms=NOW, **wrong)


def test_a_device_is_seen_as_it_last_said(database):
    device, silent = FakeDevice("pi-1"), FakeDevice("pi-2")
    with database.write() as session:
        device.enrol(session)
        silent.enrol(session)
    ingest = Ingest(database, tenant="default", publish=lambda _: None)
    ingest.commit([device.state(), device.birth(), device.reported(ONE, generation=4)])
    with database.read() as session:
        one, two = list_devices(session, now_ms=NOW + 5, lease_ms=1000)
        (stale,) = list_devices(session, now_ms=NOW + 5000, lease_ms=1000, limit=1)
        (last,) = list_devices(session, now_ms=NOW, lease_ms=1000, after="pi-1")
    assert (one.presence, one.hardware, one.generation_seen) == ("online", HARDWARE, 4)
    assert one.slots["digits"].running == ONE
    assert (two.presence, two.hardware, two.slots) == ("unknown", None, {})
    assert stale.presence == "stale"
    assert last.id == "pi-2"

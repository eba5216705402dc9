"""The files of a membership, with a crash or a power cut at every change of the disk.

Whatever happens, running the same again ends with one whole membership; and while the former one
has not been given up, it is whole.
"""

from __future__ import annotations

import errno
import random
import shutil
import stat
from pathlib import Path

import pytest
from enrol_server import OWNER, TOKEN, keyring
from power_loss import Disk, RecordingCalls, key, materialise, snapshot
from slot_world import Crash, TestCalls

from edgepack_contract.certificates import Authority, certificate_key, read_certificate
from edgepack_contract.enrolment import BrokerAddress, JoinString, Membership
from edgepack_contract.errors import ConfigError, SigningKeyError
from edgepack_contract.keys import PrivateKey, read_private_key, write_private_key
from edgepack_runtime.config import load_config
from edgepack_runtime.errors import DiskFullError, StorageFaultError
from edgepack_runtime.membership.command import membership_words
from edgepack_runtime.membership.folder import EnrolFolder, membership_files
from edgepack_runtime.process import only_one
from edgepack_runtime.slot_runtime import now_ms
from edgepack_runtime.storage.fsio import DurableFS

JOIN = JoinString("https://fleet.example", OWNER.public.fingerprint, TOKEN)
AUTHORITY = Authority.create(PrivateKey.generate(), name="fleet", now_ms=now_ms())
FILES = {"device.key", "device.pem", "device.toml", "keyring.json", "mac.key"}
ANEW = pytest.mark.parametrize("anew", [False, True], ids=["first", "again"])


class Fleet:
    """Gives membership to whoever asks, and remembers every key that did."""

    def __init__(self):
        self.keys = []

    def files(self, key):
        self.keys.append(key.public.fingerprint)
        pem = AUTHORITY.issue_client(key.public, name="pi-1", now_ms=now_ms()).pem.decode()
        broker = BrokerAddress(host="broker.example", port=8883, tls=True)
        member = Membership(
            tenant="default", device="pi-1", mac_key="5a" * 32, keyring=keyring().decode(),
            broker=broker, certificate=pem,
        )  # fmt: skip
        return membership_files(member, JOIN, port=8000)


def enrol(home, fleet, *, calls=None, again=False):
    """What the command does, with the fleet at hand."""
    folder = EnrolFolder(DurableFS(calls or TestCalls()), home)
    with folder.held(again=again):
        if folder.is_ready:
            folder.finish()
        else:
            folder.keep(fleet.files(folder.key()))


def member_words(path):
    config = load_config(path, {})
    certificate = read_certificate(Path(config.identity.certificate).read_bytes())
    key = read_private_key(Path(config.identity.key)).public
    assert certificate_key(certificate).fingerprint == key.fingerprint
    return membership_words(config, certificate)


def check_member(home, fleet):
    """A whole membership of a key that the fleet knows, with no leftovers; returns the key."""
    key = read_private_key(home / "device.key").public.fingerprint
    words = "\n".join(member_words(home / "device.toml"))
    assert key in words
    assert key in fleet.keys
    others = {path.name for path in home.iterdir()} - FILES
    assert all(name.startswith("before-") for name in others), others
    assert not list(home.rglob("*.tmp-*"))
    return key


@pytest.fixture
def former(tmp_path):
    """A folder that is enrolled already, with a state."""
    home = tmp_path / "former"
    enrol(home, Fleet())
    (home / "state").mkdir()
    (home / "state" / "spool.db").write_bytes(b"windows")
    return home


def begin(tmp_path, former, number, *, anew):
    """A folder to enrol in: none, or a copy of one that is enrolled."""
    home = tmp_path / f"home-{number}"
    if anew:
        shutil.copytree(former, home)
    return home


def settle(home, fleet, *, anew):
    """Run the same command again, as somebody would who saw it fail."""
    config = home / "device.toml"
    ended = config.exists() and not (home / "device.toml.new").exists()
    if not ended or (anew and not is_known(home, fleet)):
        enrol(home, fleet, again=anew)
    return check_member(home, fleet)


def is_known(home, fleet):
    return read_private_key(home / "device.key").public.fingerprint in fleet.keys


@ANEW
def test_a_crash_at_every_change_of_the_disk(tmp_path, former, anew):
    was = read_private_key(former / "device.key").public.fingerprint
    number = crashes = 0
    while True:
        number += 1
        home, fleet, calls = begin(tmp_path, former, number, anew=anew), Fleet(), TestCalls()

        def fault(_name, count, at=number):
            if count == at:
                raise Crash

        calls.fault = fault
        try:
            enrol(home, fleet, calls=calls, again=anew)
        except Crash:
            crashes += 1
            check_between(home, fleet, was)
            settle(home, fleet, anew=anew)
            assert len(set(fleet.keys)) == 1
            continue
        break
    assert crashes >= 25
    check_member(home, fleet)
    if anew:
        check_former(home, was)


def check_between(home, fleet, was):
    """After a crash there is the former membership or the new one, or none that begins."""
    config = home / "device.toml"
    if not config.exists():
        return
    if (home / "device.toml.new").exists():
        # the former is being put aside: it is given up
        return
    assert member_words(config)
    key = read_private_key(home / "device.key").public.fingerprint
    assert key in {*fleet.keys, was}


def check_former(home, was):
    (aside,) = home.glob("before-*")
    assert {path.name for path in aside.iterdir()} == FILES | {"state"}
    assert (aside / "state" / "spool.db").read_bytes() == b"windows"
    assert read_private_key(aside / "device.key").public.fingerprint == was


@ANEW
def test_a_power_cut_at_every_change_of_the_disk(tmp_path, former, anew):
    root, fleet, cuts = tmp_path / "recorded", Fleet(), 0
    root.mkdir()
    if anew:
        shutil.copytree(former, root / "pi-1")
    disk, calls = Disk(snapshot(root)), RecordingCalls(root)
    enrol(root / "pi-1", fleet, calls=calls, again=anew)
    rng, seen = random.Random(1), set()
    for op in calls.log:
        disk.apply(op)
        for tree in disk.cuts(rng):
            if key(tree) in seen:
                continue
            seen.add(key(tree))
            cuts += 1
            home = tmp_path / f"cut-{cuts}"
            materialise(tree, home)
            closed(home)
            settle(home / "pi-1", fleet, anew=anew)
            shutil.rmtree(home)
    assert cuts > 30


def closed(home):
    for path in [home, *home.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)


def test_the_key_that_the_fleet_has_seen_is_durable(tmp_path):
    root = tmp_path / "recorded"
    root.mkdir()
    disk, calls = Disk(snapshot(root)), RecordingCalls(root)
    folder = EnrolFolder(DurableFS(calls), root / "pi-1")
    with folder.held(again=False):
        made = folder.key().public.fingerprint
        for op in calls.log:
            disk.apply(op)
        for number, tree in enumerate(disk.cuts(random.Random(1))):
            home = tmp_path / f"cut-{number}"
            materialise(tree, home)
            closed(home)
            after = EnrolFolder(DurableFS(), home / "pi-1")
            assert after.key().public.fingerprint == made


@ANEW
@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, DiskFullError), (errno.EIO, StorageFaultError)]
)
def test_a_disk_that_fails_at_every_change(tmp_path, former, anew, code, error):
    number = 0
    while True:
        number += 1
        home, fleet, calls = begin(tmp_path, former, number, anew=anew), Fleet(), TestCalls()

        def fault(_name, count, at=number):
            if count == at:
                raise OSError(code, "the disk")

        calls.fault = fault
        try:
            enrol(home, fleet, calls=calls, again=anew)
        except error:
            settle(home, fleet, anew=anew)
            continue
        break
    assert number > 20


def test_an_enrolled_folder_is_left_alone(former):
    with pytest.raises(ConfigError, match="--again") as refused:
        enrol(former, Fleet())
    assert refused.value.code == "enrolled"


def test_a_former_membership_goes_on_until_the_fleet_has_given_a_new_one(former):
    folder = EnrolFolder(DurableFS(), former)
    with folder.held(again=True):
        new = folder.key().public.fingerprint
    before = Fleet()
    before.keys = [read_private_key(former / "device.key").public.fingerprint]
    assert new not in before.keys
    member_words(former / "device.toml")
    # and the same key is used when it is tried again
    fleet = Fleet()
    enrol(former, fleet, again=True)
    assert fleet.keys == [new]


def test_a_device_whose_daemon_runs_is_not_enrolled_anew(former):
    with only_one(former / "state"), pytest.raises(ConfigError, match="stop it first"):
        enrol(former, Fleet(), again=True)


def test_a_broken_configuration_is_no_obstacle_to_enrolling_anew(former):
    (former / "device.toml").write_text("not TOML")
    fleet = Fleet()
    enrol(former, fleet, again=True)
    check_member(former, fleet)


def test_two_at_once_are_refused(tmp_path):
    home = tmp_path / "pi-1"
    one, other = (EnrolFolder(DurableFS(), home) for _ in range(2))
    with one.held(again=False), pytest.raises(ConfigError) as refused, other.held(again=False):
        pass
    assert refused.value.code == "in-use"


def test_a_folder_that_others_can_write_is_refused(tmp_path):
    (tmp_path / "pi-1").mkdir()
    (tmp_path / "pi-1").chmod(0o777)
    with pytest.raises(ConfigError, match="chmod 700") as refused:
        enrol(tmp_path / "pi-1", Fleet())
    assert refused.value.code == "bad-folder"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "pi-1").write_text("")
    for home in (tmp_path / "pi-1", tmp_path / "pi-1" / "below"):
        with pytest.raises(ConfigError, match="not a folder"):
            enrol(home, Fleet())


def test_a_key_that_was_put_there_is_used(tmp_path):
    home, fleet, key = tmp_path / "pi-1", Fleet(), PrivateKey.generate()
    home.mkdir(mode=0o700)
    write_private_key(home / "device.key", key)
    enrol(home, fleet)
    assert check_member(home, fleet) == key.public.fingerprint


def test_a_key_that_others_can_read_is_not_used(tmp_path):
    home = tmp_path / "pi-1"
    home.mkdir(mode=0o700)
    write_private_key(home / "device.key", PrivateKey.generate())
    (home / "device.key").chmod(0o644)
    with pytest.raises(SigningKeyError, match="chmod 600"):
        enrol(home, Fleet())


def test_nobody_else_can_read_anything(tmp_path):
    home = tmp_path / "a" / "pi-1"
    enrol(home, Fleet())
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {stat.S_IMODE((home / name).stat().st_mode) for name in FILES} == {0o600}

"""``edgepack keys keyring``: owners on several machines, none of whom has the others' keys."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from edgepack_cli.keys import transitions
from edgepack_contract.keyring import (
    Publisher,
    claimed_keyring,
    keyring_lines,
    make_keyring,
    open_keyring,
    sign_keyring,
)
from edgepack_contract.keys import PrivateKey, read_private_key, read_public_key


@dataclass
class Ceremony:
    """A folder whose three owner keys are elsewhere; two of them must sign."""

    cli: object
    folder: Path
    away: Path
    owner: str

    @property
    def proposal(self):
        return self.folder / "keyring.proposed"

    @property
    def keyring(self):
        return open_keyring(
            (self.folder / "keyring.json").read_bytes(), owner_fingerprint=self.owner
        )

    def sign(self, name, *options, typed="y\n", owner=None):
        return self.cli(
            "keys", "keyring", "sign", self.proposal, "--key", self.away / f"{name}.key",
            "--owner", owner or self.owner, *options, typed=typed,
        )  # fmt: skip

    def finish(self):
        return self.cli("keys", "keyring", "finish", self.folder)


@pytest.fixture
def ceremony(cli, tmp_path):
    folder, away = tmp_path / "keys", tmp_path / "away"
    made = cli("keys", "init", folder, "--no-passphrase", "--owners", 3, "--threshold", 2)
    away.mkdir()
    for path in folder.glob("owner-*.key"):
        shutil.move(path, away)
    return Ceremony(cli, folder, away, made.out.split()[1])


def test_owners_elsewhere_sign_what_one_machine_prepared(ceremony):
    ended = ceremony.cli("keys", "rotate", "fleet", ceremony.folder)
    assert ended.code == 0
    assert ended.out == "proposed keyring version 2\n"
    assert "2 more must sign of the owners until now: owner-1, owner-2, owner-3" in ended.err
    assert "edgepack keys keyring sign" in ended.err
    assert ceremony.keyring.version == 1
    fleet = read_public_key(ceremony.folder / "fleet-2.pub").fingerprint
    first = ceremony.sign("owner-3")
    assert first.code == 0, first.err
    assert f"fleet key {fleet} is added" in first.err
    assert "1 more must sign of the owners until now" in first.err
    too_few = ceremony.finish()
    assert too_few.code == 3
    assert "1 more must sign of the owners until now: owner-1, owner-2" in too_few.err
    assert ceremony.keyring.version == 1
    assert "enough owners have signed" in ceremony.sign("owner-1").err
    assert ceremony.finish().out == "keyring version 2\n"
    assert fleet in ceremony.keyring.fleet_keys()
    assert not ceremony.proposal.exists()


def test_one_owner_alone_does_nothing_however_often_he_signs(ceremony):
    ceremony.cli("keys", "rotate", "fleet", ceremony.folder)
    for _ in range(3):
        assert ceremony.sign("owner-1").code == 0
    assert ceremony.finish().code == 3
    assert ceremony.keyring.version == 1


def test_an_owner_who_says_no_signs_nothing(ceremony):
    ceremony.cli("keys", "rotate", "fleet", ceremony.folder)
    before = ceremony.proposal.read_bytes()
    assert ceremony.sign("owner-1", typed="n\n").code == 130
    assert ceremony.sign("owner-1", typed="\n").code == 130
    assert ceremony.proposal.read_bytes() == before
    assert ceremony.sign("owner-1", "--yes", typed="").code == 0


def test_a_lost_owner_is_replaced_by_a_key_from_another_machine(ceremony):
    new = ceremony.away / "dora.key"
    ceremony.cli("keys", "new", new, "--no-passphrase")
    ended = ceremony.cli(
        "keys", "keyring", "prepare", ceremony.folder, "--drop-owner", "owner-2",
        "--add-owner", new.with_suffix(".pub"),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    for name in ("owner-1", "owner-3"):
        assert ceremony.sign(name).code == 0
    assert ceremony.finish().code == 0
    owners = set(ceremony.keyring.owner_keys())
    assert read_private_key(new).public.fingerprint in owners
    assert read_public_key(ceremony.folder / "owner-2.pub").fingerprint not in owners
    pin = (ceremony.folder / "owner.fingerprint").read_text().strip()
    assert pin == ceremony.keyring.owner_fingerprint != ceremony.owner


def test_owners_to_come_sign_too(ceremony):
    keys = [ceremony.away / f"{name}.key" for name in ("dora", "emil")]
    for key in keys:
        ceremony.cli("keys", "new", key, "--no-passphrase")
    options = [one for key in keys for one in ("--add-owner", key.with_suffix(".pub"))]
    drop = [one for name in ("owner-1", "owner-2", "owner-3") for one in ("--drop-owner", name)]
    ended = ceremony.cli("keys", "keyring", "prepare", ceremony.folder, *options, *drop)
    assert "2 more must sign of the owners to come" in ended.err
    for name in ("owner-1", "owner-2"):
        ceremony.sign(name)
    assert "2 more must sign of the owners to come" in ceremony.finish().err
    for name in ("dora", "emil"):
        ceremony.sign(name)
    assert ceremony.finish().code == 0


def test_a_proposal_can_change_the_threshold_add_keys_and_begin_an_epoch(ceremony):
    publisher, fleet = ceremony.away / "anna.key", ceremony.away / "service.key"
    for key in (publisher, fleet):
        ceremony.cli("keys", "new", key, "--no-passphrase")
    ended = ceremony.cli(
        "keys", "keyring", "prepare", ceremony.folder, "--threshold", 3, "--new-epoch",
        "--add-publisher", publisher.with_suffix(".pub"), "--names", "churn-*",
        "--add-fleet", fleet.with_suffix(".pub"),
        "--add-authority", ceremony.folder / "authority.pem",
    )  # fmt: skip
    assert ended.code == 3
    assert "already" in ended.err
    ended = ceremony.cli(
        "keys", "keyring", "prepare", ceremony.folder, "--threshold", 3, "--new-epoch",
        "--add-publisher", publisher.with_suffix(".pub"), "--names", "churn-*",
        "--add-fleet", fleet.with_suffix(".pub"),
    )  # fmt: skip
    assert ended.code == 0
    for number in (1, 2, 3):
        ceremony.sign(f"owner-{number}")
    assert ceremony.finish().code == 0
    keyring = ceremony.keyring
    assert (keyring.threshold, keyring.epoch, len(keyring.fleets)) == (3, 2, 2)
    assert [one.names for one in keyring.publishers] == [["*"], ["churn-*"]]


def test_only_one_proposal_waits(ceremony):
    ceremony.cli("keys", "rotate", "fleet", ceremony.folder)
    for arguments in (
        ("keys", "rotate", "fleet", ceremony.folder),
        ("keys", "revoke", "fleet", "fleet", ceremony.folder, "--leave-none"),
        ("keys", "keyring", "prepare", ceremony.folder),
    ):
        ended = ceremony.cli(*arguments)
        assert ended.code == 3
        assert "waits for signatures" in ended.err
    assert not (ceremony.folder / "fleet-3.key").exists()


def test_a_proposal_for_a_keyring_that_is_no_longer_in_force(ceremony, tmp_path):
    ceremony.cli("keys", "rotate", "fleet", ceremony.folder)
    late = tmp_path / "late"
    shutil.copy(ceremony.proposal, late)
    for name in ("owner-1", "owner-2"):
        ceremony.sign(name)
    assert ceremony.finish().code == 0
    ended = ceremony.cli("keys", "keyring", "finish", ceremony.folder, late)
    assert ended.code == 3
    assert "version 2 is in force" in ended.err


def test_a_stranger_and_a_publisher_cannot_sign(ceremony):
    ceremony.cli("keys", "rotate", "fleet", ceremony.folder)
    shutil.copy(ceremony.folder / "publisher.key", ceremony.away)
    ended = ceremony.sign("publisher")
    assert ended.code == 3
    assert "would not count" in ended.err


def test_a_base_that_is_made_up_is_refused_so_that_a_diff_cannot_hide_anything(ceremony):
    """One owner shows the others a keyring in force that has his own key in it already."""
    thief = read_private_key(ceremony.away / "owner-1.key")
    evil = Publisher(key=PrivateKey.generate().public.pem.decode(), names=["*"])
    base = msgspec.structs.replace(
        ceremony.keyring, publishers=[*ceremony.keyring.publishers, evil]
    )
    after = transitions.follow(base, base, now_ms=base.issued)
    forged = b"\n".join([sign_keyring(base, [thief]), sign_keyring(after, [thief])])
    ceremony.proposal.write_bytes(forged)
    assert ceremony.sign("owner-2").code == 6
    # Not even with an owner of his own making, for which --owner would have to be his.
    mine = make_keyring(thief, version=1, epoch=1, publishers=[evil], fleets=[], issued=base.issued)
    ceremony.proposal.write_bytes(b"\n".join([mine, sign_keyring(after, [thief])]))
    assert ceremony.sign("owner-2").code == 6


def test_a_date_in_the_future_is_not_signed(ceremony):
    ceremony.cli("keys", "rotate", "fleet", ceremony.folder)
    lines = keyring_lines(ceremony.proposal.read_bytes())
    after = msgspec.structs.replace(claimed_keyring(lines[-1])[0], issued=2**52)
    ceremony.proposal.write_bytes(b"\n".join([*lines[:-1], sign_keyring(after, [])]))
    ended = ceremony.sign("owner-1")
    assert ended.code == 3
    assert "in the future" in ended.err


@pytest.mark.parametrize(
    ("raw", "code"),
    [(b"", 6), (b"junk", 3), (b"junk\njunk", 6), (b"\x00" * 100, 3), (b"x" * 300_000, 6)],
)
def test_what_is_no_proposal(ceremony, raw, code):
    ceremony.proposal.write_bytes(raw)
    for ended in (ceremony.sign("owner-1"), ceremony.finish()):
        assert ended.code == code
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1


def test_a_proposal_that_was_altered_after_it_was_signed_is_refused(ceremony):
    ceremony.cli("keys", "rotate", "fleet", ceremony.folder)
    for name in ("owner-1", "owner-2"):
        ceremony.sign(name)
    signed = keyring_lines(ceremony.proposal.read_bytes())
    after = msgspec.structs.replace(claimed_keyring(signed[-1])[0], epoch=9)
    other = sign_keyring(after, [])
    payload = other[other.index(b'"payload":"') :].split(b'"')[3]
    old = signed[-1].split(b'"payload":"')[1].split(b'"')[0]
    ceremony.proposal.write_bytes(b"\n".join([*signed[:-1], signed[-1].replace(old, payload)]))
    ended = ceremony.finish()
    assert ended.code == 6
    assert ceremony.keyring.version == 1


def test_check_says_what_a_device_would(ceremony, cli):
    path = ceremony.folder / "keyring.json"
    ended = cli("keys", "keyring", "check", path, "--owner", ceremony.owner)
    assert ended.code == 0
    assert "2 of these 3 keys sign" in ended.out
    assert cli("keys", "keyring", "check", path, "--owner", "0" * 64).code == 6
    path.write_bytes(path.read_bytes()[:-40])
    assert cli("keys", "keyring", "check", path, "--owner", ceremony.owner).code == 6


@pytest.mark.parametrize("option", ["--add-owner", "--add-publisher", "--add-fleet"])
@pytest.mark.parametrize("name", ["fleet.key", "junk"])
def test_a_file_that_is_no_public_key_is_named(ceremony, option, name):
    path = ceremony.folder / name
    if name == "junk":
        path.write_bytes(b"junk")
    ended = ceremony.cli("keys", "keyring", "prepare", ceremony.folder, option, path)
    assert ended.code == 3
    assert f"{path}: not a public key" in ended.err
    assert not ceremony.proposal.exists()


def test_a_file_that_is_no_authority_is_named(ceremony):
    path = ceremony.folder / "owner-1.pub"
    ended = ceremony.cli("keys", "keyring", "prepare", ceremony.folder, "--add-authority", path)
    assert ended.code == 3
    assert f"{path}: not a certificate" in ended.err


def test_finishing_nothing_says_so(ceremony):
    ended = ceremony.finish()
    assert ended.code == 3
    assert "no proposal waits" in ended.err

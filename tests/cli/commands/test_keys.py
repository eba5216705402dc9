"""``edgepack keys``: made once, never overwritten, protected, shown, and changed step by step."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
from pathlib import Path

import pytest
from bundle_samples import one_variant

from edgepack_cli.keys.making import ROLES
from edgepack_contract.certificates import Authority
from edgepack_contract.keyring import KeyStatus, make_keyring, open_keyring
from edgepack_contract.keys import PrivateKey, read_private_key, read_public_key
from edgepack_contract.layout import write_bundle

SECRET, OTHER = "correct horse", "battery staple"
MADE = [
    *(f"{role}.key" for role in ROLES), *(f"{role}.pub" for role in ROLES[:3]), "authority.pem",
    "keyring.json", "owner.fingerprint",
]  # fmt: skip


@pytest.fixture
def passphrase_file(tmp_path, monkeypatch):
    """The passphrase in a file that only we can read, named by the environment."""
    path = tmp_path / "passphrase"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    monkeypatch.setenv("EDGEPACK_PASSPHRASE_FILE", str(path))
    return path


def keyring_in(folder):
    pin = (folder / "owner.fingerprint").read_text().strip()
    return open_keyring((folder / "keyring.json").read_bytes(), owner_fingerprint=pin)


def fingerprint(folder, name):
    return read_public_key(folder / f"{name}.pub").fingerprint


def test_init_makes_every_key_and_a_keyring_that_the_owner_signed(cli, tmp_path):
    folder = tmp_path / "keys"
    ended = cli(
        "keys", "init", folder, "--no-passphrase", "--names", "digits", "--names", "churn-*"
    )
    assert ended.code == 0
    owner = fingerprint(folder, "owner")
    assert ended.out == f"owner {owner}\n"
    assert sorted(path.name for path in folder.iterdir()) == sorted(MADE)
    keyring = open_keyring((folder / "keyring.json").read_bytes(), owner_fingerprint=owner)
    ((key, (_, publisher)),) = keyring.publisher_keys().items()
    assert key == read_private_key(folder / "publisher.key").public.fingerprint
    assert publisher.names == ["digits", "churn-*"]
    assert list(keyring.fleet_keys()) == [fingerprint(folder, "fleet")]
    pem = (folder / "authority.pem").read_bytes()
    assert keyring.authorities == [pem.decode()]
    assert Authority.open(read_private_key(folder / "authority.key"), pem)
    assert not keyring.demo
    assert keyring.issued > 1_700_000_000_000
    assert (folder.stat().st_mode & 0o777) == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.key")} == {0o600}


def test_init_says_where_each_key_belongs_and_what_to_write_down(cli, tmp_path):
    said = cli("keys", "init", tmp_path, "--no-passphrase").err
    for words in ("keep it offline", "lost:", "stolen:", "keys rotate owner", "docs/keys.md"):
        assert words in said
    for role in ROLES:
        digest = hashlib.sha256((tmp_path / f"{role}.key").read_bytes()).hexdigest()
        assert f"sha256 begins with {digest[:16]}" in said


def test_several_owners_and_a_threshold(cli, tmp_path):
    ended = cli("keys", "init", tmp_path, "--no-passphrase", "--owners", 3, "--threshold", 2)
    assert "2 of the 3 owner keys must sign" in ended.err
    keyring = keyring_in(tmp_path)
    assert set(keyring.owner_keys()) == {
        fingerprint(tmp_path, f"owner-{number}") for number in (1, 2, 3)
    }
    assert keyring.threshold == 2
    assert ended.out == f"owner {keyring.owner_fingerprint}\n"
    assert not (tmp_path / "owner.key").exists()


@pytest.mark.parametrize(
    "options", [("--owners", 0), ("--owners", 17), ("--owners", 2, "--threshold", 3)]
)
def test_numbers_of_owners_that_cannot_be(cli, tmp_path, options):
    assert cli("keys", "init", tmp_path / "keys", "--no-passphrase", *options).code == 2
    assert not (tmp_path / "keys").exists()


def test_a_demos_keyring_says_so(cli, tmp_path):
    assert cli("keys", "init", tmp_path, "--demo").code == 0
    assert keyring_in(tmp_path).demo
    assert "of a demo: loopback only" in cli("keys", "show", tmp_path).out


def test_a_passphrase_protects_all_but_what_the_service_uses(cli, tmp_path):
    ended = cli("keys", "init", tmp_path, typed=f"{SECRET}\n{SECRET}\n")
    assert ended.code == 0
    assert SECRET not in ended.out + ended.err
    for role in ("owner", "publisher"):
        assert read_private_key(tmp_path / f"{role}.key", SECRET.encode())
        assert b"ENCRYPTED" in (tmp_path / f"{role}.key").read_bytes()
    for role in ("fleet", "authority"):
        assert read_private_key(tmp_path / f"{role}.key")


def test_a_passphrase_is_asked_for_where_a_key_is_used(cli, tmp_path, bundle):
    cli("keys", "init", tmp_path, typed=f"{SECRET}\n{SECRET}\n")
    arguments = ("sign", bundle, "--key", tmp_path / "publisher.key")
    assert cli(*arguments, typed=f"{SECRET}\n").code == 0
    wrong = cli(*arguments, typed="guess\n")
    assert wrong.code == 3
    assert "passphrase is wrong" in wrong.err
    assert cli(*arguments, typed="").code == 130


@pytest.mark.usefixtures("passphrase_file")
def test_a_passphrase_can_come_from_a_file(cli, tmp_path, bundle):
    folder = tmp_path / "keys"
    assert cli("keys", "init", folder).code == 0
    assert read_private_key(folder / "owner.key", SECRET.encode())
    assert cli("sign", bundle, "--key", folder / "publisher.key").code == 0
    assert cli("keys", "rotate", "publisher", folder).code == 0
    assert read_private_key(folder / "publisher-2.key", SECRET.encode())


@pytest.mark.parametrize(
    ("mode", "text", "words"),
    [(0o644, SECRET, "chmod 600"), (0o600, "\n", "is empty"), (None, "", "No such file")],
)
def test_a_file_of_a_passphrase_that_will_not_do(cli, tmp_path, passphrase_file, mode, text, words):
    passphrase_file.write_text(text)
    passphrase_file.chmod(mode) if mode else passphrase_file.unlink()
    ended = cli("keys", "init", tmp_path / "keys")
    assert ended.code == 3
    assert words in ended.err
    assert "passphrase" in ended.err
    assert not (tmp_path / "keys").exists()


def test_passphrases_that_differ_make_nothing(cli, tmp_path):
    ended = cli("keys", "init", tmp_path / "keys", typed="one\ntwo\n")
    assert ended.code == 130
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("name", MADE)
def test_a_key_is_never_overwritten_also_when_the_others_were_moved_away(cli, tmp_path, name):
    path = tmp_path / name
    path.write_text("precious")
    ended = cli("keys", "init", tmp_path, "--no-passphrase")
    assert ended.code == 3
    assert "never overwritten" in ended.err
    assert path.read_text() == "precious"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_show_says_who_may_sign_what(cli, keys):
    folder, owner = keys
    ended = cli("keys", "show", folder)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[:3] == [
        f"owner      {owner}  owner",
        f"publisher  {fingerprint(folder, 'publisher')}  active  signs *  publisher",
        f"fleet      {fingerprint(folder, 'fleet')}  fleet",
    ]
    assert lines[3].startswith("authority  ")
    assert " until 20" in lines[3]
    assert lines[4].startswith("keyring    version 1, epoch 1, dated 20")
    shown = json.loads(cli("keys", "show", folder, "--json").out)
    assert shown["owner"] == owner
    assert shown["keyring"]["publishers"][0]["names"] == ["*"]
    assert shown["fleets"] == [fingerprint(folder, "fleet")]
    assert len(shown["authorities"]) == 1


def test_show_needs_no_folder_but_then_the_pinned_owner(cli, keys, trust):
    folder, owner = keys
    assert f"owner      {owner}" in cli("keys", "show", *trust).out
    assert cli("keys", "show").code == 2
    assert cli("keys", "show", folder, *trust).code == 2
    assert cli("keys", "show", *trust[:2]).code == 2


def test_show_refuses_a_keyring_of_another_owner(cli, keys):
    folder, _ = keys
    forged = make_keyring(PrivateKey.generate(), version=2, epoch=1, publishers=[], fleets=[])
    (folder / "keyring.json").write_bytes(forged)
    ended = cli("keys", "show", folder)
    assert (ended.code, ended.out) == (6, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("name", ["owner.fingerprint", "keyring.json"])
def test_show_names_the_file_that_is_missing(cli, keys, name):
    folder, _ = keys
    (folder / name).unlink()
    ended = cli("keys", "show", folder)
    assert ended.code == 3
    assert name in ended.err
    assert ended.err.count("\n") == 1


def test_a_passphrase_is_changed_and_taken_away_and_the_key_stays(cli, tmp_path):
    cli("keys", "init", tmp_path, typed=f"{SECRET}\n{SECRET}\n")
    path = tmp_path / "owner.key"
    ended = cli("keys", "passphrase", path, typed=f"{SECRET}\n{OTHER}\n{OTHER}\n")
    assert ended.code == 0
    owner = fingerprint(tmp_path, "owner")
    assert read_private_key(path, OTHER.encode()).public.fingerprint == owner
    wrong = cli("keys", "passphrase", path, typed=f"{SECRET}\n")
    assert wrong.code == 3
    assert cli("keys", "passphrase", path, "--remove", typed=f"{OTHER}\n").code == 0
    assert read_private_key(path).public.fingerprint == owner
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_key_of_its_own_for_somebody_elses_machine(cli, tmp_path):
    ended = cli("keys", "new", tmp_path / "anna.key", typed=f"{SECRET}\n{SECRET}\n")
    assert ended.code == 0
    assert ended.out == f"{fingerprint(tmp_path, 'anna')}\n"
    assert read_private_key(tmp_path / "anna.key", SECRET.encode())
    assert cli("keys", "new", tmp_path / "anna.key", "--no-passphrase").code == 3
    assert cli("keys", "new", tmp_path / "anna", "--no-passphrase").code == 2


def test_a_publisher_is_replaced_and_what_it_signed_retires(cli, keys, signed):
    folder, _ = keys
    other = "sha256:" + "7" * 64
    ended = cli(
        "keys", "rotate", "publisher", folder, "--no-passphrase",
        "--retire-for", signed, "--digest", other,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.out == "keyring version 2\n"
    keyring = keyring_in(folder)
    old = keyring.publisher_keys()[fingerprint(folder, "publisher")][1]
    new = keyring.publisher_keys()[fingerprint(folder, "publisher-2")][1]
    digest = json.loads(cli("inspect", signed, "--json").out)["digest"]
    assert (old.status, old.digests) == (KeyStatus.RETIRED, sorted([digest, other]))
    assert (new.status, new.names) == (KeyStatus.ACTIVE, ["*"])
    assert "publisher-2.key" in ended.err


def test_only_what_the_retired_key_signed_can_stay_good(cli, keys, signed, bundle, tmp_path):
    folder, _ = keys
    unsigned = cli("keys", "rotate", "publisher", folder, "--no-passphrase", "--retire-for", bundle)
    assert unsigned.code == 6
    strange = tmp_path / "strange.edgepack"
    write_bundle(strange, one_variant(), signer=PrivateKey.generate())
    ended = cli("keys", "rotate", "publisher", folder, "--no-passphrase", "--retire-for", strange)
    assert ended.code == 6
    assert keyring_in(folder).version == 1
    assert not (folder / "publisher-2.key").exists()


def test_a_fleet_key_is_added_and_the_former_one_goes_when_it_is_revoked(cli, keys):
    folder, _ = keys
    none_left = cli("keys", "revoke", "fleet", "fleet", folder)
    assert none_left.code == 3
    assert "keys rotate fleet" in none_left.err
    assert "--leave-none" in none_left.err
    assert cli("keys", "rotate", "fleet", folder).code == 0
    assert len(keyring_in(folder).fleets) == 2
    ended = cli("keys", "revoke", "fleet", "fleet", folder)
    assert ended.code == 0
    assert "--new-epoch" in ended.err
    keyring = keyring_in(folder)
    assert list(keyring.fleet_keys()) == [fingerprint(folder, "fleet-2")]
    assert keyring.revoked_fleets == [fingerprint(folder, "fleet")]
    assert keyring.epoch == 1
    ended = cli("keys", "revoke", "fleet", "fleet-2", folder, "--leave-none", "--new-epoch")
    assert ended.code == 0
    assert (keyring_in(folder).fleets, keyring_in(folder).epoch) == ([], 2)


def test_an_authority_is_added_and_the_former_one_revoked(cli, keys):
    folder, _ = keys
    assert cli("keys", "rotate", "authority", folder).code == 0
    pem = (folder / "authority-2.pem").read_bytes()
    assert Authority.open(read_private_key(folder / "authority-2.key"), pem)
    assert len(keyring_in(folder).authorities) == 2
    assert cli("keys", "revoke", "authority", "authority", folder).code == 0
    assert keyring_in(folder).authorities == [pem.decode()]


def test_an_owner_is_replaced_and_who_pinned_the_former_one_follows(cli, keys):
    folder, owner = keys
    ended = cli("keys", "rotate", "owner", folder, "--no-passphrase")
    assert ended.code == 0
    new = fingerprint(folder, "owner-2")
    assert new in ended.err
    assert (folder / "owner.fingerprint").read_text() == f"{new}\n"
    path = folder / "keyring.json"
    for pinned in (owner, new):
        assert cli("keys", "keyring", "check", path, "--owner", pinned).code == 0
    (folder / "owner.key").unlink()
    assert cli("keys", "rotate", "fleet", folder).code == 0
    for pinned in (owner, new):
        checked = cli("keys", "keyring", "check", path, "--owner", pinned, "--json")
        assert json.loads(checked.out)["version"] == 3
    assert cli("keys", "keyring", "check", path, "--owner", "0" * 64).code == 6


@pytest.mark.parametrize(
    ("which", "words"),
    [("nobody", "there are: publisher"), ("0123456", "there are: publisher"), ("owner", "not one")],
)
def test_a_name_that_means_no_key(cli, keys, which, words):
    ended = cli("keys", "revoke", "publisher", which, keys[0])
    assert ended.code == 3
    assert words in ended.err


def test_a_key_without_a_file_is_named_by_its_fingerprint(cli, keys):
    folder, _ = keys
    publisher = fingerprint(folder, "publisher")
    (folder / "publisher.pub").unlink()
    cli("keys", "rotate", "publisher", folder, "--no-passphrase")
    assert cli("keys", "revoke", "publisher", publisher[:8].upper(), folder).code == 0
    assert keyring_in(folder).publisher_keys()[publisher][1].status == KeyStatus.REVOKED


def test_a_bundle_is_revoked_by_its_digest(cli, keys, signed, trust):
    digest = json.loads(cli("inspect", signed, "--json").out)["digest"]
    assert cli("verify", signed, *trust).code == 0
    assert cli("keys", "revoke", "digest", digest, keys[0]).code == 0
    assert "is revoked by keyring version 2" in cli("verify", signed, *trust).err
    assert cli("keys", "revoke", "digest", "digits:1.0.0", keys[0]).code == 3


@pytest.mark.parametrize(
    "arguments",
    [("rotate", "fleet", "--digest", "sha256:1"), ("rotate", "fleet", "--replace", "fleet"),
     ("rotate", "owner", "--names", "x"), ("rotate", "device"), ("revoke", "device", "x")],
)  # fmt: skip
def test_options_that_belong_to_another_role(cli, keys, arguments):
    assert cli("keys", *arguments, keys[0]).code == 2
    assert keyring_in(keys[0]).version == 1


def test_giving_up_at_a_passphrase_leaves_everything_as_it_was(cli, tmp_path):
    cli("keys", "init", tmp_path, typed=f"{SECRET}\n{SECRET}\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for typed in ("", "guess\n"):
        assert cli("keys", "rotate", "fleet", tmp_path, typed=typed).code in (3, 130)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def breaks_at(number):
    """Something that works until its ``number``-th call (from 1), like a disk that fills."""
    calls = itertools.count(1)

    def wrap(real):
        def call(*arguments):
            if next(calls) >= number:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        return call

    return wrap


@pytest.mark.parametrize("number", range(1, 4))
def test_an_interrupted_change_leaves_the_keyring_in_force(cli, keys, monkeypatch, number):
    """Wherever the disk fills: the private key, its public half, the keyring."""
    folder, owner = keys
    before = (folder / "keyring.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", breaks_at(number)(os.fsync))
        ended = cli("keys", "rotate", "fleet", folder)
    assert (ended.code, "No space" in ended.err) == (3, True)
    assert (folder / "keyring.json").read_bytes() == before
    assert (folder / "owner.fingerprint").read_text().strip() == owner
    assert not [path for path in folder.iterdir() if path.name.endswith(".part")]
    assert cli("keys", "rotate", "fleet", folder).code == 0
    assert keyring_in(folder).version == 2


def test_an_interruption_between_the_keyring_and_the_pin_does_no_harm(cli, keys, monkeypatch):
    folder, owner = keys
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", breaks_at(2)(Path.replace))
        assert cli("keys", "rotate", "owner", folder, "--no-passphrase").code == 3
    assert (folder / "owner.fingerprint").read_text().strip() == owner
    assert keyring_in(folder).version == 2
    assert cli("keys", "rotate", "fleet", folder).code == 0
    assert (folder / "owner.fingerprint").read_text().strip() == fingerprint(folder, "owner-2")

"""``edgepack keys``: made once, never overwritten, protected, shown."""

from __future__ import annotations

import json

import pytest

from edgepack_cli.commands.keys import ROLES
from edgepack_contract.keyring import make_keyring, open_keyring
from edgepack_contract.keys import PrivateKey, read_private_key, read_public_key

SECRET = "correct horse"


def test_init_makes_three_keys_and_a_keyring_that_the_owner_signed(cli, tmp_path):
    folder = tmp_path / "keys"
    ended = cli(
        "keys", "init", folder, "--no-passphrase", "--names", "digits", "--names", "churn-*"
    )
    assert ended.code == 0
    owner = read_public_key(folder / "owner.pub").fingerprint
    assert ended.out == f"owner {owner}\n"
    assert "keep it offline" in ended.err
    keyring = open_keyring((folder / "keyring.json").read_bytes(), owner_fingerprint=owner)
    ((fingerprint, (_, publisher)),) = keyring.publisher_keys().items()
    assert fingerprint == read_private_key(folder / "publisher.key").public.fingerprint
    assert publisher.names == ["digits", "churn-*"]
    assert list(keyring.fleet_keys()) == [read_public_key(folder / "fleet.pub").fingerprint]
    assert (folder.stat().st_mode & 0o777) == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.key")} == {0o600}


def test_a_passphrase_protects_all_but_the_fleets_key(cli, tmp_path):
    ended = cli("keys", "init", tmp_path, typed=f"{SECRET}\n{SECRET}\n")
    assert ended.code == 0
    assert SECRET not in ended.out + ended.err
    for role in ("owner", "publisher"):
        assert read_private_key(tmp_path / f"{role}.key", SECRET.encode())
        assert b"ENCRYPTED" in (tmp_path / f"{role}.key").read_bytes()
    assert read_private_key(tmp_path / "fleet.key")


def test_a_passphrase_is_asked_for_where_a_key_is_used(cli, tmp_path, bundle):
    cli("keys", "init", tmp_path, typed=f"{SECRET}\n{SECRET}\n")
    arguments = ("sign", bundle, "--key", tmp_path / "publisher.key")
    assert cli(*arguments, typed=f"{SECRET}\n").code == 0
    wrong = cli(*arguments, typed="guess\n")
    assert wrong.code == 3
    assert "passphrase is wrong" in wrong.err
    assert cli(*arguments, typed="").code == 130


def test_passphrases_that_differ_make_nothing(cli, tmp_path):
    ended = cli("keys", "init", tmp_path / "keys", typed="one\ntwo\n")
    assert ended.code == 130
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    "name", [*(f"{role}.{kind}" for role in ROLES for kind in ("key", "pub")), "keyring.json"]
)
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
    publisher = read_public_key(folder / "publisher.pub").fingerprint
    fleet = read_public_key(folder / "fleet.pub").fingerprint
    ended = cli("keys", "show", folder)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        f"owner      {owner}",
        f"publisher  {publisher}  active  signs *",
        f"fleet      {fleet}",
        "keyring    version 1, epoch 1",
    ]
    shown = json.loads(cli("keys", "show", folder, "--json").out)
    assert shown["owner"] == owner
    assert shown["keyring"]["publishers"][0]["names"] == ["*"]


def test_show_refuses_a_keyring_of_another_owner(cli, keys):
    folder, _ = keys
    forged = make_keyring(PrivateKey.generate(), version=2, epoch=1, publishers=[], fleets=[])
    (folder / "keyring.json").write_bytes(forged)
    ended = cli("keys", "show", folder)
    assert (ended.code, ended.out) == (6, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("name", ["owner.pub", "keyring.json"])
def test_show_names_the_file_that_is_missing(cli, keys, name):
    folder, _ = keys
    (folder / name).unlink()
    ended = cli("keys", "show", folder)
    assert ended.code == 3
    assert name in ended.err
    assert ended.err.count("\n") == 1

"""Logging in, out, and choosing among fleets, as a user does it."""

from __future__ import annotations

import json
import time

import pytest
from bundle_samples import PUBLISHER, fixed_key
from fleet_http import FLEET_KEY, OWNER, open_fleet, served

from edgepack_contract.certificates import Authority
from edgepack_contract.keyring import Publisher, make_keyring
from edgepack_contract.keys import write_private_key

FINGERPRINT = OWNER.public.fingerprint
DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("FLEET", "TOKEN", "TOKEN_FILE", "CONTEXT", "CA", "OWNER"):
        monkeypatch.delenv(f"EDGEPACK_{name}", raising=False)
    return tmp_path / "config" / "edgepack" / "contexts.toml"


@pytest.fixture
def site(tmp_path):
    """A fleet API on loopback, and its address."""
    folder = tmp_path / "fleet"
    folder.mkdir()
    with open_fleet(folder) as fleet, served(fleet) as address:
        yield fleet, address


@pytest.fixture
def secured(tmp_path):
    """A fleet API over TLS, whose authority the keyring names."""
    folder, key = tmp_path / "secured", fixed_key(41)
    folder.mkdir()
    now = int(time.time() * 1000)
    authority = Authority.create(fixed_key(40), name="test", now_ms=now)
    issued = authority.issue_server(key.public, hosts=["localhost"], now_ms=now)
    (folder / "tls.pem").write_bytes(issued.pem)
    (folder / "ca.pem").write_bytes(authority.pem)
    write_private_key(folder / "tls.key", key)
    with open_fleet(folder) as fleet:
        publisher = Publisher(key=PUBLISHER.public.pem.decode(), names=["*"])
        keyring = make_keyring(
            OWNER, version=2, epoch=1, publishers=[publisher], fleets=[FLEET_KEY.public],
            authorities=[authority.pem.decode()],
        )  # fmt: skip
        assert fleet.client("admin").put("/api/v1/keyring", content=keyring).status_code == 200
        with served(fleet, tls=(folder / "tls.pem", folder / "tls.key")) as address:
            yield fleet, address, folder / "ca.pem"


def test_logged_in_commands_need_no_environment(cli, site, home):
    fleet, address = site
    ended = cli("login", address, typed=f"{fleet.tokens['operator']}\n")
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"logged in to local ({address}) as operator: operator, until 20")
    assert fleet.tokens["operator"] not in ended.out + ended.err
    assert home.stat().st_mode & 0o777 == 0o600
    fleet.add_device("pi-1")
    assert "pi-1" in cli("device", "list").out
    assert cli("context", "show").out.splitlines() == [
        "context     local", f"url         {address}", "owner       -", "trusted by  loopback",
        "logged in   True",
    ]  # fmt: skip
    assert fleet.tokens["operator"] not in cli("context", "show", "--json").out
    assert cli("logout").out == "logged out of local\n"
    ended = cli("device", "list")
    assert ended.code == 2
    assert "edgepack login" in ended.err
    assert fleet.tokens["operator"] not in home.read_text()


def test_a_token_that_the_service_does_not_know_is_not_kept(cli, site, home):
    _, address = site
    ended = cli("login", address, typed="epa_nonsense\n")
    assert (ended.code, ended.out) == (3, "")
    assert f"Log in again: edgepack login {address}" in ended.err
    assert "epa_nonsense" not in ended.err
    assert not home.exists()
    assert cli("login", address, typed="\n").code == 2
    assert "--token" not in cli("login", "--help").out


def test_an_expired_login_says_so(cli, site):
    fleet, address = site
    cli("login", address, typed=fleet.tokens["viewer"])
    fleet.clock.now_ms += 400 * DAY_MS
    ended = cli("device", "list")
    assert ended.code == 3
    assert f"Log in again: edgepack login {address}" in ended.err


def test_among_several_one_is_chosen(cli, site, secured):
    fleet, address = site
    other, elsewhere, _ = secured
    other.add_device("far-1")
    cli("login", address, "--context", "near", typed=fleet.tokens["viewer"])
    cli(
        "login", elsewhere, "--context", "far", "--owner", FINGERPRINT, typed=other.tokens["viewer"]
    )
    listed = cli("context", "list").out.splitlines()
    assert [line.split() for line in listed[1:]] == [
        ["*", "far", elsewhere, "yes"], ["near", address, "yes"],
    ]  # fmt: skip
    assert "far-1" in cli("device", "list").out
    assert "far-1" not in cli("--context", "near", "device", "list").out
    assert "far-1" in cli("device", "list").out
    assert cli("context", "use", "near").out == f"commands go to near ({address})\n"
    assert "far-1" not in cli("device", "list").out
    assert cli("context", "remove", "near").code == 0
    assert json.loads(cli("context", "list", "--json").out)["current"] is None
    assert cli("context", "use", "near").code == 2


def test_a_service_of_its_own_authority_is_believed_by_its_owner_only(cli, secured, home):
    fleet, address, _ = secured
    token = fleet.tokens["viewer"]
    ended = cli("login", address, typed=token)
    assert ended.code == 3
    assert "not trusted: its certificate is of an authority" in ended.err
    assert "--owner FINGERPRINT" in ended.err
    ended = cli("login", address, "--owner", "0" * 64, typed=token)
    assert ended.code == 6
    assert "pinned owner" in ended.err
    assert not home.exists()
    assert cli("login", address, "--owner", FINGERPRINT, typed=token).code == 0
    assert cli("device", "list").code == 0
    assert f"owner       {FINGERPRINT}" in cli("context", "show").out
    # again without it: the owner stays pinned
    assert cli("login", address, typed=token).code == 0
    assert f"owner       {FINGERPRINT}" in cli("context", "show").out
    # a name that the certificate does not have
    wrong = cli("login", address.replace("localhost", "127.0.0.1"), "--owner", FINGERPRINT,
                typed=token)  # fmt: skip
    assert wrong.code == 3
    assert "for other" in wrong.err


def test_or_by_a_file_of_authorities(cli, secured):
    fleet, address, ca = secured
    assert cli("login", address, "--ca", ca, typed=fleet.tokens["viewer"]).code == 0
    assert "a file of authorities" in cli("context", "show").out
    both = cli("login", address, "--ca", ca, "--owner", FINGERPRINT, typed="t")
    assert both.code == 2


@pytest.mark.parametrize("by", ["EDGEPACK_OWNER", "EDGEPACK_CA"])
def test_the_environment_says_it_too(cli, secured, monkeypatch, by):
    fleet, address, ca = secured
    monkeypatch.setenv("EDGEPACK_FLEET", address)
    monkeypatch.setenv("EDGEPACK_TOKEN", fleet.tokens["viewer"])
    assert cli("device", "list").code == 3
    monkeypatch.setenv(by, FINGERPRINT if by == "EDGEPACK_OWNER" else str(ca))
    assert cli("device", "list").code == 0


def test_the_token_is_never_sent_to_who_is_not_proven(cli, secured):
    """The keyring is fetched from anybody, and without credentials."""
    fleet, *_ = secured
    seen = []
    app = fleet.app

    async def watching(scope, receive, send):
        if scope["type"] == "http":
            seen.append((scope["path"], dict(scope["headers"]).get(b"authorization")))
        await app(scope, receive, send)

    fleet.app = watching
    with served(fleet, tls=(fleet.folder / "tls.pem", fleet.folder / "tls.key")) as other:
        cli("login", other, "--owner", FINGERPRINT, typed=fleet.tokens["viewer"])
    paths = {path: token is not None for path, token in seen}
    assert paths == {"/api/v1/keyring": False, "/api/v1/me": True}


def test_plain_http_to_another_machine_is_refused(cli):
    ended = cli("login", "http://fleet.example", typed="t")
    assert ended.code == 2
    assert "plain http would show the token" in ended.err


def test_a_keyring_is_pushed_and_its_way_to_devices_shown(cli, site, tmp_path):
    fleet, address = site
    cli("login", address, typed=fleet.tokens["admin"])
    publisher = Publisher(key=PUBLISHER.public.pem.decode(), names=["*"])
    file = tmp_path / "keyring.json"
    file.write_bytes(
        make_keyring(OWNER, version=2, epoch=3, publishers=[publisher], fleets=[FLEET_KEY.public])
    )
    fleet.add_device("pi-1")
    ended = cli("keys", "keyring", "push", file)
    assert ended.out == "keyring version 2 of epoch 3 is in force\n"
    assert ended.err == "0 of 1 go by version 2 (1 have not said)\n"
    assert "version    2, epoch 3" in cli("keys", "keyring", "status").out
    assert json.loads(cli("keys", "keyring", "status", "--json").out)["devices"] == 1
    file.write_bytes(b"{}")
    assert cli("keys", "keyring", "push", file).code == 3

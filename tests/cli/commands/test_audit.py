"""The audit log on the command line."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text


@pytest.fixture
def busy(fleet, cli):
    """A fleet in which an admin did three things."""
    for name in ("one", "two", "three"):
        assert cli("group", "create", name, "--label", "site=oslo").code == 0
    return fleet


def touch(fleet, statement):
    with fleet.context.database.write() as session:
        session.execute(text(statement))


def test_entries_are_listed_and_filtered(busy, cli):
    lines = cli("audit", "list").out.splitlines()
    assert [line.split()[4:6] for line in lines[1:]] == [
        ["group.create", name] for name in ("three", "two", "one")
    ]
    assert len(cli("audit", "list", "--limit", "2").out.splitlines()) == 3
    found = json.loads(cli("audit", "list", "--subject", "two", "--json").out)["items"]
    assert [(one["sequence"], one["actor"]) for one in found] == [(2, "admin")]
    for none in (("--actor", "bob"), ("--action", "rollout"), ("--since", "2090-01-01")):
        assert len(cli("audit", "list", *none).out.splitlines()) == 1
    assert (
        len(cli("audit", "list", "--action", "group", "--since", "2020-01-01").out.splitlines())
        == 4
    )
    assert cli("audit", "list", "--since", "yesterday").code == 2


def test_a_whole_log_is_verified_and_its_head_kept(busy, cli, tmp_path):
    file = tmp_path / "head.txt"
    ended = cli("audit", "verify", "--save-head", file)
    assert ended.code == 0
    assert ended.out.startswith("3 audit entries and 0 events of 0 rollouts are whole; head 3:")
    assert file.read_text().strip() == ended.out.split()[-1]
    cli("group", "create", "four", "--label", "site=oslo")
    assert cli("audit", "verify", "--head", file).code == 0
    assert cli("audit", "verify", "--head", file.read_text().strip()).code == 0
    assert cli("audit", "verify", "--head", "7:x").code == 3
    assert cli("audit", "verify", "--head", tmp_path / "none").code == 3


def test_a_changed_log_ends_with_6_and_says_where(busy, cli, tmp_path):
    file = tmp_path / "head.txt"
    cli("audit", "verify", "--save-head", file)
    touch(busy, "DELETE FROM audit WHERE sequence = 3")
    assert cli("audit", "verify").code == 0
    ended = cli("audit", "verify", "--head", file)
    assert (ended.code, ended.out) == (6, "")
    assert "its end was cut off" in ended.err
    touch(busy, "UPDATE audit SET actor = 'bob' WHERE sequence = 2")
    before = file.read_text()
    ended = cli("audit", "verify", "--json", "--save-head", file)
    assert ended.code == 6
    report = json.loads(ended.out)
    assert (report["whole"], report["broken"][0]["sequence"]) == (False, 2)
    assert "audit entry 2 was changed" in ended.err
    # what is broken is not a head to keep
    assert file.read_text() == before


def test_only_an_admin_may(busy, cli, monkeypatch):
    monkeypatch.setenv("EDGEPACK_TOKEN", busy.tokens["publisher"])
    for command in ("list", "verify"):
        ended = cli("audit", command)
        assert ended.code == 3
        assert "admin" in ended.err

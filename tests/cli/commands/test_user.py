"""``edgepack user`` and ``edgepack token`` against a real fleet API."""

from __future__ import annotations

import json
import re

from edgepack_fleet.tokens import new_secret

PASSWORD = "correct horse battery"


def test_a_person_is_added_listed_reset_and_removed(cli, fleet):
    added = cli("user", "add", "anna", "--role", "operator", "--bundle", "churn-*")
    assert added.code == 0, added.err
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#code=epl_[\w-]{49}\n", added.out)
    assert "15 minutes" in added.err
    listed = cli("user", "list").out
    assert re.search(r"anna +operator +bundles churn-\* +nothing yet +-", listed)
    body = {"code": added.out.strip().partition("=")[2], "password": PASSWORD}
    assert fleet.client().post("/api/v1/login/code/password", json=body).status_code == 200
    assert re.search(r"anna .* password +20\d\d-", cli("user", "list").out)
    again = cli("user", "reset", "anna")
    assert again.out != added.out
    assert "#code=epl_" in again.out
    assert "nothing yet" in cli("user", "list").out
    assert cli("user", "remove", "anna").out == "user anna is removed\n"
    assert json.loads(cli("user", "list", "--json").out) == {"users": []}


def test_what_cannot_be_done_is_said(cli, fleet):
    cli("user", "add", "anna")
    for arguments, words in [
        (("add", "anna"), "edgepack user reset anna"),
        (("add", "Bert"), "a-z"),
        (("add", "bert", "--bundle", "A?"), "no pattern of names"),
        (("reset", "bert"), "no person named 'bert'"),
        (("remove", "bert"), "no person named 'bert'"),
    ]:
        ended = cli("user", *arguments)
        assert ended.code == 3
        assert words in ended.err


def test_a_token_is_limited_and_says_so(cli, fleet, monkeypatch):
    made = cli("token", "create", "ci", "--role", "publisher", "--bundle", "churn-*",
               "--bundle", "fraud", "--group", "gateways")  # fmt: skip
    assert made.code == 0, made.err
    assert re.search(
        r"ci +publisher +bundles churn-\*,fraud; groups gateways ", cli("token", "list").out
    )
    monkeypatch.setenv("EDGEPACK_TOKEN", made.out.strip())
    ended = cli("group", "create", "all")
    assert ended.code == 3
    assert "limited to bundles churn-*, fraud; groups gateways" in ended.err


def test_a_mistyped_token_is_told_from_an_unknown_one(cli, fleet, monkeypatch):
    monkeypatch.setenv("EDGEPACK_TOKEN", fleet.tokens["admin"][:-1])
    assert "cut off or mistyped" in cli("token", "list").err
    monkeypatch.setenv("EDGEPACK_TOKEN", new_secret("epa_"))
    assert "unknown, revoked or expired" in cli("token", "list").err

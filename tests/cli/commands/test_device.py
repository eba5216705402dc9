"""``edgepack device`` and ``edgepack join-token`` against a real fleet API."""

from __future__ import annotations

import json

import pytest
from fleet_http import START_MS
from fleet_scene import report

from edgepack_contract.certificates import make_request
from edgepack_contract.enrolment import parse_join_string
from edgepack_contract.keys import PrivateKey
from edgepack_contract.messages import CandidateMode, CandidateReported
from edgepack_contract.states import Phase
from edgepack_fleet.db.schema import Device

OWNER = "0f" * 32
KEY = PrivateKey.generate()


def joined(fleet, cli, *options):
    """A join string, made by the command."""
    ended = cli("join-token", "create", "gateways", "--owner", OWNER, *options)
    assert ended.code == 0, ended.err
    return parse_join_string(ended.out)


def asks(fleet, token, name="pi-1", key=KEY):
    """What a device's wish to join is answered with."""
    request = make_request(key, name=name).decode()
    body = {"token": token, "request": request, "nonce": "n", "labels": {"hall": "2"}}
    answer = fleet.client().post("/api/v1/enrol", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["status"]


def status(fleet, name="pi-1"):
    with fleet.context.database.read() as session:
        return session.get_one(Device, name).status


class TestJoinTokens:
    def test_a_join_string_says_where_whom_to_trust_and_by_what_right(self, fleet, cli):
        ended = cli(
            "join-token", "create", "gateways", "--auto", "--uses", "50", "--hours", "2",
            "--label", "site=oslo", "--owner", OWNER,
        )  # fmt: skip
        join = parse_join_string(ended.out)
        assert join.owner == OWNER
        assert join.url.startswith("http://127.0.0.1:")
        assert "22:26:40Z for up to 50 devices; they are let in at once, but" in ended.err
        assert join.token not in ended.err
        assert asks(fleet, join.token) == "accepted"
        assert cli("join-token", "list").out.splitlines() == [
            "JOIN TOKEN  MODE  USED     EXPIRES               MADE BY  LABELS",
            "gateways    auto  1 of 50  2026-05-28 22:26:40Z  admin    site=oslo",
        ]
        assert join.token not in cli("join-token", "list", "--json").out

    def test_the_owner_comes_from_here_and_never_from_the_service(
        self, fleet, cli, keys, monkeypatch
    ):
        refused = cli("join-token", "create", "a")
        assert (refused.code, refused.out) == (2, "")
        assert "--owner" in refused.err
        assert "not asked of the service" in refused.err
        file = cli("join-token", "create", "b", "--keyring", keys[0] / "keyring.json")
        assert parse_join_string(file.out).owner == keys[1]
        monkeypatch.setenv("EDGEPACK_OWNER", OWNER)
        assert parse_join_string(cli("join-token", "create", "c").out).owner == OWNER
        names = [
            one["name"] for one in json.loads(cli("join-token", "list", "--json").out)["tokens"]
        ]
        assert names == ["b", "c"]

    @pytest.mark.parametrize(
        ("options", "code", "words"),
        [
            (["--owner", "3f9a"], 78, "64 hex digits"),
            (["--owner", OWNER, "--url", "http://fleet.example"], 78, "use https"),
            (["--owner", OWNER, "--url", "fleet.example"], 78, "no proper URL"),
            (["--owner", OWNER, "--hours", "721"], 3, "30 days"),
            (["--owner", OWNER, "--uses", "0"], 3, "1 to 10000 devices"),
            (["--owner", OWNER, "--label", "nonsense"], 2, "KEY=VALUE"),
            (["--owner", OWNER, "--keyring", "/nowhere"], 2, "does not exist"),
        ],
    )
    def test_what_cannot_be_is_refused_before_a_token_is_made(
        self, fleet, cli, options, code, words
    ):
        ended = cli("join-token", "create", "gateways", *options)
        assert (ended.code, ended.out) == (code, "")
        assert words in ended.err
        assert json.loads(cli("join-token", "list", "--json").out) == {"tokens": []}

    def test_another_address_for_devices(self, fleet, cli):
        join = joined(fleet, cli, "--url", "https://fleet.example:8443/")
        assert join.url == "https://fleet.example:8443"

    def test_as_json(self, fleet, cli):
        made = json.loads(cli("join-token", "create", "a", "--owner", OWNER, "--json").out)
        assert made["mode"] == "pending"
        assert "token" not in made
        assert asks(fleet, parse_join_string(made["join"]).token) == "pending"

    def test_revoke(self, fleet, cli):
        joined(fleet, cli)
        ended = cli("join-token", "revoke", "gateways")
        assert (ended.code, ended.out) == (0, "join token gateways is revoked\n")
        assert cli("join-token", "revoke", "gateways").code == 3


class TestApproval:
    def test_the_key_is_shown_and_compared(self, fleet, cli):
        asks(fleet, joined(fleet, cli).token)
        fingerprint = KEY.public.fingerprint
        (_, line) = cli("device", "pending").out.splitlines()
        assert line.split()[0:2] == ["pi-1", "pending"]
        assert fingerprint in line
        assert "hall=2" in line
        refused = cli("device", "approve", "pi-1", typed="n\n")
        assert refused.code == 130
        assert fingerprint in refused.err
        ended = cli("device", "approve", "pi-1", typed="y\n")
        assert (ended.code, ended.out) == (0, "device pi-1 is accepted\n")
        assert cli("device", "pending").out.splitlines() == [
            "DEVICE  STATUS  ASKED  JOIN TOKEN  KEY  LABELS"
        ]

    @pytest.mark.parametrize("given", ["", "f", "0" * 16, "0" * 64, "short"])
    def test_another_key_is_not_approved(self, fleet, cli, given):
        asks(fleet, joined(fleet, cli).token)
        ended = cli("device", "approve", "pi-1", "--key", given)
        assert (ended.code, ended.out) == (3, "")
        assert KEY.public.fingerprint in ended.err
        assert json.loads(cli("device", "list", "--json").out) == {"devices": []}

    @pytest.mark.parametrize("options", [["--key", KEY.public.fingerprint[:16].upper()], ["--yes"]])
    def test_without_a_question(self, fleet, cli, options):
        asks(fleet, joined(fleet, cli).token)
        assert cli("device", "approve", "pi-1", *options).code == 0
        assert status(fleet) == "accepted"

    def test_reject(self, fleet, cli):
        asks(fleet, joined(fleet, cli).token)
        assert cli("device", "reject", "pi-1").out == "device pi-1 is rejected\n"
        shown = json.loads(cli("device", "pending", "--json").out)["enrolments"]
        assert [one["status"] for one in shown] == ["rejected"]

    def test_nobody_waits(self, fleet, cli):
        for words in (["approve", "pi-1", "--yes"], ["reject", "pi-1"]):
            ended = cli("device", *words)
            assert ended.code == 3
            assert "pi-1" in ended.err

    def test_a_device_announced_by_its_key_does_not_wait(self, fleet, cli, tmp_path):
        (tmp_path / "device.pub").write_bytes(KEY.public.pem)
        ended = cli("device", "preauthorise", "pi-1", "--key", tmp_path / "device.pub")
        assert (ended.code, ended.out) == (
            0, f"device pi-1 is expected with key {KEY.public.fingerprint}\n",
        )  # fmt: skip
        assert asks(fleet, joined(fleet, cli).token) == "accepted"
        wrong = cli("device", "preauthorise", "pi-2", "--key", "3f9a")
        assert wrong.code == 3
        assert "cannot read key 3f9a" in wrong.err


class TestMembers:
    @pytest.fixture
    def member(self, fleet, cli):
        asks(fleet, joined(fleet, cli, "--auto", "--label", "site=oslo").token)

    def test_show(self, fleet, cli, member):
        lines = dict(line.split(None, 1) for line in cli("device", "show", "pi-1").out.splitlines())
        assert lines["key"] == KEY.public.fingerprint
        assert lines["certificate"] == "until 2026-08-26 20:26:40Z"
        assert lines["labels"] == "hall=2, site=oslo"
        assert json.loads(cli("device", "show", "pi-1", "--json").out)["status"] == "accepted"
        assert cli("device", "show", "pi-2").code == 3

    @pytest.mark.parametrize(
        ("mode", "does"), [("shadow", "only sees"), ("split", "answers")], ids=["shadow", "split"]
    )
    def test_a_candidate_is_told_of(self, fleet, cli, member, mode, does):
        beside = CandidateReported(
            phase=Phase.PROBATION, running=None, version=None, wanted=f"sha256:{'7' * 64}",
            mode=CandidateMode(mode), share=0.07, words="loading",
        )  # fmt: skip
        report(fleet, "pi-1", f"sha256:{'6' * 64}", "1.0.0", candidate=beside)
        words = f"beside it 777777777777 {mode} 7 % probation loading"
        assert words in cli("device", "show", "pi-1").out
        assert words in cli("device", "list").out
        assert f"which {does} 7 % of the requests, is probation: loading." in cli(
            "device", "why", "pi-1"
        ).out.replace("\n", " ")
        told = json.loads(cli("device", "show", "pi-1", "--json").out)["slots"]["digits"]
        assert told["candidate"]["mode"] == mode

    def test_a_copy_and_what_was_refused_are_said(self, fleet, cli, member):
        with fleet.context.database.write() as session:
            session.get_one(Device, "pi-1").clone_seen_ms = START_MS
        object.__setattr__(fleet.context, "refused", lambda _: {"bad-mac": 3})
        shown = cli("device", "show", "pi-1").out
        assert "a second machine with its identity was heard, last at 2026-05-28 20:26:40Z" in shown
        assert "refused since the service started: bad-mac 3" in shown
        assert "copied" in cli("device", "list").out
        why = cli("device", "why", "pi-1").out
        assert "revoke pi-1 and enrol it anew" in why
        assert "bad-mac 3" in why

    def test_labels_are_set_one_by_one(self, fleet, cli, member):
        ended = cli("device", "label", "pi-1", "hall-", "rack=7")
        assert (ended.code, ended.out) == (0, "device pi-1: rack=7, site=oslo\n")
        assert cli("device", "label", "pi-1", "rack-", "site-").out == "device pi-1: no labels\n"
        assert cli("device", "label", "pi-1", "Rack=7").code == 3
        assert cli("device", "label", "pi-1", "nonsense").code == 2
        assert cli("device", "label", "pi-1").code == 2

    def test_revoke(self, fleet, cli, member):
        ended = cli("device", "revoke", "pi-1")
        assert (ended.code, ended.out) == (0, "device pi-1 is revoked\n")
        assert "enrol --again" in ended.err
        assert cli("device", "list").out.splitlines()[1].split() == [
            "pi-1",
            "revoked",
            "-",
            "-",
            "-",
        ]
        assert cli("device", "revoke", "pi-9").code == 3

    def test_decommission_asks_first(self, fleet, cli, member):
        assert cli("device", "decommission", "pi-1", typed="n\n").code == 130
        assert status(fleet) == "accepted"
        ended = cli("device", "decommission", "pi-1", "--yes")
        assert (ended.code, ended.out) == (0, "device pi-1 is decommissioned\n")
        assert status(fleet) == "decommissioned"

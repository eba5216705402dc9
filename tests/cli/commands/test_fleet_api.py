"""Commands against a real fleet API: devices, groups, bundles, tokens, rollouts."""

from __future__ import annotations

import itertools
import json

import pytest
from fleet_http import bundle_file
from fleet_scene import canary_failed, change_rollout, report

from edgepack_cli.client import FleetClient
from edgepack_cli.commands import rollout as rollout_commands
from edgepack_cli.errors import FleetUnreachableError
from edgepack_contract.keys import read_private_key
from edgepack_contract.states import RolloutState
from edgepack_fleet.db.schema import Device
from edgepack_runtime.config import load_config


def added(cli, keys, folder, device="pi-1", *more):
    trust = ("--keyring", keys[0] / "keyring.json", "--owner", keys[1])
    return cli("device", "add", device, folder, *trust, *more)


@pytest.fixture
def rollout(fleet, cli):
    """A bundle on its way to three devices."""
    for number in (1, 2, 3):
        fleet.add_device(f"pi-{number}")
    cli("bundle", "push", bundle_file(fleet.folder))
    cli("group", "create", "all", "pi-1", "pi-2", "pi-3")
    ended = cli("rollout", "start", "digits:1.0.0", "--to", "all", "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)["id"]


def test_a_device_gets_a_folder_that_its_daemon_can_read(fleet, cli, keys, tmp_path):
    home = tmp_path / "pi-1"
    ended = added(cli, keys, home, "pi-1", "--label", "site=hall-2", "--port", "8123")
    assert (ended.code, ended.out) == (0, "device pi-1\n")
    assert f"edgepack run --config {home}/device.toml" in ended.err
    config = load_config(home / "device.toml", environ={})
    assert (config.device, config.serve.port, config.identity.owner) == ("pi-1", 8123, keys[1])
    assert {path.name: path.stat().st_mode & 0o777 for path in home.glob("*.key")} == {
        "device.key": 0o600, "mac.key": 0o600,
    }  # fmt: skip
    with fleet.context.database.read() as session:
        row = session.get_one(Device, "pi-1")
    public = read_private_key(home / "device.key").public
    assert row.enrolment == public.fingerprint
    assert row.labels == {"site": "hall-2"}
    assert (home / "mac.key").read_text() not in ended.out + ended.err


@pytest.mark.parametrize("name", ["device.key", "mac.key"])
def test_a_folder_with_keys_is_refused_before_the_fleet_hears_of_it(
    fleet, cli, keys, tmp_path, name
):
    home = tmp_path / "pi-1"
    home.mkdir()
    (home / name).write_text("precious")
    ended = added(cli, keys, home)
    assert ended.code == 3
    assert "never overwritten" in ended.err
    assert (home / name).read_text() == "precious"
    assert json.loads(cli("device", "list", "--json").out) == {"devices": []}


def test_a_device_whose_keyring_is_forged_is_not_added(fleet, cli, keys, tmp_path):
    ended = cli("device", "add", "pi-1", tmp_path / "pi-1",
                "--keyring", keys[0] / "keyring.json", "--owner", "0" * 64)  # fmt: skip
    assert ended.code == 6
    assert not (tmp_path / "pi-1").exists()
    assert json.loads(cli("device", "list", "--json").out) == {"devices": []}


def test_a_refused_device_leaves_no_folder(fleet, cli, keys, tmp_path):
    fleet.add_device("pi-1")
    ended = added(cli, keys, tmp_path / "pi-1")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("error: the fleet refused: ")
    assert "other keys" in ended.err
    assert not (tmp_path / "pi-1").exists()


@pytest.mark.parametrize(
    ("words", "code"), [(["Not-An-Id"], 78), (["pi-1", "--label", "nonsense"], 2)]
)
def test_a_malformed_device_is_refused(fleet, cli, keys, tmp_path, words, code):
    device, *more = words
    assert added(cli, keys, tmp_path / "x", device, *more).code == code
    assert not (tmp_path / "x").exists()


def test_devices_are_listed_with_what_they_run(fleet, cli):
    for number in (1, 2):
        fleet.add_device(f"pi-{number}")
    report(fleet, "pi-2", f"sha256:{'1' * 64}", "1.0.0", words="all is well")
    assert cli("device", "list").out.splitlines() == [
        "DEVICE  PRESENCE  SLOT    VERSION  PHASE      WHY",
        "pi-1    unknown   -       -        -",
        "pi-2    online    digits  1.0.0    succeeded  all is well",
    ]
    ended = cli("device", "why", "pi-2")
    assert (ended.code, ended.err) == (0, "")
    assert "pi-2 is online" in ended.out
    assert "runs 1.0.0" in ended.out


def test_groups(fleet, cli):
    for device, site in (("pi-1", "a"), ("pi-2", "b")):
        fleet.add_device(device, site=site)
    assert cli("group", "create", "listed", "pi-1", "pi-2").out == "group listed: pi-1, pi-2\n"
    assert cli("group", "create", "in-b", "--label", "site=b").out == "group in-b: site=b\n"
    assert cli("group", "list").out.splitlines() == [
        "GROUP   DEVICES", "in-b    pi-2", "listed  pi-1, pi-2",
    ]  # fmt: skip
    shown = json.loads(cli("group", "list", "--json").out)["groups"]
    assert [one["members"] for one in shown] == [["pi-2"], ["pi-1", "pi-2"]]
    for words in (["nobody", "pi-9"], ["empty"], ["both", "pi-1", "--label", "site=a"]):
        ended = cli("group", "create", *words)
        assert (ended.code, ended.out) == (3, ""), words
        assert "the fleet refused: " in ended.err


def test_bundles(fleet, cli, tmp_path):
    path = bundle_file(fleet.folder)
    digest = json.loads(cli("inspect", path, "--json").out)["digest"]
    assert cli("bundle", "push", path).out == f"digits:1.0.0 {digest}\n"
    head, row = cli("bundle", "list").out.splitlines()
    assert head.split() == ["BUNDLE", "VERSION", "SIZE", "DIGEST"]
    assert row.split() == ["digits", "1.0.0", *row.split()[2:4], digest]
    assert len(json.loads(cli("bundle", "list", "--json").out)["bundles"]) == 1


def test_an_unsigned_bundle_is_refused_with_what_helps(fleet, cli):
    ended = cli("bundle", "push", bundle_file(fleet.folder, signer=None))
    assert (ended.code, ended.out) == (3, "")
    assert "edgepack sign" in ended.err
    assert cli("bundle", "list").out.splitlines() == ["BUNDLE  VERSION  SIZE  DIGEST"]


def test_tokens(fleet, cli, monkeypatch):
    secret = cli("token", "create", "ci", "--role", "viewer", "--days", "30").out.strip()
    row = next(
        one for one in cli("token", "list").out.splitlines() if one.startswith("ci ")
    ).split()
    assert row[1:] == ["viewer", "-", "2026-06-27", "-"]
    assert secret not in cli("token", "list", "--json").out
    with monkeypatch.context() as patch:
        patch.setenv("EDGEPACK_TOKEN", secret)
        assert cli("device", "list").code == 0
        refused = cli("token", "create", "more", "--role", "admin")
        assert refused.code == 3
        assert "the fleet refused: " in refused.err
    assert cli("token", "revoke", "ci").out == "token ci is revoked\n"
    monkeypatch.setenv("EDGEPACK_TOKEN", secret)
    assert cli("device", "list").code == 3


def test_a_rollout_is_started_shown_and_explained(rollout, cli):
    shown = cli("rollout", "status", rollout)
    assert shown.code == 0
    assert shown.out.splitlines()[0] == f"{rollout}: digits 1.0.0 to all is running"
    assert json.loads(cli("rollout", "status", rollout, "--json").out)["id"] == rollout
    assert cli("rollout", "list").out.splitlines()[1].split() == [rollout, "all", "running"]
    assert len(json.loads(cli("rollout", "list", "--json").out)["rollouts"]) == 1
    assert "Next:" in cli("rollout", "why", rollout).out


@pytest.mark.parametrize(
    ("verb", "state"), [("pause", "paused"), ("rollback", "rolling_back"), ("abort", "aborted")]
)
def test_a_rollout_is_steered(rollout, cli, verb, state):
    ended = cli("rollout", verb, rollout)
    assert (ended.code, ended.out) == (0, f"rollout {rollout} is {state}\n"), ended.err


@pytest.mark.parametrize("verb", ["resume", "promote"])
def test_what_a_rollout_cannot_do_now_is_said(rollout, cli, verb):
    ended = cli("rollout", verb, rollout)
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith(f"error: the fleet refused: rollout {rollout} is running")
    assert cli("rollout", verb, "none").code == 3


def test_a_paused_rollout_goes_on(rollout, cli):
    cli("rollout", "pause", rollout)
    assert cli("rollout", "resume", rollout).out == f"rollout {rollout} is running\n"


def test_options_of_a_rollout_come_from_a_file(rollout, fleet, cli, tmp_path):
    cli("rollout", "abort", rollout)
    options = tmp_path / "options.toml"
    options.write_text('stages = ["2", "100%"]\nsoak_seconds = 9.0\n[gates.errors]\nlimit = 0.1\n')
    words = ("rollout", "start", "digits:1.0.0", "--to", "all", "--options", options)
    ended = cli(*words, "--json")
    assert ended.code == 0, ended.err
    started = json.loads(ended.out)
    assert [len(stage["devices"]) for stage in started["stages"]] == [2, 1]
    assert started["options"]["soak_seconds"] == 9.0
    assert started["options"]["gates"]["errors"]["limit"] == 0.1
    cli("rollout", "abort", started["id"])
    options.write_text("soak_second = 9.0\n")
    ended = cli(*words)
    assert ended.code == 3
    assert "soak_second" in ended.err
    options.write_text("soak_seconds\n")
    assert cli(*words).code == 78


def test_a_rollout_without_a_version_is_usage(rollout, cli):
    ended = cli("rollout", "start", "digits", "--to", "all")
    assert ended.code == 2
    assert "NAME:VERSION" in ended.err


WATCHED = [
    (RolloutState.COMPLETED, 0), (RolloutState.PAUSED, 10),
    (RolloutState.COMPLETED_WITH_FAILURES, 11), (RolloutState.ABORTED, 11),
    (RolloutState.ROLLED_BACK, 11), (RolloutState.ROLLBACK_INCOMPLETE, 11),
]  # fmt: skip


@pytest.mark.parametrize(("state", "code"), WATCHED)
def test_watching_ends_with_what_became_of_it(rollout, fleet, cli, state, code):
    change_rollout(fleet, rollout, state=state, reason="because")
    ended = cli("rollout", "watch", rollout)
    assert (ended.code, ended.err) == (code, "")
    head, reason, *_ = ended.out.splitlines()
    assert head.endswith(f" is {state}")
    assert reason == "  because"


@pytest.mark.parametrize("state", [RolloutState.RUNNING, RolloutState.ROLLING_BACK])
def test_watching_has_an_end(rollout, fleet, cli, state):
    change_rollout(fleet, rollout, state=state)
    ended = cli("rollout", "watch", rollout, "--timeout", "0")
    assert ended.code == 12
    assert "has not ended after 0 s" in ended.err


def test_watching_shows_every_change_once(rollout, fleet, cli, monkeypatch):
    story = iter([None, None, RolloutState.ROLLING_BACK, None, RolloutState.ROLLED_BACK])

    def next_part(_seconds):
        state = next(story)
        if state is not None:
            change_rollout(fleet, rollout, state=state)

    monkeypatch.setattr(rollout_commands.time, "sleep", next_part)
    ended = cli("rollout", "watch", rollout)
    assert ended.code == 11
    heads = [line for line in ended.out.splitlines() if line.startswith(rollout)]
    assert [line.rsplit(" ", 1)[1] for line in heads] == ["running", "rolling_back", "rolled_back"]


def failing_client(monkeypatch, answers):
    """A fleet service that goes away and may come back."""
    get = FleetClient.get

    def sometimes(self, path, **query):
        if next(answers):
            return get(self, path, **query)
        raise FleetUnreachableError("the fleet service does not answer")

    monkeypatch.setattr(FleetClient, "get", sometimes)


def test_watching_outlives_a_restart_of_the_fleet(rollout, fleet, cli, monkeypatch):
    failing_client(monkeypatch, iter([True, False, False, True]))
    naps = iter([None, None, lambda: change_rollout(fleet, rollout, state=RolloutState.COMPLETED)])

    def nap(_seconds):
        act = next(naps)
        if act is not None:
            act()

    monkeypatch.setattr(rollout_commands.time, "sleep", nap)
    ended = cli("rollout", "watch", rollout)
    assert ended.code == 0
    assert ended.err == "the fleet service does not answer; trying again\n"


def test_watching_does_not_wait_for_a_fleet_that_stays_away(rollout, cli, monkeypatch):
    failing_client(monkeypatch, itertools.chain([True], itertools.repeat(False)))
    monkeypatch.setattr(rollout_commands, "AWAY_SECONDS", 0.0)
    monkeypatch.setattr(rollout_commands.time, "sleep", lambda _seconds: None)
    ended = cli("rollout", "watch", rollout)
    assert ended.code == 3
    assert ended.err.endswith("error: the fleet service does not answer\n")


def test_waiting_for_a_rollout_watches_it(rollout, fleet, cli, monkeypatch):
    cli("rollout", "abort", rollout)

    def finish(_seconds):
        (running,) = [
            one["id"]
            for one in json.loads(cli("rollout", "list", "--json").out)["rollouts"]
            if one["state"] == "running"
        ]
        change_rollout(fleet, running, state=RolloutState.COMPLETED)

    monkeypatch.setattr(rollout_commands.time, "sleep", finish)
    ended = cli("rollout", "start", "digits:1.0.0", "--to", "all", "--wait")
    assert ended.code == 0
    assert ended.err.startswith("rollout digits-1-0-0-")
    assert "is completed" in ended.out


def test_a_failed_canary_is_explained_in_words_and_numbers(fleet, cli):
    rollout = canary_failed(fleet)
    change_rollout(fleet, rollout, state=RolloutState.ROLLED_BACK)
    ended = cli("rollout", "watch", rollout)
    assert ended.code == 11
    assert "    ✘ agreement  agreement with 1.0.0 is 11.2 % of 214 pairs" in ended.out
    assert "11.2 % of 214 pairs" in cli("rollout", "why", rollout).out

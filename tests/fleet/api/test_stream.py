"""The stream of changes, over a real socket."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager

import httpx
import pytest
from fleet_http import open_fleet, served
from fleet_scene import canary_failed, change_rollout, report

from edgepack_contract.states import RolloutState
from edgepack_fleet.api.stream import Part, _frames
from edgepack_fleet.tokens import revoke_token

DEADLINE_SECONDS = 30.0


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        canary_failed(fleet)
        yield fleet


@contextmanager
def following(fleet, url, last_id=None):
    """An iterator of (kind, id, document) off the stream."""
    headers = {"Authorization": f"Bearer {fleet.tokens['viewer']}"}
    if last_id is not None:
        headers["Last-Event-ID"] = last_id
    with httpx.stream("GET", f"{url}/api/v1/stream", headers=headers, timeout=30) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        yield events(answer.iter_lines())


def events(lines):
    fields = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield fields["event"], fields["id"], json.loads(fields["data"])
            fields = {}
        else:
            fields = {}


def until(stream, test):
    deadline = time.monotonic() + DEADLINE_SECONDS
    for kind, identifier, document in stream:
        if test(kind, document):
            return identifier, document
        assert time.monotonic() < deadline
    raise AssertionError("the stream ended")


def test_it_begins_with_everything_and_goes_on_with_what_changes(fleet):
    with served(fleet) as url, following(fleet, url) as stream:
        first, second = next(stream), next(stream)
        assert (first[0], second[0]) == ("devices", "rollouts")
        assert [one["id"] for one in first[2]["items"]] == [f"pi-{n}" for n in range(1, 6)]
        (rollout,) = second[2]["items"]
        assert rollout["state"] == "rolling_back"
        assert first[2]["now_ms"] == fleet.clock()

        change_rollout(fleet, rollout["id"], state=RolloutState.ROLLED_BACK)
        kind, _, document = next(stream)
        assert kind == "rollouts"
        assert document["items"][0]["state"] == "rolled_back"

        report(fleet, "pi-5", f"sha256:{'9' * 64}", "2.0.0")
        kind, _, document = next(stream)
        assert kind == "devices"
        assert document["items"][4]["slots"]["digits"]["version"] == "2.0.0"


def test_whoever_comes_back_gets_only_what_changed(fleet):
    with served(fleet) as url:
        with following(fleet, url) as stream:
            next(stream)
            _, last_id, _ = next(stream)
        report(fleet, "pi-5", f"sha256:{'9' * 64}", "2.0.0")
        with following(fleet, url, last_id) as stream:
            kind, newer, document = next(stream)
        assert kind == "devices"
        assert document["items"][4]["slots"]["digits"]["version"] == "2.0.0"
        assert newer.split(".")[1] == last_id.split(".")[1]


def test_it_ends_with_the_token(fleet):
    with served(fleet) as url, following(fleet, url) as stream:
        next(stream), next(stream)
        with fleet.context.database.write() as session:
            revoke_token(session, "viewer")
        assert list(stream) == []


def test_it_ends_when_the_service_stops(fleet):
    with served(fleet) as url, following(fleet, url) as stream:
        next(stream), next(stream)
        fleet.stopping.set()
        assert list(stream) == []


def test_it_needs_a_token(fleet):
    with served(fleet) as url:
        assert httpx.get(f"{url}/api/v1/stream").status_code == 401
        token = fleet.tokens["viewer"]
        assert httpx.get(f"{url}/api/v1/stream?token={token}").status_code == 401


def test_an_id_names_only_what_was_sent_before_it():
    parts = (Part("devices", "d1", b"[]"), Part("rollouts", "r1", b"[]"))
    frames = _frames(1, parts, set()).split(b"\n\n")
    assert b"id: d1\n" in frames[0]
    assert b"id: d1.r1\n" in frames[1]
    assert _frames(1, parts, {"d1", "r1"}) == b""
    assert b"id: d1.r1\n" in _frames(1, parts, {"r1"})

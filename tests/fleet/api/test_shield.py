"""Foreign hosts and foreign pages are turned away, and every answer carries its headers."""

from __future__ import annotations

import pytest
from fleet_http import open_fleet

from edgepack_fleet.api.app import accepted_hosts
from edgepack_fleet.api.origin import foreign_origin, host_name
from edgepack_fleet.config import HttpConfig

GROUP = {"name": "g", "labels": {}}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with open_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:8080", "127.0.0.1"]
)
def test_a_loopback_name_is_answered(fleet, host):
    assert fleet.client("viewer").get("/api/v1/me", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "",
     "[::1", "a@127.0.0.1@b", "10.0.0.1"],
)  # fmt: skip
def test_a_rebound_name_is_not(fleet, host):
    answer = fleet.client("viewer").get("/api/v1/me", headers={"Host": host})
    assert (answer.status_code, answer.json()["code"]) == (403, "foreign-host")


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://["},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8080"},
    ],
)  # fmt: skip
def test_a_foreign_page_changes_nothing(fleet, headers):
    answer = fleet.client("operator").post("/api/v1/groups", json=GROUP, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "foreign-origin")
    assert fleet.client("viewer").get("/api/v1/groups").json()["items"] == []


@pytest.mark.parametrize(
    "headers",
    [{}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"},
     {"Origin": "http://127.0.0.1:8080"}],
)  # fmt: skip
def test_the_own_page_and_programs_do(tmp_path, headers):
    with open_fleet(tmp_path) as fleet:
        answer = fleet.client("operator").post("/api/v1/groups", json=GROUP, headers=headers)
        assert answer.status_code == 201


def test_reading_is_safe_from_anywhere():
    assert foreign_origin("GET", {"sec-fetch-site": "cross-site"}) is None
    assert foreign_origin("PUT", {"sec-fetch-site": "cross-site"}) is not None


@pytest.mark.parametrize("path", ["/", "/api/v1/me", "/api/v1/nothing", "/v2/", "/healthz"])
def test_every_answer_carries_the_security_headers(fleet, path):
    answer = fleet.client().get(path)
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert "Cache-Control" in answer.headers
    assert "Set-Cookie" not in answer.headers


def test_a_listener_that_is_not_on_loopback_answers_to_any_name():
    assert accepted_hosts(HttpConfig(host="0.0.0.0")) is None
    loopback = accepted_hosts(HttpConfig(public_url="https://fleet.example:8443/x"))
    assert loopback == {"127.0.0.1", "localhost", "::1", "fleet.example"}


def test_the_host_of_an_authority():
    assert host_name("[::1]:80") == "::1"
    assert host_name("Fleet.Example:80") == "fleet.example"
    assert host_name("[") == ""

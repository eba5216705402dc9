"""Foreign hosts and foreign pages are turned away, and every answer carries its headers."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from fastapi.responses import Response
from fleet_http import HOST, Client, open_fleet

from edgepack_fleet.api.app import accepted_hosts, build_app
from edgepack_fleet.api.cookies import set_cookie
from edgepack_fleet.api.origin import foreign_origin, host_name, not_the_own_page, own_origins
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


def check_headers(answer):
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert "Cache-Control" in answer.headers
    assert "Set-Cookie" not in answer.headers


PATHS = [
    "/", "/app.js", "/login.js", "/style.css", "/icon.svg", "/api/v1/me", "/api/v1/nothing",
    "/v2/", "/healthz", "/api/v1/login", "/api/v1/devices?limit=x",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("role", [None, "viewer"])
def test_every_answer_carries_the_security_headers(fleet, path, role):
    answer = fleet.client(role).get(path)
    check_headers(answer)
    assert "Strict-Transport-Security" not in answer.headers
    check_headers(fleet.client(role).request("TRACE", path))
    check_headers(fleet.client(role, Host="evil.example").get(path))


def test_even_a_bug_carries_them(fleet, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError

    monkeypatch.setattr("edgepack_fleet.devices.list_devices", broken)
    answer = fleet.client("viewer").get("/api/v1/devices")
    assert answer.status_code == 500
    check_headers(answer)


@pytest.mark.parametrize("path", ["/api/v1/me", "/api/v1/devices", "/api/v1/nothing", "/metrics"])
def test_what_takes_credentials_is_stored_nowhere(fleet, path):
    assert fleet.client("viewer").get(path).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "http",
    [
        HttpConfig(tls_certificate="c", tls_key="k", public_url=HOST),
        HttpConfig(public_url="https://fleet.example"),
    ],
)
def test_with_tls_browsers_never_come_without_again(fleet, http):
    config = msgspec.structs.replace(fleet.context.config, http=http)
    app = build_app(replace(fleet.context, config=config))
    for path in PATHS:
        answer = Client(app, {}).get(path)
        check_headers(answer)
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"


def test_with_tls_the_cookie_belongs_to_this_host_alone(fleet):
    http = HttpConfig(public_url="https://127.0.0.1:8443")
    response = Response()
    set_cookie(response, http, "secret")
    assert cookie_parts(response) == {
        "__Host-edgepack=secret", "HttpOnly", "Max-Age=43200", "Path=/", "SameSite=strict", "Secure"
    }  # fmt: skip
    response = Response()
    set_cookie(response, HttpConfig(), "secret")
    assert cookie_parts(response) == {
        "edgepack-session=secret", "HttpOnly", "Max-Age=43200", "Path=/", "SameSite=strict"
    }  # fmt: skip


def cookie_parts(response):
    return set(response.headers["Set-Cookie"].split("; "))


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({}, False), ({"sec-fetch-site": "same-origin"}, True), ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "same-site"}, False), ({"sec-fetch-site": "cross-site"}, False),
        ({"origin": "https://fleet.example"}, True), ({"origin": "https://FLEET.example"}, True),
        ({"origin": "http://fleet.example"}, False), ({"origin": "null"}, False),
        ({"origin": "https://fleet.example:8443"}, False), ({"origin": ""}, False),
        ({"origin": "https://evil.example", "host": "evil.example"}, False),
        ({"origin": "https://fleet.example", "sec-fetch-site": "cross-site"}, False),
    ],
)  # fmt: skip
def test_only_the_own_page_uses_a_cookie(headers, own):
    origins = own_origins("https://fleet.example:443/path")
    assert (not_the_own_page("POST", headers, origins) is None) is own
    assert not_the_own_page("GET", headers, origins) is None


def test_the_page_on_loopback_has_as_many_origins_as_loopback_has_names():
    assert own_origins("http://127.0.0.1:8080") == {
        "http://127.0.0.1:8080", "http://localhost:8080", "http://[::1]:8080"
    }  # fmt: skip


def test_a_listener_that_is_not_on_loopback_answers_to_any_name():
    assert accepted_hosts(HttpConfig(host="0.0.0.0")) is None
    loopback = accepted_hosts(HttpConfig(public_url="https://fleet.example:8443/x"))
    assert loopback == {"127.0.0.1", "localhost", "::1", "fleet.example"}


def test_the_host_of_an_authority():
    assert host_name("[::1]:80") == "::1"
    assert host_name("Fleet.Example:80") == "fleet.example"
    assert host_name("[") == ""

"""Every route declares a role, and keeps everybody else out."""

from __future__ import annotations

import pytest
from fastapi.routing import APIRoute
from fleet_http import START_MS, basic, device_header, open_fleet

from edgepack_fleet.api.openapi import role_of
from edgepack_fleet.db.schema import Device, TokenRow
from edgepack_fleet.tokens import Role, list_tokens, revoke_token

ROLES = ("viewer", "operator", "publisher", "admin")
VALUES = {
    "device": "pi-1",
    "name": "digits",
    "version": "1.0.0",
    "rollout": "r-1",
    "digest": "x",
    "reference": "1.0.0",
    "verb": "pause",
}


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        yield fleet


def routes(fleet):
    return [(route, method) for route in fleet.app.routes for method in sorted(route.methods)]


def test_every_route_declares_a_role_before_anything_else(fleet):
    assert len(fleet.app.routes) > 20
    for route in fleet.app.routes:
        assert isinstance(route, APIRoute), f"{route.path} is not a route of ours"
        assert role_of(route) is not None, f"{route.path} declares no role"


def test_only_the_page_and_what_describes_the_service_is_public(fleet):
    public = {route.path for route in fleet.app.routes if role_of(route) is Role.PUBLIC}
    assert public == {"/", "/app.js", "/style.css", "/icon.svg", "/healthz", "/api/v1/openapi.json"}


def test_devices_reach_nothing_but_the_pull_api(fleet):
    open_to_devices = {r.path for r in fleet.app.routes if role_of(r) is Role.DEVICE}
    assert open_to_devices
    assert all(path.startswith("/v2/") for path in open_to_devices)


def test_what_changes_something_needs_more_than_a_viewer(fleet):
    for route, method in routes(fleet):
        # a plan is asked for with a body, and changes nothing
        if method not in ("GET", "HEAD") and route.path != "/api/v1/rollouts:plan":
            assert role_of(route).rank > Role.VIEWER.rank, f"{method} {route.path}"


def test_every_route_refuses_everyone_below_its_role(fleet):
    fleet.add_device("pi-1")
    callers = {Role.PUBLIC: {}, Role.DEVICE: {"Authorization": device_header("pi-1")}}
    callers |= {Role(r): {"Authorization": f"Bearer {fleet.tokens[r]}"} for r in ROLES}
    client = fleet.client()
    tried = 0
    for route, method in routes(fleet):
        path = route.path.format(**{name: VALUES[name] for name in route.param_convertors})
        if path.endswith("/stream"):
            continue  # endless for those it lets in; tested on a real server
        for role, headers in callers.items():
            answer = client.request(method, path, headers=headers)
            expected = {401} if role is Role.PUBLIC else {403}
            if role.rank >= role_of(route).rank:
                assert answer.status_code not in (401, 403), f"{role} {method} {path}"
            else:
                assert answer.status_code in expected, f"{role} {method} {path}"
            assert answer.status_code < 500, f"{role} {method} {path}: {answer.text}"
            tried += 1
    assert tried > 100


@pytest.mark.parametrize(
    "header",
    [
        "", "Bearer", "Bearer ", "Bearer epa_wrong", "Basic", "Basic !!!", "Digest x",
        b"Bearer \xc3\xa9", basic("token", "epa_wrong"), basic("pi-1", ""),
        basic("pi-1", "0" * 64), basic("pi-9", "0" * 64), basic("", ""), "Basic AAAA",
    ],
)  # fmt: skip
def test_wrong_credentials_are_401_with_a_challenge(fleet, header):
    fleet.add_device("pi-1")
    client = fleet.client()
    for path, scheme in (("/api/v1/devices", "Bearer"), ("/v2/", "Basic")):
        answer = client.get(path, headers={"Authorization": header})
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith(scheme)


def test_a_token_expires(fleet):
    client = fleet.client("viewer")
    assert client.get("/api/v1/devices").status_code == 200
    fleet.clock.now_ms = START_MS + 91 * 86_400_000
    assert client.get("/api/v1/devices").status_code == 401


def test_a_revoked_token_is_worthless_at_once(fleet):
    client = fleet.client("viewer")
    assert client.get("/api/v1/devices").status_code == 200
    with fleet.context.database.write() as session:
        revoke_token(session, "viewer")
    assert client.get("/api/v1/devices").status_code == 401


def test_the_use_of_a_token_is_written_down_but_not_every_time(fleet):
    client = fleet.client("viewer")

    def last_used():
        with fleet.context.database.read() as session:
            return next(t.last_used_ms for t in list_tokens(session) if t.name == "viewer")

    assert last_used() is None
    for later in (0, 1000, 61_000):
        fleet.clock.now_ms = START_MS + later
        client.get("/api/v1/devices")
    assert last_used() == START_MS + 61_000


def test_only_a_hash_of_a_token_is_kept(fleet):
    with fleet.context.database.read() as session:
        kept = [str(vars(row)) for row in session.query(TokenRow)]
    assert len(kept) == 4
    for token in fleet.tokens.values():
        assert token.startswith("epa_")
        assert not any(token in row or token[4:] in row for row in kept)


def test_a_decommissioned_device_pulls_nothing(fleet):
    fleet.add_device("pi-1")
    client = fleet.client(Authorization=device_header("pi-1"))
    assert client.get("/v2/").status_code == 200
    with fleet.context.database.write() as session:
        session.get(Device, "pi-1").status = "decommissioned"
    assert client.get("/v2/").status_code == 401


def test_one_devices_secret_is_no_other_devices(fleet):
    fleet.add_device("pi-1")
    with fleet.context.database.write() as session:
        session.get(Device, "pi-1").mac_key = b"\1" * 32
    fleet.add_device("pi-2")
    assert fleet.client(Authorization=device_header("pi-1")).get("/v2/").status_code == 401
    assert fleet.client(Authorization=device_header("pi-2")).get("/v2/").status_code == 200


def test_cookies_and_query_strings_are_no_credentials(fleet):
    token = fleet.tokens["admin"]
    client = fleet.client(Cookie=f"token={token}; Authorization={token}")
    assert client.get("/api/v1/devices").status_code == 401
    assert client.get(f"/api/v1/devices?token={token}&access_token={token}").status_code == 401


def test_me_says_who_asks(fleet):
    assert fleet.client("operator").get("/api/v1/me").json() == {
        "name": "operator",
        "role": "operator",
    }

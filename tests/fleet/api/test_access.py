"""Every route declares a role, and keeps everybody else out."""

from __future__ import annotations

from collections import defaultdict

import pytest
from fastapi.routing import APIRoute
from fleet_http import START_MS, basic, device_header, open_fleet

from edgepack_fleet.api.openapi import role_of
from edgepack_fleet.db.schema import Device, TokenRow, UserRow
from edgepack_fleet.grants import EVERYTHING, Role
from edgepack_fleet.logins import open_login
from edgepack_fleet.people import add_user, remove_user
from edgepack_fleet.tokens import DEFAULT_TTL_SECONDS, create_token, list_tokens, revoke_token

ROLES = ("viewer", "operator", "publisher", "admin")
VALUES = defaultdict(lambda: "x") | {
    "device": "pi-2",
    "name": "digits",
    "version": "1.0.0",
    "rollout": "r-1",
    "digest": "x",
    "reference": "1.0.0",
    "verb": "pause",
}
DOORS = ("/api/v1/login", "/api/v1/enrol")
"""Where one gets in: public, and limited in how often one may ask."""
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}
HOUR_MS = 3_600_000


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


def test_only_the_page_the_doors_and_what_describes_the_service_are_public(fleet):
    public = {route.path for route in fleet.app.routes if role_of(route) is Role.PUBLIC}
    page = {"/", "/app.js", "/login.js", "/style.css", "/icon.svg"}
    described = {"/healthz", "/api/v1/openapi.json", "/api/v1/keyring", "/api/v1/crl"}
    assert public - page - described == {path for path in public if path.startswith(DOORS)}


def test_devices_reach_nothing_but_the_pull_api(fleet):
    open_to_devices = {r.path for r in fleet.app.routes if role_of(r) is Role.DEVICE}
    assert open_to_devices
    assert all(path.startswith("/v2/") for path in open_to_devices)


def test_what_changes_something_needs_more_than_a_viewer(fleet):
    # a plan is asked for with a body and changes nothing; logging out changes only who asks
    own = {"/api/v1/rollouts:plan", "/api/v1/logout"}
    for route, method in routes(fleet):
        if method not in ("GET", "HEAD") and not route.path.startswith(DOORS):
            higher = role_of(route).rank > Role.VIEWER.rank
            assert higher or route.path in own, f"{method} {route.path}"


def test_every_door_that_needs_no_credentials_is_limited(fleet):
    doors = [
        route
        for route in fleet.app.routes
        if role_of(route) is Role.PUBLIC and route.methods - {"GET", "HEAD"}
    ]
    assert len(doors) >= 6
    for route in doors:
        limits = [getattr(one.call, "__qualname__", "") for one in route.dependant.dependencies]
        assert any(name.startswith("limited.") for name in limits), route.path


def log_in(fleet, name, role):
    """A person with a browser that is logged in; gives the cookie's header."""
    with fleet.context.database.write() as session:
        add_user(session, name=name, role=role, scope=EVERYTHING, now_ms=fleet.clock())
        return {"Cookie": f"edgepack-session={open_login(session, name, now_ms=fleet.clock())}"}


def callers(fleet):
    """Everybody who may knock: what they send and the role that it should give them."""
    fleet.add_device("pi-1")
    fleet.add_device("pi-2")
    gone = log_in(fleet, "gone", Role.ADMIN)
    with fleet.context.database.write() as session:
        remove_user(session, "gone")
        revoked = create_token(session, name="revoked", role=Role.ADMIN, now_ms=START_MS)
        revoke_token(session, "revoked")
        expired = create_token(
            session, name="expired", role=Role.ADMIN, now_ms=START_MS - 9000, ttl_seconds=9
        )
        session.add(UserRow(name="late", role="admin", created_ms=START_MS))
        session.flush()
        late = open_login(session, "late", now_ms=START_MS - 12 * HOUR_MS)
    admin = f"Bearer {fleet.tokens['admin']}"
    knocking = {
        "nobody": (Role.PUBLIC, {}),
        "a device": (Role.DEVICE, {"Authorization": device_header("pi-1")}),
        "an expired token": (Role.PUBLIC, {"Authorization": f"Bearer {expired}"}),
        "a revoked token": (Role.PUBLIC, {"Authorization": f"Bearer {revoked}"}),
        "a mistyped token": (Role.PUBLIC, {"Authorization": admin[:-1] + "!"}),
        "a person who is gone": (Role.PUBLIC, gone | OWN_PAGE),
        "a login of yesterday": (Role.PUBLIC, {"Cookie": f"edgepack-session={late}"} | OWN_PAGE),
        "a cookie of another name": (
            Role.PUBLIC, {"Cookie": f"__Host-edgepack={fleet.tokens['admin']}"} | OWN_PAGE
        ),
    }  # fmt: skip
    for name in ROLES:
        cookie = log_in(fleet, f"person-{name}", Role(name)) | OWN_PAGE
        token = {"Authorization": f"Bearer {fleet.tokens[name]}"}
        knocking[f"the token of a {name}"] = (Role(name), token)
        knocking[f"a logged-in {name}"] = (Role(name), cookie)
        knocking[f"a {name} with the cookie of an admin too"] = (Role(name), cookie | token)
    return knocking


def test_every_route_refuses_everyone_below_its_role(fleet):
    client, tried, knocking = fleet.client(), 0, callers(fleet)
    for route, method in routes(fleet):
        path = route.path.format_map(VALUES)
        if path.endswith(("/stream", "/logout")):
            continue  # endless, or the end of the login, for those it lets in; tested elsewhere
        for name, (role, headers) in knocking.items():
            fleet.clock.now_ms += 3000
            answer = client.request(method, path, headers=headers)
            what = f"{name}: {method} {path}: {answer.status_code} {answer.text}"
            if role.rank >= role_of(route).rank:
                assert answer.status_code not in (401, 403), what
            else:
                assert answer.status_code == (401 if role is Role.PUBLIC else 403), what
            assert answer.status_code < 500, what
            tried += 1
    assert tried > 700


def test_a_cookie_without_proof_of_the_own_page_changes_nothing(fleet):
    cookie = log_in(fleet, "anna", Role.ADMIN)
    for route, method in routes(fleet):
        if role_of(route).rank < Role.VIEWER.rank or method in ("GET", "HEAD"):
            continue
        answer = fleet.client().request(method, route.path.format_map(VALUES), headers=cookie)
        assert (answer.status_code, answer.json()["code"]) == (403, "foreign-origin"), route.path
    assert fleet.client(**cookie).get("/api/v1/me").status_code == 200


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


def test_tokens_in_cookies_and_query_strings_are_no_credentials(fleet):
    token = fleet.tokens["admin"]
    client = fleet.client(Cookie=f"token={token}; Authorization={token}; edgepack-session={token}")
    assert client.get("/api/v1/devices").status_code == 401
    assert client.get(f"/api/v1/devices?token={token}&access_token={token}").status_code == 401


def test_me_says_who_asks(fleet):
    everything = {"bundles": ["*"], "groups": ["*"]}
    me = {"name": "operator", "role": "operator", **everything, "login": False}
    me["expires_ms"] = fleet.clock() + DEFAULT_TTL_SECONDS * 1000
    assert fleet.client("operator").get("/api/v1/me").json() == me
    anna = {"name": "anna", "role": "viewer", **everything, "login": True, "expires_ms": None}
    assert fleet.client(**log_in(fleet, "anna", Role.VIEWER)).get("/api/v1/me").json() == anna

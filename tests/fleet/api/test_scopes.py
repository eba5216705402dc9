"""Tokens and people who are limited to some bundles and groups, on every route where it counts."""

from __future__ import annotations

import inspect

import pytest
from fleet_http import bundle_file, open_fleet
from fleet_scene import canary_failed, load

from edgepack_contract.states import RolloutState
from edgepack_fleet.api.openapi import role_of
from edgepack_fleet.grants import Role

BODY = {"bundle": "digits", "version": "1.1.0", "group": "all"}


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        yield fleet


def limited(fleet, role="publisher", **limits):
    """A client with a token of this role and these limits."""
    name = f"limited-{len(fleet.tokens)}"
    body = {"name": name, "role": role, **limits}
    answer = fleet.client("admin").post("/api/v1/tokens", json=body)
    assert answer.status_code == 201, answer.text
    fleet.tokens[name] = answer.json()["token"]
    return fleet.client(name)


def knocks(rollout_id, content):
    """Requests that change something for devices."""
    steer = {
        ("POST", f"/api/v1/rollouts/{rollout_id}/{verb}"): {"json": {}}
        for verb in ("pause", "resume", "promote", "abort", "rollback")
    }
    return {
        ("PUT", "/api/v1/bundles"): {"content": content},
        ("POST", "/api/v1/groups"): {"json": {"name": "new", "labels": {}}},
        ("POST", "/api/v1/rollouts"): {"json": BODY},
        **steer,
    }


def test_every_route_for_operators_and_publishers_asks_for_the_limits(fleet):
    asking = [
        route
        for route in fleet.app.routes
        if Role.VIEWER.rank < role_of(route).rank < Role.ADMIN.rank
        # to take something away gives nobody more than they had
        and route.methods - {"GET", "HEAD", "DELETE"}
    ]
    assert len(asking) >= 4
    for route in asking:
        source = inspect.getsource(route.endpoint)
        assert "check_scope(who" in source or "check_every_group(who" in source, (
            f"{route.path} changes something for devices: check_scope the bundle and the group, or "
            "check_every_group"
        )


@pytest.mark.parametrize("limits", [{"bundles": ["other*"]}, {"groups": ["gateways"]}])
def test_whoever_is_limited_to_others_changes_nothing(fleet, limits):
    rollout_id = canary_failed(fleet)
    content = bundle_file(fleet.folder, version="2.0.0").read_bytes()
    client = limited(fleet, **limits)
    free = {"/api/v1/groups"} if "bundles" in limits else {"/api/v1/bundles"}
    for (method, path), options in knocks(rollout_id, content).items():
        answer = client.request(method, path, **options)
        if path in free:
            assert answer.status_code == 201, answer.text
            continue
        assert (answer.status_code, answer.json()["code"]) == (403, "out-of-scope"), path
        assert "limited to bundles" in answer.json()["detail"]
    assert load(fleet, rollout_id).state is RolloutState.ROLLING_BACK


def test_a_refused_push_leaves_no_bundle(fleet):
    content = bundle_file(fleet.folder).read_bytes()
    answer = limited(fleet, bundles=["other"]).put("/api/v1/bundles", content=content)
    assert answer.json()["code"] == "out-of-scope"
    assert fleet.client("viewer").get("/api/v1/bundles").json()["items"] == []
    assert limited(fleet, bundles=["dig*"]).put("/api/v1/bundles", content=content).is_success


def test_within_its_limits_a_token_does_everything(fleet):
    rollout_id = canary_failed(fleet)
    client = limited(fleet, "operator", bundles=["dig*"], groups=["a*"])
    answer = client.post(f"/api/v1/rollouts/{rollout_id}/abort", json={})
    assert answer.json().get("code") != "out-of-scope"
    assert client.post("/api/v1/rollouts", json=BODY).json().get("code") != "out-of-scope"
    outside = client.post("/api/v1/rollouts", json=BODY | {"group": "gateways"})
    assert outside.json()["code"] == "out-of-scope"
    assert "group gateways" in outside.json()["detail"]


def test_looking_is_not_limited(fleet):
    canary_failed(fleet)
    client = limited(fleet, "viewer", bundles=["other"], groups=["other"])
    assert len(client.get("/api/v1/rollouts").json()["items"]) == 1
    assert client.get("/api/v1/me").json()["bundles"] == ["other"]


@pytest.mark.parametrize("path", ["/api/v1/tokens", "/api/v1/users"])
def test_nobody_gives_more_than_they_have(fleet, path):
    client = limited(fleet, "admin", bundles=["churn-*"], groups=["gateways"])
    for more in (
        {}, {"bundles": ["churn-*"]}, {"groups": ["gateways"]},
        {"bundles": ["churn*"], "groups": ["gateways"]},
        {"bundles": ["churn-1", "digits"], "groups": ["gateways"]},
    ):  # fmt: skip
        answer = client.post(path, json={"name": "more", "role": "viewer", **more})
        assert (answer.status_code, answer.json()["code"]) == (403, "out-of-scope"), more
        assert "bundles churn-*; groups gateways" in answer.json()["detail"]
    less = {"bundles": ["churn-eu-*", "churn-1"], "groups": ["gateways"]}
    answer = client.post(path, json={"name": "less", "role": "admin", **less})
    assert answer.status_code == 201


def test_a_limited_admin_becomes_nobody_who_has_more(fleet):
    whole = {"name": "anna", "role": "viewer"}
    fleet.client("admin").post("/api/v1/users", json=whole)
    client = limited(fleet, "admin", groups=["gateways"])
    answer = client.post("/api/v1/users/anna/reset", json={})
    assert (answer.status_code, answer.json()["code"]) == (403, "out-of-scope")


def test_a_token_lists_its_limits(fleet):
    limited(fleet, bundles=["b-*", "a"], groups=["g"])
    tokens = fleet.client("admin").get("/api/v1/tokens").json()["items"]
    (one,) = [token for token in tokens if token["name"].startswith("limited")]
    assert (one["bundles"], one["groups"]) == (["a", "b-*"], ["g"])
    assert "token" not in one

"""The REST routes: what they answer, what they refuse and why, and what is recorded."""

from __future__ import annotations

import json

import pytest
from bundle_samples import STRANGER
from fleet_http import MAC_KEY, START_MS, bundle_file, open_fleet
from fleet_scene import OPTIONS, canary_failed, load, push, report, start
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from edgepack_contract.keys import PrivateKey
from edgepack_contract.limits import LIMITS
from edgepack_contract.states import RolloutState
from edgepack_fleet.auditing import verify_log
from edgepack_fleet.db.schema import AuditRow, RolloutRow

ROLLOUT = {"bundle": "digits", "version": "1.0.0", "group": "all", "options": OPTIONS}


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        yield fleet


@pytest.fixture
def ready(fleet):
    """Three devices in a group, and a bundle."""
    for number in (1, 2, 3):
        fleet.add_device(f"pi-{number}")
    push(fleet, "1.0.0")
    fleet.client("operator").post("/api/v1/groups", json={"name": "all", "labels": {}})
    return fleet


def problem(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    document = answer.json()
    assert (document["status"], document["code"]) == (status, code)
    return document["detail"]


def new_device(device="pi-1"):
    public = PrivateKey.generate().public.pem.decode()
    return {"id": device, "public_key": public, "mac_key": MAC_KEY.hex(), "labels": {"site": "a"}}


def audited(fleet):
    with fleet.context.database.read() as session:
        assert verify_log(session).broken == ()
        rows = session.scalars(select(AuditRow).order_by(AuditRow.sequence))
        return [(row.actor, row.action, row.subject) for row in rows]


def test_a_device_is_added_listed_and_shown(fleet):
    body = new_device()
    added = fleet.client("admin").post("/api/v1/devices", json=body)
    assert added.status_code == 201
    assert added.json()["presence"] == "unknown"
    viewer = fleet.client("viewer")
    (listed,) = viewer.get("/api/v1/devices").json()["items"]
    assert listed == viewer.get("/api/v1/devices/pi-1").json() == added.json()
    assert MAC_KEY.hex() not in json.dumps(listed)
    assert viewer.get("/api/v1/devices/pi-1/why").json() == {
        "why": "pi-1 is unknown. It has not reported what it runs."
    }
    assert audited(fleet) == [("admin", "device.add", "pi-1")]


def test_the_same_device_again_is_the_same_and_another_is_refused(fleet):
    admin, body = fleet.client("admin"), new_device()
    for _ in range(2):
        assert admin.post("/api/v1/devices", json=body).status_code == 201
    assert "other keys" in problem(
        admin.post("/api/v1/devices", json=new_device()), 409, "conflict"
    )


def test_lists_go_on_behind_a_cursor(fleet):
    for number in range(5):
        fleet.add_device(f"pi-{number}")
    seen, after = [], ""
    while after is not None:
        page = fleet.client("viewer").get(f"/api/v1/devices?limit=2&after={after}").json()
        seen += [one["id"] for one in page["items"]]
        after = page["next"]
    assert seen == [f"pi-{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("body", "devices", "labels", "members"),
    [
        ({"devices": ["pi-2", "pi-1"]}, ["pi-1", "pi-2"], None, ["pi-1", "pi-2"]),
        ({"devices": ["pi-1"], "labels": {}}, ["pi-1"], None, ["pi-1"]),
        ({"devices": [], "labels": {"site": "b"}}, None, {"site": "b"}, ["pi-2"]),
        ({"labels": {}}, None, {}, ["pi-1", "pi-2"]),
    ],
)
def test_a_group_is_made_by_list_or_by_labels(fleet, body, devices, labels, members):
    fleet.add_device("pi-1", site="a")
    fleet.add_device("pi-2", site="b")
    made = fleet.client("operator").post("/api/v1/groups", json={"name": "g", **body})
    assert made.status_code == 201, made.text
    assert made.json() == {
        "name": "g", "devices": devices, "labels": labels, "members": members,
        "created_ms": START_MS,
    }  # fmt: skip
    viewer = fleet.client("viewer")
    assert viewer.get("/api/v1/groups").json()["items"] == [made.json()]
    assert viewer.get("/api/v1/groups/g").json() == made.json()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"name": "g", "devices": [], "labels": {}}, 422, "invalid"),
        ({"name": "g"}, 422, "invalid"),
        ({"name": "g", "devices": ["pi-1"], "labels": {"a": "b"}}, 422, "invalid"),
        ({"name": "../g", "labels": {}}, 422, "invalid"),
        ({"name": "g", "devices": ["nobody"]}, 404, "not-found"),
        ({"name": "g", "labels": {}, "role": "admin"}, 422, "malformed-document"),
        ({"name": 1, "labels": {}}, 422, "malformed-document"),
        ([], 422, "malformed-document"),
    ],
)
def test_a_malformed_group_is_refused(fleet, body, status, code):
    fleet.add_device("pi-1")
    problem(fleet.client("operator").post("/api/v1/groups", json=body), status, code)
    assert fleet.client("viewer").get("/api/v1/groups").json()["items"] == []


def test_a_bundle_is_pushed_listed_and_shown(fleet):
    path = bundle_file(fleet.folder)
    first, again = fleet.push(path), fleet.push(path)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["created"]
    assert not again.json()["created"]
    viewer = fleet.client("viewer")
    (listed,) = viewer.get("/api/v1/bundles").json()["items"]
    shown = viewer.get("/api/v1/bundles/digits/1.0.0").json()
    assert listed["digest"] == shown["digest"] == first.json()["digest"]
    assert shown["description"]["metrics"][0]["name"] == "accuracy"
    assert audited(fleet)[-1] == ("publisher", "bundle.push", "digits:1.0.0")


def test_an_unsigned_bundle_is_refused_with_the_commands_that_help(fleet):
    words = problem(fleet.push(bundle_file(fleet.folder, signer=None)), 403, "unsigned")
    assert "edgepack keys init" in words
    assert "edgepack sign" in words
    assert fleet.client("viewer").get("/api/v1/bundles").json()["items"] == []


def test_a_strangers_bundle_and_altered_ones_are_refused(fleet):
    stranger = fleet.push(bundle_file(fleet.folder, signer=STRANGER))
    assert stranger.status_code == 403
    raw = bytearray(bundle_file(fleet.folder).read_bytes())
    raw[len(raw) // 2] ^= 1
    publisher = fleet.client("publisher")
    for body in (b"", b"not a bundle", bytes(raw), bytes(raw[:5000])):
        answer = publisher.put("/api/v1/bundles", content=body)
        assert answer.status_code in (403, 422), answer.text
        assert answer.json()["detail"]
    assert fleet.client("viewer").get("/api/v1/bundles").json()["items"] == []
    assert list((fleet.folder / "incoming").iterdir()) == []


def test_another_content_under_a_version_is_a_conflict(fleet):
    fleet.push(bundle_file(fleet.folder))
    other = bundle_file(fleet.folder, security_version=9)
    assert "new version" in problem(fleet.push(other), 409, "other-digest")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(fleet):
    async def never():
        raise AssertionError("the body was read")
        yield b""

    huge = {"Content-Length": str(LIMITS.bundle_bytes + 1)}
    answer = fleet.client("publisher").put("/api/v1/bundles", content=never(), headers=huge)
    problem(answer, 413, "too-large")
    large = {"Content-Length": "2000000", "Content-Type": "application/json"}
    answer = fleet.client("operator").post("/api/v1/groups", content=never(), headers=large)
    problem(answer, 413, "too-large")


def test_a_body_without_a_declared_length_is_cut_off(fleet):
    async def endless():
        while True:
            yield b" " * 65536

    answer = fleet.client("operator").post(
        "/api/v1/groups", content=endless(), headers={"Content-Type": "application/json"}
    )
    problem(answer, 413, "too-large")


def test_a_plan_says_what_would_happen_and_stores_nothing(ready):
    answer = ready.client("viewer").post("/api/v1/rollouts:plan", json=ROLLOUT)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert [len(stage["devices"]) for stage in plan["rollout"]["stages"]] == [1, 2]
    assert plan["unheard"] == ["pi-1", "pi-2", "pi-3"]
    assert plan["incompatible"] == {}
    assert ready.client("viewer").get("/api/v1/rollouts").json()["items"] == []


def test_a_rollout_is_started_shown_and_explained(ready):
    rollout_id = start(ready, "1.0.0")
    viewer = ready.client("viewer")
    shown = viewer.get(f"/api/v1/rollouts/{rollout_id}").json()
    assert (shown["state"], shown["group"]) == ("running", "all")
    assert shown["next"]
    assert viewer.get("/api/v1/rollouts").json()["items"] == [shown]
    events = viewer.get(f"/api/v1/rollouts/{rollout_id}/events").json()["items"]
    assert [event["sequence"] for event in events] == [1, 2]
    behind = viewer.get(f"/api/v1/rollouts/{rollout_id}/events?after=1").json()["items"]
    assert behind == events[1:]
    why = viewer.get(f"/api/v1/rollouts/{rollout_id}/why").json()["why"]
    assert "running" in why
    assert "Next:" in why
    assert rollout_id in viewer.get("/api/v1/devices/pi-1/why").json()["why"]
    assert audited(ready)[-1] == ("operator", "rollout.start", rollout_id)


def test_the_same_key_starts_one_rollout(ready):
    operator = ready.client("operator", **{"Idempotency-Key": "abc"})
    first, again = (operator.post("/api/v1/rollouts", json=ROLLOUT) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    with ready.context.database.read() as session:
        assert session.scalar(select(func.count()).select_from(RolloutRow)) == 1
    other = operator.post("/api/v1/rollouts", json=ROLLOUT | {"group": "others"})
    problem(other, 422, "idempotency-key-reused")
    # the key belongs to the token that used it
    admin = ready.client("admin", **{"Idempotency-Key": "abc"})
    problem(admin.post("/api/v1/rollouts", json=ROLLOUT), 409, "overlap")


def test_a_key_is_forgotten_after_a_day(ready):
    operator = ready.client("operator", **{"Idempotency-Key": "abc"})
    operator.post("/api/v1/rollouts", json=ROLLOUT)
    ready.clock.now_ms += 2 * 86_400_000
    ready.client("operator", **{"Idempotency-Key": "other"}).post("/api/v1/rollouts", json=ROLLOUT)
    assert operator.post("/api/v1/rollouts", json=ROLLOUT).status_code == 201


def test_a_failed_create_is_not_remembered(ready):
    operator = ready.client("operator", **{"Idempotency-Key": "abc"})
    missing = ROLLOUT | {"version": "9.9.9"}
    problem(operator.post("/api/v1/rollouts", json=missing), 404, "not-found")
    assert operator.post("/api/v1/rollouts", json=ROLLOUT).status_code == 201


def test_a_second_rollout_on_the_same_devices_waits(ready):
    first = start(ready, "1.0.0")
    words = problem(ready.client("operator").post("/api/v1/rollouts", json=ROLLOUT), 409, "overlap")
    assert first in words


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"bundle": "nothing"}, 404), ({"version": "9.9.9"}, 404), ({"group": "nobody"}, 404),
        ({"options": {"stages": ["200%"]}}, 422), ({"options": {"stages": []}}, 422),
        ({"options": {"soak_seconds": -1}}, 422), ({"options": {"soak_second": 1}}, 422),
        ({"options": {"alpha": 0}}, 422), ({"options": {"gates": {"vibes": {}}}}, 422),
        ({"options": {"stages": ["50%", "10%"]}}, 422), ({"options": {"soak_seconds": "x"}}, 422),
    ],
)  # fmt: skip
def test_a_rollout_that_makes_no_sense_is_refused(ready, change, status):
    for path in ("rollouts", "rollouts:plan"):
        answer = ready.client("operator").post(f"/api/v1/{path}", json=ROLLOUT | change)
        assert answer.status_code == status, answer.text
        assert answer.json()["detail"]
    assert ready.client("viewer").get("/api/v1/rollouts").json()["items"] == []


def test_an_operator_pauses_resumes_and_rolls_back(ready):
    rollout_id = start(ready, "1.0.0")
    operator = ready.client("operator")
    for verb, state in (("pause", "paused"), ("resume", "running"), ("rollback", "rolling_back")):
        answer = operator.post(f"/api/v1/rollouts/{rollout_id}/{verb}", json={"reason": "a test"})
        assert (answer.status_code, answer.json()["state"]) == (200, state)
    assert [action for _, action, _ in audited(ready)][-3:] == [
        "rollout.pause", "rollout.resume", "rollout.rollback"
    ]  # fmt: skip
    events = operator.get(f"/api/v1/rollouts/{rollout_id}/events").json()["items"]
    assert {event["actor"] for event in events} == {"operator"}
    assert any("a test" in event["words"] for event in events)


def test_an_abort_keeps_or_reverts(ready):
    operator, rollout_id = ready.client("operator"), start(ready, "1.0.0")
    answer = operator.post(f"/api/v1/rollouts/{rollout_id}/abort", json={})
    assert answer.json()["state"] == "aborted"
    again = start(ready, "1.0.0")
    answer = operator.post(f"/api/v1/rollouts/{again}/abort", json={"revert": True})
    assert answer.json()["state"] in ("rolling_back", "rolled_back", "rollback_incomplete")


def test_what_a_rollout_cannot_do_now_is_a_conflict(ready):
    operator, rollout_id = ready.client("operator"), start(ready, "1.0.0")
    path = f"/api/v1/rollouts/{rollout_id}"
    problem(operator.post(f"{path}/resume", json={}), 409, "wrong-rollout-state")
    problem(operator.post(f"{path}/pause", json={"sequence": 1}), 409, "stale")
    problem(operator.post(f"{path}/explode", json={}), 422, "bad-parameter")
    problem(operator.post("/api/v1/rollouts/none/pause", json={}), 404, "not-found")
    assert load(ready, rollout_id).state is RolloutState.RUNNING


def test_why_names_the_gate_and_its_numbers(fleet):
    rollout_id = canary_failed(fleet)
    why = fleet.client("viewer").get(f"/api/v1/rollouts/{rollout_id}/why").json()["why"]
    assert "11.2 % of 214 pairs" in why
    (canary,) = load(fleet, rollout_id).stages[0].devices
    why = fleet.client("viewer").get(f"/api/v1/devices/{canary}/why").json()["why"]
    assert "runs 1.1.0" in why


def test_a_device_that_has_not_answered_is_said_to_be_behind(ready):
    report(ready, "pi-1", f"sha256:{'1' * 64}", "0.9.0")
    rollout_id = start(ready, "1.0.0")
    why = ready.client("viewer").get("/api/v1/devices/pi-1/why").json()["why"]
    assert "pi-1 is online" in why
    assert rollout_id in why


def test_tokens_are_made_listed_and_revoked_by_an_admin(fleet):
    admin = fleet.client("admin")
    made = admin.post("/api/v1/tokens", json={"name": "ci", "role": "publisher"})
    assert made.status_code == 201
    secret = made.json()["token"]
    headers = {"Authorization": f"Bearer {secret}"}
    assert fleet.client().get("/api/v1/me", headers=headers).json()["role"] == "publisher"
    listed = admin.get("/api/v1/tokens").json()["items"]
    assert [one["name"] for one in listed] == ["admin", "ci", "operator", "publisher", "viewer"]
    assert secret not in json.dumps(listed)
    assert admin.request("DELETE", "/api/v1/tokens/ci").status_code == 204
    assert fleet.client().get("/api/v1/me", headers=headers).status_code == 401
    problem(admin.request("DELETE", "/api/v1/tokens/ci"), 404, "not-found")


@pytest.mark.parametrize(
    "body",
    [
        {"name": "ci", "role": "device"}, {"name": "ci", "role": "god"},
        {"name": "../ci", "role": "viewer"}, {"name": "fleet", "role": "viewer"},
        {"name": "ci", "role": "viewer", "ttl_seconds": 0},
        {"name": "ci", "role": "viewer", "ttl_seconds": 10**12}, {"name": "ci"},
    ],
)  # fmt: skip
def test_a_token_that_should_not_be_is_refused(fleet, body):
    assert fleet.client("admin").post("/api/v1/tokens", json=body).status_code == 422


def test_a_token_name_is_taken_once(fleet):
    body = {"name": "viewer", "role": "viewer"}
    problem(fleet.client("admin").post("/api/v1/tokens", json=body), 409, "conflict")


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"nul", b"[" * 100_000, b'{"name":"a","name":"b","labels":{}}',
        b'{"name":"g","labels":{"a":NaN}}', b"\xff\xfe{}", b"\xef\xbb\xbf{}",
        b'{"name":"\\ud800","labels":{}}', b"9" * 5000, b'{"name":"g","labels":{"a":1}}',
    ],
)  # fmt: skip
def test_bodies_that_are_not_what_they_should_be_are_422(fleet, raw):
    answer = fleet.client("operator").post(
        "/api/v1/groups", content=raw, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_a_body_of_another_type_is_415(fleet, kind):
    answer = fleet.client("operator").post(
        "/api/v1/groups", content=b'{"name":"g","labels":{}}', headers={"Content-Type": kind}
    )
    problem(answer, 415, "wrong-content-type")


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=1001", "limit=x", "limit=1e3", f"after={'x' * 300}"]
)
def test_odd_page_sizes_are_refused(fleet, query):
    problem(fleet.client("viewer").get(f"/api/v1/devices?{query}"), 422, "bad-parameter")


def test_an_unknown_path_and_method_are_problems_too(fleet):
    viewer = fleet.client("viewer")
    problem(viewer.get("/api/v1/nothing"), 404, "not-found")
    problem(viewer.request("PATCH", "/api/v1/devices"), 405, "method-not-allowed")


def test_openapi_names_every_route_with_body_answer_and_role(fleet):
    document = fleet.client().get("/api/v1/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    schemas = set(document["components"]["schemas"])
    references = set()
    for path, operations in document["paths"].items():
        assert path.startswith("/api/v1/")
        for operation in operations.values():
            assert operation["x-edgepack-role"]
            assert operation["description"]
            references |= set(_references(operation))
    references |= set(_references(document["components"]))
    assert references <= schemas
    rollout = document["paths"]["/api/v1/rollouts"]["post"]
    body = rollout["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/NewRollout"}


def _references(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value.removeprefix("#/components/schemas/")
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    with open_fleet(tmp_path_factory.mktemp("fuzzed")) as fleet:
        canary_failed(fleet)
        yield fleet


TEXT = st.text(max_size=30) | st.sampled_from(["pi-1", "digits", "1.0.0", "all", "'; --", "%00"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e308, 1e308) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = ["name", "devices", "labels", "bundle", "version", "group", "options", "id", "role"]
BODIES = st.dictionaries(st.sampled_from(NAMES) | TEXT, VALUES, max_size=6)


@settings(max_examples=150)
@given(data=st.data())
def test_no_request_makes_the_service_fail(fuzzed, data):
    routes = [one for one in fuzzed.app.routes if not one.path.endswith("/stream")]
    route = data.draw(st.sampled_from(routes))
    method = data.draw(st.sampled_from(sorted(route.methods)))
    path = route.path
    for name in route.param_convertors:
        from urllib.parse import quote

        path = path.replace(f"{{{name}}}", quote(data.draw(TEXT), safe="") or "x")
    query = data.draw(
        st.dictionaries(st.sampled_from(["after", "limit", "n", "last", "since_ms", "slot"]), TEXT)
    )
    fuzzed.clock.now_ms += 6000
    answer = fuzzed.client("admin").request(method, path, params=query, json=data.draw(BODIES))
    assert answer.status_code < 500, f"{method} {path}: {answer.text}"

"""People over REST: what an admin does with them, and what is written down of it."""

from __future__ import annotations

import pytest
from fleet_http import open_fleet
from sqlalchemy import select

from edgepack_fleet.db.schema import AuditRow

ANNA = {"name": "anna", "role": "operator"}
PASSWORD = "correct horse battery"


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        yield fleet


@pytest.fixture
def admin(fleet):
    return fleet.client("admin")


def test_a_person_is_added_with_a_code_in_the_fragment(fleet, admin):
    made = admin.post("/api/v1/users", json=ANNA)
    assert made.status_code == 201
    said = made.json()
    assert said["url"] == f"http://127.0.0.1:8080/#code={said['code']}"
    assert said["expires_ms"] == fleet.clock() + 15 * 60_000
    assert made.headers["Cache-Control"] == "no-store"


def test_a_list_says_how_people_log_in_and_no_secrets(fleet, admin):
    code = admin.post("/api/v1/users", json=ANNA).json()["code"]
    (before,) = admin.get("/api/v1/users").json()["items"]
    assert (before["password"], before["passkeys"], before["last_used_ms"]) == (False, 0, None)
    body = {"code": code, "password": PASSWORD}
    fleet.client().post("/api/v1/login/code/password", json=body)
    (after,) = admin.get("/api/v1/users").json()["items"]
    assert after == before | {"password": True, "last_used_ms": fleet.clock()}
    assert set(after) == {
        "name", "role", "bundles", "groups", "password", "passkeys", "created_ms", "last_used_ms"
    }  # fmt: skip


def test_a_reset_takes_everything_and_gives_a_code(fleet, admin):
    code = admin.post("/api/v1/users", json=ANNA).json()["code"]
    body = {"code": code, "password": PASSWORD}
    fleet.client().post("/api/v1/login/code/password", json=body)
    again = admin.post("/api/v1/users/anna/reset", json={})
    assert again.status_code == 200
    login = {"name": "anna", "password": PASSWORD}
    assert fleet.client().post("/api/v1/login/password", json=login).status_code == 401
    body = {"code": again.json()["code"], "password": PASSWORD}
    assert fleet.client().post("/api/v1/login/code/password", json=body).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (ANNA, 409), ({"name": "viewer", "role": "viewer"}, 409),
        ({"name": "Bert", "role": "viewer"}, 422), ({"name": "local", "role": "viewer"}, 422),
        ({"name": "bert"}, 422), ({"name": "bert", "role": "device"}, 422),
        ({"name": "bert", "role": "viewer", "bundles": []}, 422),
        ({"name": "bert", "role": "viewer", "password": "x"}, 422),
    ],
)  # fmt: skip
def test_what_is_no_person_is_refused(admin, body, status):
    admin.post("/api/v1/users", json=ANNA)
    assert admin.post("/api/v1/users", json=body).status_code == status
    assert len(admin.get("/api/v1/users").json()["items"]) == 1


def test_who_is_not_there_is_not_found(admin):
    assert admin.post("/api/v1/users/anna/reset", json={}).status_code == 404
    assert admin.request("DELETE", "/api/v1/users/anna").status_code == 404


def test_what_is_done_to_people_is_written_down_with_who_and_from_where(fleet, admin):
    admin.post("/api/v1/users", json=ANNA)
    admin.post("/api/v1/users/anna/reset", json={})
    admin.request("DELETE", "/api/v1/users/anna")
    with fleet.context.database.read() as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.sequence)).all()
    assert [row.action for row in rows] == ["user.add", "user.reset", "user.remove"]
    assert {(row.actor, row.subject) for row in rows} == {("admin", "anna")}
    assert all(row.detail["address"] == "127.0.0.1" for row in rows)
    assert rows[0].detail["role"] == "operator"

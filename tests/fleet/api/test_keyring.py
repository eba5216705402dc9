"""The keyring over REST."""

from __future__ import annotations

import pytest
from bundle_samples import PUBLISHER, fixed_key
from fleet_http import FLEET_KEY, OWNER, bundle_file, open_fleet
from fleet_scene import report

from edgepack_contract.keyring import KeyStatus, Publisher, make_keyring
from edgepack_fleet.auditing import verify_log

URL = "/api/v1/keyring"


def signed(version, *, owner=OWNER, epoch=1, fleet=FLEET_KEY, **changes):
    publisher = Publisher(key=PUBLISHER.public.pem.decode(), names=["*"], **changes)
    return make_keyring(
        owner, version=version, epoch=epoch, publishers=[publisher], fleets=[fleet.public]
    )


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        yield fleet


def test_anybody_may_read_it_as_it_is_and_ask_whether_it_changed(fleet):
    answer = fleet.client().get(URL)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/jsonl")
    assert answer.content == (fleet.folder / "keyring.json").read_bytes()
    again = fleet.client().get(URL, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    fleet.client("admin").put(URL, content=signed(2))
    changed = fleet.client().get(URL, headers={"If-None-Match": answer.headers["etag"]})
    assert changed.status_code == 200


def test_an_admin_puts_a_newer_one_in_force(fleet):
    answer = fleet.client("admin").put(URL, content=signed(2, epoch=4))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["version"], body["epoch"], body["demo"]) == (2, 4, False)
    assert body["owner"] == OWNER.public.fingerprint
    assert body["fleet_key"] == FLEET_KEY.public.fingerprint
    assert fleet.client().get(URL).content == signed(2, epoch=4)
    with fleet.context.database.read() as session:
        assert verify_log(session).broken == ()


@pytest.mark.parametrize("role", ["viewer", "operator", "publisher"])
def test_nobody_else_may(fleet, role):
    assert fleet.client(role).put(URL, content=signed(2)).status_code == 403
    assert fleet.client().put(URL, content=signed(2)).status_code == 401


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (signed(2, owner=fixed_key(30)), 422, "unknown-key"),
        (signed(1, epoch=2), 422, "keyring-equivocation"),
        (signed(2, fleet=fixed_key(31)), 409, "unknown-fleet-key"),
        (b"not a keyring", 422, "malformed-document"),
        (b"x" * (256 * 1024 + 1), 413, "too-large"),
    ],
    ids=["owner", "equivocation", "fleet-key", "nonsense", "large"],
)
def test_a_refusal_has_its_code_and_the_way_out(fleet, raw, status, code):
    before = fleet.client().get(URL).content
    answer = fleet.client("admin").put(URL, content=raw)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert fleet.client().get(URL).content == before
    if code == "unknown-fleet-key":
        assert "keys.fleet" in answer.json()["detail"]


def test_it_says_how_many_devices_go_by_it(fleet):
    for number in (1, 2, 3):
        fleet.add_device(f"pi-{number}")
    report(fleet, "pi-1", f"sha256:{'1' * 64}", "1.0.0", keyring=1)
    report(fleet, "pi-2", f"sha256:{'1' * 64}", "1.0.0", keyring=2)
    status = fleet.client("viewer").get(f"{URL}/status").json()
    assert (status["devices"], status["newest"]) == (3, 1)
    assert status["versions"] == {"0": 1, "1": 1, "2": 1}
    fleet.client("admin").put(URL, content=signed(2))
    assert fleet.client("viewer").get(f"{URL}/status").json()["newest"] == 1


def test_a_bundle_of_a_revoked_publisher_is_refused_from_then_on(fleet):
    assert fleet.push(bundle_file(fleet.folder, version="1.0.0")).status_code == 201
    fleet.client("admin").put(URL, content=signed(2, status=KeyStatus.REVOKED))
    refused = fleet.push(bundle_file(fleet.folder, version="1.1.0"))
    assert (refused.status_code, refused.json()["code"]) == (403, "revoked-publisher")
    fleet.add_device("pi-1")
    fleet.client("operator").post("/api/v1/groups", json={"name": "all", "labels": {}})
    body = {"bundle": "digits", "version": "1.0.0", "group": "all"}
    for path in ("rollouts:plan", "rollouts"):
        refused = fleet.client("operator").post(f"/api/v1/{path}", json=body)
        assert (refused.status_code, refused.json()["code"]) == (403, "revoked-publisher")

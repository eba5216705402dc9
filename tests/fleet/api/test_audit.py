"""Everything that changes something is in the audit log, in the same transaction; and its API."""

from __future__ import annotations

import itertools

import pytest
from bundle_samples import PUBLISHER
from fleet_http import FLEET_KEY, OWNER, bundle_file, open_fleet
from sqlalchemy import event, text

from edgepack_contract.certificates import make_request
from edgepack_contract.enrolment import Renewal, sign_renewal
from edgepack_contract.keyring import Publisher, make_keyring
from edgepack_contract.keys import PrivateKey
from edgepack_fleet.db.schema import AuditRow, Base

PASSWORD = "correct horse battery"
READING = {"GET", "HEAD", "OPTIONS"}
CHANGES_NOTHING = {
    # a plan is not stored; the others answer with a challenge that memory alone knows
    ("POST", "/api/v1/rollouts:plan"),
    ("POST", "/api/v1/login/code"),
    ("POST", "/api/v1/login/passkey:begin"),
}
ELSEWHERE = {
    # they need an authenticator: test_login.py looks at what they write
    ("POST", "/api/v1/login/code/passkey"),
    ("POST", "/api/v1/login/passkey"),
}
BESIDE = {"tokens": ("last_used_ms",), "browser_sessions": ("last_used_ms",)}
"""What a request may change that is refused: the record of its credentials."""


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        yield fleet


def unsafe(fleet):
    return {
        (method, route.path) for route in fleet.app.routes for method in route.methods - READING
    }


def dump(fleet):
    """Every row of every table but the audit log."""
    with fleet.context.database.read() as session:
        return {
            table.name: sorted(
                str([row[column.name] for column in table.columns
                     if column.name not in BESIDE.get(table.name, ())])
                for row in session.execute(text(f"SELECT * FROM {table.name}")).mappings()
            )
            for table in Base.metadata.sorted_tables
            if table.name != "audit"
        }  # fmt: skip


def length(fleet):
    with fleet.context.database.read() as session:
        return session.scalar(text("SELECT count(*) FROM audit"))


class Story:
    """One request for every route that changes something, each possible after those before it."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.answers = {}
        self.joiners = {name: PrivateKey.generate() for name in ("j-1", "j-2", "j-3")}

    def joins(self, name, token, **extra):
        request = make_request(self.joiners[name], name=name).decode()
        return {"token": self.answers[token]["token"], "request": request, "nonce": "n", **extra}

    def approval(self, name):
        return {"key": self.joiners[name].public.fingerprint}

    def renewal(self):
        key = self.joiners["j-3"]
        wish = Renewal(tenant="default", device="j-3", enrolment=key.public.fingerprint, nonce="r")
        return sign_renewal(wish, key)

    def code(self, answer):
        made = self.answers[answer]
        return made["url"].partition("#code=")[2] if "url" in made else made["code"]

    def keyring(self):
        publisher = Publisher(key=PUBLISHER.public.pem.decode(), names=["*"])
        authorities = list(self.fleet.context.keeper.trust.keyring.authorities)
        return make_keyring(
            OWNER, version=9, epoch=1, publishers=[publisher], fleets=[FLEET_KEY.public],
            authorities=authorities,
        )  # fmt: skip

    def steps(self):
        """(method, route, path, body or bytes, the name of the answer)."""
        new = {"id": "pi-1", "mac_key": "ab" * 32}
        new["public_key"] = PrivateKey.generate().public.pem.decode()
        rollout = {"bundle": "digits", "version": "1.0.0", "group": "all"}
        post, put, delete = "POST", "PUT", "DELETE"
        devices, enrolments = "/api/v1/devices/{device}", "/api/v1/enrolments/{device}"
        yield post, "/api/v1/devices", None, new, ""
        labels = {"labels": {"site": "oslo"}}
        yield post, f"{devices}/labels", "/api/v1/devices/pi-1/labels", labels, ""
        yield post, "/api/v1/groups", None, {"name": "all", "devices": ["pi-1"]}, ""
        bundle = bundle_file(self.fleet.folder, version="1.0.0").read_bytes()
        yield put, "/api/v1/bundles", None, bundle, ""
        yield post, "/api/v1/rollouts", None, rollout, "rollout"
        steer = f"/api/v1/rollouts/{self.answers['rollout']['id']}/pause"
        yield post, "/api/v1/rollouts/{rollout}/{verb}", steer, {}, ""
        yield put, "/api/v1/keyring", None, self.keyring(), ""
        yield post, "/api/v1/tokens", None, {"name": "ci", "role": "viewer"}, ""
        yield delete, "/api/v1/tokens/{name}", "/api/v1/tokens/ci", None, ""
        waiting = {"name": "waiting", "max_uses": 9}
        yield post, "/api/v1/join-tokens", None, waiting, "pending"
        auto = {"name": "auto", "mode": "auto", "max_uses": 9}
        yield post, "/api/v1/join-tokens", None, auto, "auto"
        yield post, "/api/v1/enrol", None, self.joins("j-1", "pending"), ""
        yield post, f"{enrolments}/approve", "/api/v1/enrolments/j-1/approve", (
            self.approval("j-1")
        ), ""  # fmt: skip
        yield post, "/api/v1/enrol", None, self.joins("j-2", "pending"), ""
        yield post, f"{enrolments}/reject", "/api/v1/enrolments/j-2/reject", {}, ""
        yield post, "/api/v1/enrol", None, self.joins("j-3", "auto"), ""
        self.fleet.clock.now_ms += 61 * 86_400_000
        yield post, "/api/v1/enrol/renew", None, self.renewal(), ""
        key = {"device": "j-9", "key": "ab" * 32}
        yield post, "/api/v1/preauthorised", None, key, ""
        yield delete, "/api/v1/join-tokens/{name}", "/api/v1/join-tokens/waiting", None, ""
        yield post, f"{devices}/revoke", "/api/v1/devices/j-3/revoke", None, ""
        yield post, f"{devices}/decommission", "/api/v1/devices/j-1/decommission", None, ""
        yield post, "/api/v1/users", None, {"name": "anna", "role": "viewer"}, "user"
        chosen = {"code": self.code("user"), "password": PASSWORD}
        yield post, "/api/v1/login/code/password", None, chosen, ""
        login = {"name": "anna", "password": PASSWORD}
        yield post, "/api/v1/login/password", None, login, ""
        yield post, "/api/v1/logout", None, None, ""
        yield post, "/api/v1/users/{name}/reset", "/api/v1/users/anna/reset", None, ""
        yield delete, "/api/v1/users/{name}", "/api/v1/users/anna", None, ""

    def send(self, method, path, body):
        # at the doors that need no credentials one may not ask more often
        self.fleet.clock.now_ms += 7000
        what = {"content": body} if isinstance(body, bytes) else {"json": body}
        headers = {}
        if path == "/api/v1/logout":
            headers = {"Cookie": self.cookie, "Sec-Fetch-Site": "same-origin"}
        client = self.fleet.client(None if headers else "admin")
        answer = client.request(method, path, headers=headers, **({} if body is None else what))
        if path == "/api/v1/login/password" and answer.status_code == 200:
            self.cookie = answer.headers["Set-Cookie"].partition(";")[0]
        return answer


class NoLogError(Exception):
    """The audit log cannot be written."""


def broken(*_):
    raise NoLogError


def test_every_change_is_recorded_in_its_own_transaction_or_does_not_happen(fleet):
    story = Story(fleet)
    driven = set()
    for method, route, exact, body, name in story.steps():
        path = exact or route
        what = f"{method} {path}"
        before, written = dump(fleet), length(fleet)
        event.listen(AuditRow, "before_insert", broken)
        try:
            failed = story.send(method, path, body)
        finally:
            event.remove(AuditRow, "before_insert", broken)
        assert failed.status_code == 500, f"{what} wrote nothing: {failed.text}"
        assert dump(fleet) == before, what
        answer = story.send(method, path, body)
        assert answer.status_code < 300, f"{what}: {answer.text}"
        assert length(fleet) > written, what
        if name:
            story.answers[name] = answer.json()
        driven.add((method, route))
    # a route that is not here yet belongs into the story
    assert unsafe(fleet) == driven | CHANGES_NOTHING | ELSEWHERE
    report = fleet.client("admin").get("/api/v1/audit/verify").json()
    assert report["whole"], report["words"]


def test_what_reads_changes_nothing(fleet):
    before, written = dump(fleet), length(fleet)
    for route in fleet.app.routes:
        if "GET" in route.methods and "{" not in route.path and not route.path.endswith("/stream"):
            assert fleet.client("admin").get(route.path).status_code < 500
    assert (dump(fleet), length(fleet)) == (before, written)


@pytest.fixture
def busy(fleet):
    for number in range(7):
        body = {"name": f"g-{number}", "labels": {}}
        role = "operator" if number % 2 else "admin"
        assert fleet.client(role).post("/api/v1/groups", json=body).status_code == 201
        fleet.clock.now_ms += 1000
    return fleet


def listed(fleet, **query):
    answer = fleet.client("admin").get("/api/v1/audit", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_entries_come_newest_first_in_pages(busy):
    seen, after = [], ""
    for _ in itertools.repeat(None, 4):
        page = listed(busy, limit=3, after=after)
        seen += [one["sequence"] for one in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert seen == [7, 6, 5, 4, 3, 2, 1]
    first = listed(busy)["items"][-1]
    assert (first["actor"], first["action"], first["subject"]) == ("admin", "group.create", "g-0")
    assert set(first) == {"sequence", "at_ms", "actor", "action", "subject", "detail", "hash"}


@pytest.mark.parametrize(
    ("query", "sequences"),
    [
        ({"actor": "operator"}, [6, 4, 2]),
        ({"action": "group"}, [7, 6, 5, 4, 3, 2, 1]),
        ({"action": "group.create", "actor": "admin"}, [7, 5, 3, 1]),
        ({"action": "grou"}, []),
        ({"action": "%"}, []),
        ({"subject": "g-3"}, [4]),
    ],
)
def test_entries_are_filtered(busy, query, sequences):
    assert [one["sequence"] for one in listed(busy, **query)["items"]] == sequences


def test_entries_since_a_time(busy):
    since = listed(busy)["items"][2]["at_ms"]
    assert [one["sequence"] for one in listed(busy, since_ms=since)["items"]] == [7, 6, 5]


@pytest.mark.parametrize("after", ["x", "-1", "1" * 30, "٣"])
def test_a_cursor_that_is_none_is_refused(busy, after):
    answer = busy.client("admin").get("/api/v1/audit", params={"after": after})
    assert answer.status_code == 422


def test_it_is_verified_against_a_head_that_was_kept(busy):
    report = busy.client("admin").get("/api/v1/audit/verify").json()
    assert (report["whole"], report["broken"]) == (True, [])
    head = report["head"]
    with busy.context.database.write() as session:
        session.execute(text("DELETE FROM audit WHERE sequence = 7"))
    again = busy.client("admin").get("/api/v1/audit/verify", params={"head": head}).json()
    assert again["whole"] is False
    assert again["broken"][0]["chain"] == "audit"
    bad = busy.client("admin").get("/api/v1/audit/verify", params={"head": "7"})
    assert bad.status_code == 422

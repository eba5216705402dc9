"""Getting in with a code, a password or a passkey: what works once, what never works, who knows."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from fleet_http import START_MS, open_fleet
from passkey import UP, Passkey
from sqlalchemy import select, text

from edgepack_fleet.db.schema import AuditRow, PasskeyRow
from edgepack_fleet.grants import EVERYTHING, Role
from edgepack_fleet.people import CODE_TTL_MS, add_user, remove_user, reset_user
from edgepack_fleet.tokens import new_secret

PASSWORD = "correct horse battery"
COOKIE = "edgepack-session"


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        yield fleet


@pytest.fixture
def code(fleet):
    with fleet.context.database.write() as session:
        return add_user(session, name="anna", role=Role.OPERATOR, scope=EVERYTHING, now_ms=START_MS)


def knock(fleet, path, **body):
    fleet.clock.now_ms += 6000
    return fleet.client().post(f"/api/v1/login{path}", json=body)


def cookie_of(answer):
    assert answer.status_code == 200, answer.text
    name, _, value = answer.headers["Set-Cookie"].partition(";")[0].partition("=")
    return {"Cookie": f"{name}={value}"}


def whoami(fleet, cookie):
    return fleet.client(**cookie).get("/api/v1/me")


def refused(answer):
    assert answer.status_code == 401, answer.text
    assert "Set-Cookie" not in answer.headers
    return answer.json()["code"]


def with_password(fleet, code):
    return knock(fleet, "/code/password", code=code, password=PASSWORD)


def with_passkey(fleet, code, passkey):
    asked = knock(fleet, "/code", code=code).json()
    made = passkey.make(asked["options"])
    return knock(fleet, "/code/passkey", code=code, passkey=made)


def use_passkey(fleet, passkey, **how):
    options = knock(fleet, "/passkey:begin").json()["options"]
    return knock(fleet, "/passkey", **passkey.use(options, **how))


def audit(fleet):
    with fleet.context.database.read() as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.sequence))
        return [(row.actor, row.action, row.detail.get("address")) for row in rows]


def test_a_code_becomes_a_password_which_logs_in(fleet, code):
    chosen = with_password(fleet, code)
    assert chosen.json() == {
        "name": "anna", "role": "operator", "expires_ms": fleet.clock() + 12 * 3_600_000
    }  # fmt: skip
    assert whoami(fleet, cookie_of(chosen)).json()["name"] == "anna"
    entered = knock(fleet, "/password", name="anna", password=PASSWORD)
    assert whoami(fleet, cookie_of(entered)).json()["role"] == "operator"
    assert audit(fleet) == [
        ("anna", "user.password", "127.0.0.1"), ("anna", "login.password", "127.0.0.1")
    ]  # fmt: skip


def test_a_code_is_good_once(fleet, code):
    assert with_password(fleet, code).status_code == 200
    assert refused(with_password(fleet, code)) == "login-refused"
    assert refused(knock(fleet, "/code", code=code)) == "login-refused"


def test_looking_at_a_code_does_not_use_it_up(fleet, code):
    assert knock(fleet, "/code", code=code).json()["name"] == "anna"
    assert with_password(fleet, code).status_code == 200


def test_a_code_ends_after_fifteen_minutes(fleet, code):
    fleet.clock.now_ms = START_MS + CODE_TTL_MS - 6001
    assert knock(fleet, "/code", code=code).status_code == 200
    assert refused(with_password(fleet, code)) == "login-refused"


def test_a_new_code_makes_the_one_before_worthless(fleet, code):
    with fleet.context.database.write() as session:
        second = reset_user(session, "anna", now_ms=START_MS)
    assert refused(with_password(fleet, code)) == "login-refused"
    assert with_password(fleet, second).status_code == 200


def test_a_wrong_code_is_refused(fleet, code):
    for wrong in ("", "epl_", "é" * 53, code[:-1], new_secret("epl_"), new_secret("epa_")):
        assert refused(knock(fleet, "/code", code=wrong)) == "login-refused"
        assert refused(with_password(fleet, wrong)) == "login-refused"


@pytest.mark.parametrize("password", ["", "eleven char", "x" * 1025])
def test_an_unfit_password_is_refused_and_the_code_stays_good(fleet, code, password):
    answer = knock(fleet, "/code/password", code=code, password=password)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad-password")
    assert with_password(fleet, code).status_code == 200


def test_wrong_passwords_and_unknown_people_get_the_same_answer(fleet, code):
    with_password(fleet, code)
    answers = [
        knock(fleet, "/password", name=name, password=password)
        for name, password in [
            ("anna", "wrong horse battery"), ("anna", ""), ("anna", "x" * 5000),
            ("nobody", PASSWORD), ("", PASSWORD), ("anna\0", PASSWORD),
        ]
    ]  # fmt: skip
    assert {refused(answer) for answer in answers} == {"login-refused"}
    assert len({answer.content for answer in answers}) == 1


def test_who_has_no_password_yet_cannot_log_in_with_one(fleet, code):
    assert refused(knock(fleet, "/password", name="anna", password="")) == "login-refused"


def test_a_password_is_checked_for_unknown_people_too(fleet, code, monkeypatch):
    checked = []
    hasher = fleet.app.state.desk.passwords._hasher
    monkeypatch.setattr(
        type(hasher), "verify", lambda _, kept, given: checked.append(kept) or 1 / 0
    )
    knock(fleet, "/password", name="nobody", password=PASSWORD)
    assert checked[0].startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_logging_out_ends_the_login_at_once(fleet, code):
    cookie = cookie_of(with_password(fleet, code))
    page = {"Sec-Fetch-Site": "same-origin"}
    answer = fleet.client(**cookie).post("/api/v1/logout", headers=page)
    assert answer.status_code == 204
    assert "Max-Age=0" in answer.headers["Set-Cookie"]
    assert whoami(fleet, cookie).status_code == 401
    assert audit(fleet)[-1] == ("anna", "logout", "127.0.0.1")


def test_a_login_ends_after_twelve_hours(fleet, code):
    cookie = cookie_of(with_password(fleet, code))
    began = fleet.clock()
    fleet.clock.now_ms = began + 12 * 3_600_000 - 1
    assert whoami(fleet, cookie).status_code == 200
    fleet.clock.now_ms += 1
    assert whoami(fleet, cookie).status_code == 401


@pytest.mark.parametrize("end", [remove_user, lambda s, n: reset_user(s, n, now_ms=START_MS)])
def test_a_removed_or_reset_person_is_logged_out_at_once(fleet, code, end):
    passkey = Passkey()
    cookie = cookie_of(with_passkey(fleet, code, passkey))
    with fleet.context.database.write() as session:
        end(session, "anna")
    assert whoami(fleet, cookie).status_code == 401
    assert refused(use_passkey(fleet, passkey)) == "login-refused"


def test_a_code_becomes_a_passkey_which_logs_in(fleet, code):
    passkey = Passkey()
    cookie_of(with_passkey(fleet, code, passkey))
    assert whoami(fleet, cookie_of(use_passkey(fleet, passkey))).json()["name"] == "anna"
    assert refused(with_password(fleet, code)) == "login-refused"
    assert [action for _, action, _ in audit(fleet)] == ["user.passkey", "login.passkey"]


def test_a_passkeys_counter_that_does_not_grow_is_refused(fleet, code):
    passkey = Passkey()
    with_passkey(fleet, code, passkey)
    assert use_passkey(fleet, passkey, count=7).status_code == 200
    for count in (7, 6, 0):
        assert refused(use_passkey(fleet, passkey, count=count)) == "login-refused"
    assert use_passkey(fleet, passkey, count=8).status_code == 200


def test_a_challenge_is_good_once(fleet, code):
    passkey = Passkey()
    with_passkey(fleet, code, passkey)
    options = knock(fleet, "/passkey:begin").json()["options"]
    first, second = passkey.use(options), passkey.use(options)
    assert knock(fleet, "/passkey", **first).status_code == 200
    assert refused(knock(fleet, "/passkey", **second)) == "unauthenticated"


def test_a_challenge_ends_after_two_minutes(fleet, code):
    passkey = Passkey()
    with_passkey(fleet, code, passkey)
    options = knock(fleet, "/passkey:begin").json()["options"]
    fleet.clock.now_ms += 120_000
    assert refused(knock(fleet, "/passkey", **passkey.use(options))) == "unauthenticated"


def test_a_challenge_for_one_purpose_is_not_good_for_another(fleet, code):
    with fleet.context.database.write() as session:
        other = add_user(session, name="bert", role=Role.ADMIN, scope=EVERYTHING, now_ms=START_MS)
    annas = knock(fleet, "/code", code=code).json()["options"]
    logins = knock(fleet, "/passkey:begin").json()["options"]
    for options in (annas, logins):
        made = Passkey().make(options)
        answer = knock(fleet, "/code/passkey", code=other, passkey=made)
        assert refused(answer) == "unauthenticated"


@pytest.mark.parametrize(
    "wrong",
    [
        {"origin": "http://localhost:9999"}, {"origin": "https://localhost:8080"},
        {"origin": "http://127.0.0.1:8080"}, {"party": "evil.example"}, {"flags": UP},
        {"flags": 0}, {"id": b""},
    ],
)  # fmt: skip
def test_a_passkey_of_another_page_or_without_its_person_is_refused(fleet, code, wrong):
    answer = with_passkey(fleet, code, replace(Passkey(), **wrong))
    assert (answer.status_code, answer.json()["code"]) == (422, "bad-passkey")
    good = Passkey()
    assert with_passkey(fleet, code, good).status_code == 200
    if "id" not in wrong:
        assert refused(use_passkey(fleet, replace(good, **wrong))) == "login-refused"


def test_a_passkey_signed_by_another_key_is_refused(fleet, code):
    passkey = Passkey()
    with_passkey(fleet, code, passkey)
    assert refused(use_passkey(fleet, Passkey())) == "login-refused"
    assert refused(use_passkey(fleet, Passkey(id=b"unknown"))) == "login-refused"


def test_two_people_cannot_have_one_passkey(fleet, code):
    passkey = Passkey()
    with_passkey(fleet, code, passkey)
    with fleet.context.database.write() as session:
        other = add_user(session, name="bert", role=Role.ADMIN, scope=EVERYTHING, now_ms=START_MS)
    answer = with_passkey(fleet, other, passkey)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad-passkey")
    with fleet.context.database.read() as session:
        assert [row.user for row in session.scalars(select(PasskeyRow))] == ["anna"]


def test_no_passkeys_where_browsers_have_none(fleet, code):
    writer = replace(fleet.context.writer, base_url="https://10.0.0.1:8443")
    fleet.app.state.context = replace(fleet.context, writer=writer)
    assert fleet.client().get("/api/v1/login").json() == {"passkeys": None}
    assert knock(fleet, "/code", code=code).json()["options"] is None
    answer = knock(fleet, "/passkey:begin")
    assert (answer.status_code, answer.json()["code"]) == (422, "no-passkeys")
    assert with_password(fleet, code).status_code == 200


def test_secrets_are_in_no_table_and_no_log(fleet, code, caplog):
    caplog.set_level(logging.DEBUG)
    passkey = Passkey()
    secrets = [code, PASSWORD, *fleet.tokens.values()]
    secrets.append(cookie_of(with_password(fleet, code))["Cookie"].partition("=")[2])
    knock(fleet, "/password", name=PASSWORD, password=PASSWORD)
    knock(fleet, "/password", name="anna", password="wrong horse battery")
    with fleet.context.database.write() as session:
        second = reset_user(session, "anna", now_ms=fleet.clock())
    cookie = cookie_of(with_passkey(fleet, second, passkey))["Cookie"].partition("=")[2]
    made = fleet.client("admin").post("/api/v1/users", json={"name": "bert", "role": "viewer"})
    secrets += [second, cookie, made.json()["code"], "wrong horse battery"]
    with fleet.context.database.read() as session:
        tables = session.scalars(text("select name from sqlite_master where type = 'table'")).all()
        kept = str([session.execute(text(f"select * from {one}")).all() for one in tables])
    assert "login refused from 127.0.0.1" in caplog.text
    for secret in secrets:
        assert secret not in kept
        assert secret not in caplog.text


HOSTILE = [
    {}, {"id": "AAAA"}, {"id": 1, "challenge": "", "response": {}},
    {"id": "x" * 2000, "challenge": "AAAA", "response": {}},
    {"id": "é", "challenge": "é", "response": {"clientDataJSON": "é", "attestationObject": "é"}},
    {"id": "AAAA", "challenge": "AAAA", "response": {"clientDataJSON": "W10"}},
    {"id": "AAAA", "challenge": "AAAA", "extra": 1, "response": {}},
]  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE)
def test_hostile_answers_of_passkeys_are_refused(fleet, code, body):
    assert 400 <= knock(fleet, "/passkey", **body).status_code < 500
    answer = knock(fleet, "/code/passkey", code=code, passkey=body)
    assert 400 <= answer.status_code < 500
    assert with_password(fleet, code).status_code == 200

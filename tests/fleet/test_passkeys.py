"""Passkeys below the API: whom they belong to, challenges, and answers no authenticator gives."""

from __future__ import annotations

import json
from random import Random

import cbor2
import pytest
from passkey import AT, UP, UV, Passkey, bytes64, text64

from edgepack_contract.canonical import decode
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import PasskeyRow, UserRow
from edgepack_fleet.errors import InvalidRequestError
from edgepack_fleet.passkeys import (
    CHALLENGE_TTL_MS,
    Challenges,
    NewPasskey,
    RelyingParty,
    UsedPasskey,
    add_passkey,
    relying_party,
    use_passkey,
)

HERE = RelyingParty("localhost", "http://localhost:8080")
OPTIONS = {"challenge": text64(b"c" * 32)}


@pytest.mark.parametrize(
    ("url", "party"),
    [
        ("https://fleet.example", ("fleet.example", "https://fleet.example")),
        ("https://Fleet.Example:443/x", ("fleet.example", "https://fleet.example")),
        ("https://fleet.example:8443", ("fleet.example", "https://fleet.example:8443")),
        ("http://127.0.0.1:8080", ("localhost", "http://localhost:8080")),
        ("http://localhost", ("localhost", "http://localhost")),
        ("http://[::1]:8080", ("localhost", "http://localhost:8080")),
        ("https://10.0.0.1:8443", None),
        ("https://[2001:db8::1]", None),
        ("http://fleet.example", None),
    ],
)
def test_a_passkey_belongs_to_a_name_that_browsers_trust(url, party):
    assert relying_party(url) == (None if party is None else RelyingParty(*party))


def test_a_challenge_is_good_once_for_its_purpose_and_for_two_minutes():
    challenges = Challenges()
    first, second, third, fourth = (challenges.new("login", 1000) for _ in range(4))
    assert challenges.take(first, "login", 1000 + CHALLENGE_TTL_MS - 1)
    assert not challenges.take(first, "login", 1000)
    assert not challenges.take(second, "other", 1000)
    assert not challenges.take(second, "login", 1000)
    assert not challenges.take(third, "login", 1000 + CHALLENGE_TTL_MS)
    assert not challenges.take(fourth, "login", 999)
    assert not challenges.take(b"", "login", 1000)


def test_only_so_many_challenges_wait():
    challenges = Challenges(max_waiting=2)
    first, second, third = (challenges.new("login", 0) for _ in range(3))
    assert not challenges.take(first, "login", 0)
    assert challenges.take(second, "login", 0)
    assert challenges.take(third, "login", 0)


@pytest.fixture
def session(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    with database.write() as session:
        session.add(UserRow(name="anna", role="admin", created_ms=0))
        session.flush()
        yield session
    database.close()


def new(body):
    return decode(_json(body), NewPasskey, what="passkey", max_bytes=10**6)


def used(body):
    return decode(_json(body), UsedPasskey, what="passkey", max_bytes=10**6)


def _json(body):
    return json.dumps(body).encode()


def mangled(rng, text):
    raw = bytearray(bytes64(text))
    for _ in range(rng.randint(1, 3)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    end = rng.choice([len(raw), rng.randrange(len(raw) + 1)])
    return text64(bytes(raw[:end]))


def is_added(session, made):
    try:
        add_passkey(session, HERE, "anna", new(made), now_ms=0)
    except InvalidRequestError:
        return False
    return True


def test_a_mangled_answer_is_refused_and_nothing_else(session):
    rng, added = Random(7), 0
    for number in range(4000):
        made = Passkey(id=b"%d" % number).make(OPTIONS)
        field = rng.choice(["clientDataJSON", "attestationObject", "attestationObject"])
        made["response"][field] = mangled(rng, made["response"][field])
        added += is_added(session, made)
    # what is not signed may change: the model of the authenticator, the counter it begins with
    assert added < 2000


def test_a_mangled_use_lets_nobody_in(session):
    passkey = Passkey()
    add_passkey(session, HERE, "anna", new(passkey.make(OPTIONS)), now_ms=0)
    rng = Random(7)
    for _ in range(2000):
        body = passkey.use(OPTIONS)
        field = rng.choice(list(body["response"]))
        changed = mangled(rng, body["response"][field])
        if changed != body["response"][field]:
            body["response"][field] = changed
            assert use_passkey(session, HERE, used(body), now_ms=0) is None
    assert use_passkey(session, HERE, used(passkey.use(OPTIONS)), now_ms=5) == "anna"
    assert session.get(PasskeyRow, text64(passkey.id)).last_used_ms == 5


@pytest.mark.parametrize(
    "key",
    [
        {}, {1: 2}, 0, None, [], "x", {1: 2, 3: -7, -1: 1, -2: b"\1" * 32, -3: b"\1" * 32},
        {1: 2, 3: -7, -1: 1, -2: 5, -3: b""}, {1: 3, 3: -257, -1: b"", -2: b""},
        {1: 3, 3: -257, -1: b"\1", -2: b"\0"}, {1: 1, 3: -8, -1: 6, -2: b"short"},
        {1: 9, 3: -7}, {1: 2, 3: -47, -1: 8, -2: b"\1" * 32, -3: b"\1" * 32},
    ],
)  # fmt: skip
def test_a_key_that_can_check_nothing_is_refused(session, key):
    passkey = Passkey()
    made = passkey.make(OPTIONS)
    attested = b"\1" * 16 + len(passkey.id).to_bytes(2, "big") + passkey.id + cbor2.dumps(key)
    data = passkey._data(UP | UV | AT) + attested
    attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
    made["response"]["attestationObject"] = text64(attestation)
    with pytest.raises(InvalidRequestError, match="does not hold"):
        add_passkey(session, HERE, "anna", new(made), now_ms=0)

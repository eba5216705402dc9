"""Enrolment in the database: what a return brings back, and what holds whatever anybody does."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from fleet_devices import NOW, FakeDevice
from fleet_http import bundle_file, open_fleet
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete, select

from edgepack_contract.canonical import canonical_json
from edgepack_contract.dsse import claimed_payload
from edgepack_contract.keys import PrivateKey
from edgepack_contract.messages import Desired, Probation
from edgepack_contract.topics import Kind
from edgepack_fleet import devices, enrolment
from edgepack_fleet.authority import SAME_MS, issue_certificate, open_authorities, revocation_list
from edgepack_fleet.credentials import broker_address
from edgepack_fleet.db.schema import (
    CertificateRow,
    DesiredDocument,
    DesiredSlot,
    Device,
    EnrolmentRow,
    JoinTokenRow,
    OutboxRow,
    PreauthorisedRow,
)
from edgepack_fleet.desired import SlotWish
from edgepack_fleet.errors import BrokerError, RequestError
from edgepack_fleet.ingest import Incoming, Ingest
from edgepack_fleet.join_tokens import Mode, Terms, create_join_token
from edgepack_fleet.membership import Status

KEYS = [PrivateKey.generate() for _ in range(3)]


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        yield fleet


def wish(key, token, name="pi-1"):
    return enrolment.Wish(name, key.public, {}, token)


def new_token(session, name="auto", mode=Mode.AUTO, uses=100):
    terms = Terms(mode=mode, max_uses=uses, ttl_seconds=86_400)
    made = create_join_token(session, name=name, terms=terms, created_by="x", now_ms=NOW)
    return made.token


def joins(fleet, key, token, *, mac=b"m" * 32, now_ms=NOW):
    with fleet.context.database.write() as session:
        return enrolment.ask(
            session, wish(key, token), writer=fleet.context.writer, mac_key=mac, now_ms=now_ms
        )


def approves(fleet, key, mac=b"n" * 32):
    with fleet.context.database.write() as session:
        enrolment.approve(
            session, "pi-1", key.public.fingerprint, writer=fleet.context.writer, mac_key=mac,
            now_ms=NOW,
        )  # fmt: skip


def document(fleet):
    with fleet.context.database.read() as session:
        row = session.get(DesiredDocument, "pi-1")
    if row is None:
        return None
    payload = claimed_payload(row.envelope, what="desired", max_bytes=99_999)
    return msgspec.json.decode(payload, type=Desired)


@pytest.fixture
def told(fleet):
    """A member that was told to run a bundle."""
    digest = fleet.push(bundle_file(fleet.folder)).json()["digest"]
    with fleet.context.database.write() as session:
        token = new_token(session)
    joins(fleet, KEYS[0], token)
    with fleet.context.database.write() as session:
        slot = SlotWish("pi-1", "digits", "digits", digest, Probation(), "a test")
        fleet.context.writer.wish(session, slot, now_ms=NOW)
    return token


def test_who_returns_after_a_revocation_is_told_what_it_was_told(fleet, told):
    before = document(fleet)
    with fleet.context.database.write() as session:
        devices.revoke_device(session, "pi-1", now_ms=NOW)
        assert not fleet.context.writer.issue(session, "pi-1", now_ms=NOW)
    assert joins(fleet, KEYS[1], told).returning
    assert document(fleet) == before
    approves(fleet, KEYS[1])
    after = document(fleet)
    assert after.enrolment == KEYS[1].public.fingerprint
    assert after.generation == before.generation + 1
    assert after.slots == before.slots
    with fleet.context.database.read() as session:
        sent = session.execute(
            select(OutboxRow.topic, OutboxRow.payload).order_by(OutboxRow.id)
        ).all()
    assert [bool(payload) for topic, payload in sent if topic.endswith("/desired")] == [
        True, False, True,
    ]  # fmt: skip


def test_who_returns_after_a_decommission_is_told_nothing(fleet, told):
    with fleet.context.database.write() as session:
        devices.decommission_device(session, "pi-1", now_ms=NOW)
    joins(fleet, KEYS[1], told)
    approves(fleet, KEYS[1])
    assert document(fleet) is None
    with fleet.context.database.read() as session:
        assert session.scalars(select(DesiredSlot)).all() == []


def test_an_error_on_the_way_leaves_nothing(fleet, monkeypatch):
    with fleet.context.database.write() as session:
        token = new_token(session)

    def fails(*_, **__):
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(type(fleet.context.writer), "issue", fails)
    with pytest.raises(RuntimeError):
        joins(fleet, KEYS[0], token)
    with fleet.context.database.read() as session:
        assert session.get_one(JoinTokenRow, "auto").uses == 0
        assert devices.standing_of(session, "pi-1") is Status.UNKNOWN


def test_a_device_that_is_added_by_hand_waits_no_longer(fleet):
    with fleet.context.database.write() as session:
        token = new_token(session, mode=Mode.PENDING)
    joins(fleet, KEYS[0], token)
    with fleet.context.database.write() as session:
        FakeDevice("pi-1").enrol(session)
        assert enrolment.list_pending(session) == []


def test_a_certificate_of_an_authority_that_was_replaced_is_not_given_again(fleet):
    fleet.add_device("pi-1")
    config = fleet.context.config
    (authority,) = open_authorities(config.keys)
    other = type(authority).create(PrivateKey.generate(), name="a test fleet", now_ms=NOW)
    with fleet.context.database.write() as session:
        device = session.get_one(Device, "pi-1")
        serials = [
            issue_certificate(session, one, device, now_ms=now_ms).serial
            for one, now_ms in [
                (authority, NOW), (authority, NOW + SAME_MS - 1), (other, NOW + SAME_MS - 1),
                (other, NOW + SAME_MS), (other, NOW + 2 * SAME_MS),
            ]
        ]  # fmt: skip
    first, again, theirs, same, later = serials
    assert first == again
    assert theirs == same
    assert len({first, theirs, later}) == 3


def test_a_certificate_is_on_the_list_until_a_month_after_its_end(fleet):
    fleet.add_device("pi-1")
    (authority,) = open_authorities(fleet.context.config.keys)
    with fleet.context.database.write() as session:
        device = session.get_one(Device, "pi-1")
        end = issue_certificate(session, authority, device, now_ms=NOW).expires_ms
        devices.revoke_device(session, "pi-1", now_ms=NOW)
        month = 30 * 86_400_000
        sizes = [
            len(revocation_list(session, authority, at)) for at in (end + month, end + month + 1)
        ]
    assert sizes[0] > sizes[1]


HERE, THERE = "http://127.0.0.1:8080", "https://fleet.example"


@pytest.mark.parametrize(
    ("said", "url", "expected"),
    [
        ({}, HERE, ("127.0.0.1", 1883, False)),
        ({"broker_port": 1884}, HERE, ("127.0.0.1", 1884, False)),
        ({"broker_host": "b.example", "broker_tls": True}, HERE, ("b.example", 1883, True)),
        ({"broker_host": "b.example", "broker_tls": True}, THERE, ("b.example", 1883, True)),
        ({}, THERE, None),
        ({"broker_host": "b.example"}, THERE, None),
        ({"broker_host": "b.example", "broker_tls": False}, THERE, None),
        ({"broker_tls": True}, THERE, None),
    ],
)
def test_where_the_broker_is(fleet, said, url, expected):
    config = fleet.context.config
    enrolment_config = msgspec.convert(said, type(config.enrolment))
    config = msgspec.structs.replace(config, enrolment=enrolment_config)
    if expected is None:
        with pytest.raises(BrokerError, match="broker_host") as refused:
            broker_address(config, url)
        assert refused.value.code == "broker-address"
        return
    found = broker_address(config, url)
    assert (found.host, found.port, found.tls) == expected


class Membership(RuleBasedStateMachine):
    """Three keys, one id, and everything that anybody can do, in any order."""

    fleet = None  # set by the test

    def __init__(self):
        super().__init__()
        self.names = itertools.count()
        self.macs = itertools.count()
        self.burnt = set()
        self.tokens = []
        self.given = {}
        with self.database.write() as session:
            for table in (OutboxRow, CertificateRow, EnrolmentRow, PreauthorisedRow, JoinTokenRow):
                session.execute(delete(table))
            session.execute(delete(Device))

    @property
    def database(self):
        return self.fleet.context.database

    def status(self):
        with self.database.read() as session:
            row = session.get(Device, "pi-1")
            return devices.standing_of(session, "pi-1"), None if row is None else row.enrolment

    @rule(auto=st.booleans())
    def somebody_makes_a_token(self, auto):
        with self.database.write() as session:
            name = f"t{id(self)}-{next(self.names)}"
            mode = Mode.AUTO if auto else Mode.PENDING
            self.tokens.append((name, new_token(session, name, mode, uses=2)))

    @rule(key=st.integers(0, 2), token=st.integers(0, 2))
    def a_device_asks(self, key, token):
        secret = self.tokens[token][1] if token < len(self.tokens) else "epj_" + "x" * 49
        mac = next(self.macs).to_bytes(32, "big")
        before, holder = self.status()
        try:
            outcome = joins(self.fleet, KEYS[key], secret, mac=mac)
        except RequestError:
            assert self.status() == (before, holder)
            return
        if outcome.status is Status.ACCEPTED:
            assert self.status()[1] == KEYS[key].public.fingerprint

    @rule(key=st.integers(0, 2))
    def an_operator_approves(self, key):
        try:
            approves(self.fleet, KEYS[key], next(self.macs).to_bytes(32, "big"))
        except RequestError:
            return
        assert self.status() == (Status.ACCEPTED, KEYS[key].public.fingerprint)

    @rule(step=st.sampled_from(["reject", "revoke", "decommission"]))
    def an_operator_refuses(self, step):
        calls = {
            "reject": enrolment.reject,
            "revoke": devices.revoke_device,
            "decommission": devices.decommission_device,
        }
        try:
            with self.database.write() as session:
                calls[step](session, "pi-1", now_ms=NOW)
        except RequestError:
            return
        assert self.status()[0] is not Status.ACCEPTED

    @rule(key=st.integers(0, 2))
    def somebody_announces(self, key):
        fingerprint = KEYS[key].public.fingerprint
        try:
            with self.database.write() as session:
                enrolment.preauthorise(
                    session, device="pi-1", key=fingerprint, labels={}, now_ms=NOW
                )
        except RequestError:
            assert self.status()[0] is Status.ACCEPTED or self.status()[1] == fingerprint

    @invariant()
    def no_token_lets_in_more_than_it_says(self):
        with self.database.read() as session:
            assert all(row.uses <= row.max_uses for row in session.scalars(select(JoinTokenRow)))

    @invariant()
    def every_enrolment_has_a_mac_key_of_its_own(self):
        with self.database.read() as session:
            row = session.get(Device, "pi-1")
        if row is not None and row.status == "accepted":
            holder = self.given.setdefault(row.mac_key, row.enrolment)
            assert holder == row.enrolment

    @invariant()
    def only_a_members_key_is_heard(self):
        with self.database.read() as session:
            row = session.get(Device, "pi-1")
        if row is None:
            return
        device = FakeDevice("pi-1", session=1)
        device.mac_key = row.mac_key
        ingest = Ingest(self.database, tenant="default", publish=lambda _: None)
        message = device.sealed(Kind.STATE, canonical_json({"x": 1}))
        ingest.commit([Incoming(message.topic, message.payload, NOW)])
        heard = "malformed-document" in ingest.counts
        assert heard == (row.status == "accepted")

    @invariant()
    def nobody_out_has_a_good_certificate(self):
        with self.database.read() as session:
            row = session.get(Device, "pi-1")
            good = session.scalars(
                select(CertificateRow).where(CertificateRow.revoked_ms.is_(None))
            ).all()
        assert row is None or row.status == "accepted" or good == []


def test_what_holds_whatever_anybody_does(fleet):
    Membership.fleet = fleet
    run_state_machine_as_test(
        Membership,
        settings=settings(
            max_examples=12, stateful_step_count=25, deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip

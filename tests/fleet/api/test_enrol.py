"""Joining a fleet over HTTP: tokens, waiting, approval, renewal, the end of a membership."""

from __future__ import annotations

import base64
import threading

import msgspec
import pytest
from cryptography import x509
from fleet_http import AUTHORITY_KEY, FLEET_KEY, OWNER, START_MS, device_header, open_fleet
from sqlalchemy import func, select

from edgepack_contract.certificates import Authority, common_name, make_request, read_certificate
from edgepack_contract.dsse import PayloadType, seal_envelope
from edgepack_contract.enrolment import (
    COMEBACK_DAYS,
    EnrolAnswer,
    Renewal,
    RenewalAnswer,
    Standing,
    sign_renewal,
)
from edgepack_contract.keyring import make_keyring, open_keyring
from edgepack_contract.keys import PrivateKey, read_private_key, write_private_key
from edgepack_contract.sealing import derived_secret
from edgepack_fleet import enrolment
from edgepack_fleet.db.schema import (
    AuditRow,
    CertificateRow,
    Device,
    EnrolmentRow,
    JoinTokenRow,
    OutboxRow,
)

DAY_MS = 86_400_000


class Joiner:
    """A device that wants to join."""

    def __init__(self, fleet, name="pi-1", key=None):
        self.fleet, self.name, self.key = fleet, name, key or PrivateKey.generate()
        self.request = make_request(self.key, name=name).decode()

    def ask(self, token, **changes):
        """Send the wish; every time a little later, within the limit of requests."""
        self.fleet.clock.now_ms += 7000
        body = {"token": token, "request": self.request, "nonce": "n-1"} | changes
        return self.fleet.client().post("/api/v1/enrol", json=body)

    def asks(self, token, **changes):
        answer = self.ask(token, **changes)
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=EnrolAnswer)

    def renew(self, **changes):
        self.fleet.clock.now_ms += 7000
        values = {
            "tenant": "default", "device": self.name,
            "enrolment": self.key.public.fingerprint, "nonce": "r-1",
        }  # fmt: skip
        raw = sign_renewal(Renewal(**values | changes), self.key)
        return self.fleet.client().post("/api/v1/enrol/renew", content=raw)


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        yield fleet


def token(fleet, name="gateways", role="admin", **terms):
    made = fleet.client(role).post("/api/v1/join-tokens", json={"name": name, **terms})
    assert made.status_code == 201, made.text
    return made.json()["token"]


def auto(fleet, name="auto", **terms):
    return token(fleet, name, mode="auto", **{"max_uses": 100, **terms})


def approve(fleet, joiner, key=None):
    path = f"/api/v1/enrolments/{joiner.name}/approve"
    return fleet.client("operator").post(path, json={"key": key or joiner.key.public.fingerprint})


def act(fleet, name, verb, role="operator"):
    return fleet.client(role).post(f"/api/v1/devices/{name}/{verb}")


def row(fleet, shape, key):
    with fleet.context.database.read() as session:
        return session.get(shape, key)


def actions(fleet):
    with fleet.context.database.read() as session:
        return [
            (one.actor, one.action, one.subject)
            for one in session.scalars(select(AuditRow).order_by(AuditRow.sequence))
        ]


def codes(answer):
    return answer.status_code, answer.json()["code"]


def add_authority(fleet, name):
    """Make another authority in the folder of the service; nobody knows of it yet."""
    key = PrivateKey.generate()
    authority = Authority.create(key, name=f"a test fleet {name}", now_ms=START_MS)
    write_private_key(fleet.folder / f"{name}.key", key)
    (fleet.folder / f"{name}.pem").write_bytes(authority.pem)
    return authority


def configured(fleet, *names):
    config = fleet.context.config
    keys = msgspec.structs.replace(
        config.keys,
        authority=tuple(str(fleet.folder / f"{name}.key") for name in names),
        authority_certificate=tuple(str(fleet.folder / f"{name}.pem") for name in names),
    )
    return msgspec.structs.replace(config, keys=keys)


def name_authorities(fleet, *authorities):
    """Put a keyring in force that names these, in this order."""
    before = fleet.context.keeper.trust.keyring
    file = make_keyring(
        OWNER, version=before.version + 1, epoch=before.epoch, publishers=before.publishers,
        fleets=[FLEET_KEY.public], authorities=[one.pem.decode() for one in authorities],
    )  # fmt: skip
    fleet.context.keeper.push(file, actor="test", address="here", now_ms=START_MS)


def listed(fleet):
    """What each authority has taken back, by its name, as brokers are told."""
    begin, pem = b"-----BEGIN X509 CRL-----", fleet.client().get("/api/v1/crl").content
    lists = [x509.load_pem_x509_crl(begin + one) for one in pem.split(begin)[1:]]
    return {
        one.issuer.rfc4514_string().removeprefix("CN="): {row.serial_number for row in one}
        for one in lists
    }


def test_the_keyrings_last_authority_issues_and_each_lists_what_it_took_back(fleet):
    old = Authority.open(
        read_private_key(fleet.folder / "authority.key"),
        (fleet.folder / "authority.pem").read_bytes(),
    )
    new = add_authority(fleet, "new")
    object.__setattr__(fleet.context, "config", configured(fleet, "new", "authority"))
    secret, joiner = auto(fleet), Joiner(fleet)
    first = read_certificate(joiner.asks(secret).member.certificate.encode())
    first.verify_directly_issued_by(old.certificate)
    name_authorities(fleet, old, new)
    answer = msgspec.json.decode(joiner.renew().content)
    second = read_certificate(answer["certificate"].encode())
    second.verify_directly_issued_by(new.certificate)
    assert listed(fleet) == {"a test fleet": set(), "a test fleet new": set()}
    act(fleet, "pi-1", "revoke")
    both = {"a test fleet": {first.serial_number}, "a test fleet new": {second.serial_number}}
    assert listed(fleet) == both
    name_authorities(fleet, new)
    assert listed(fleet) == both


class TestJoining:
    def test_an_accepted_device_gets_everything_that_it_needs(self, fleet):
        joiner = Joiner(fleet)
        answer = joiner.asks(auto(fleet, labels={"site": "oslo"}), labels={"site": "x", "a": "b"})
        member = answer.member
        assert (answer.status, answer.nonce) == (Standing.ACCEPTED, "n-1")
        assert (member.tenant, member.device) == ("default", "pi-1")
        certificate = read_certificate(member.certificate.encode())
        authority = Authority.open(AUTHORITY_KEY, (fleet.folder / "authority.pem").read_bytes())
        certificate.verify_directly_issued_by(authority.certificate)
        assert common_name(certificate) == "pi-1"
        assert 89 < (member.certificate_expires - START_MS) / DAY_MS <= 90.1
        owner = fleet.context.config.keys.owner
        assert open_keyring(member.keyring.encode(), owner_fingerprint=owner).version == 1
        assert (member.broker.host, member.broker.port, member.broker.tls) == (
            "127.0.0.1", 1883, False,
        )  # fmt: skip
        device = row(fleet, Device, "pi-1")
        assert device.mac_key.hex() == member.mac_key
        assert device.enrolment == joiner.key.public.fingerprint
        assert device.labels == {"site": "oslo", "a": "b"}
        assert ("join-token:auto", "device.enrol", "pi-1") in actions(fleet)

    def test_one_that_waits_is_accepted_once_an_operator_has_looked_at_its_key(self, fleet):
        joiner, secret = Joiner(fleet), token(fleet)
        first = joiner.asks(secret)
        assert (first.status, first.member) == (Standing.PENDING, None)
        assert f"edgepack device approve pi-1 (its key is {joiner.key.public.fingerprint})" in (
            first.words
        )
        assert row(fleet, Device, "pi-1") is None
        assert codes(approve(fleet, joiner, key="0" * 64)) == (409, "other-key")
        assert approve(fleet, joiner).status_code == 200
        assert approve(fleet, joiner).status_code == 200
        assert joiner.asks(secret).status is Standing.ACCEPTED
        assert [one[1] for one in actions(fleet)].count("device.enrol") == 1
        assert row(fleet, JoinTokenRow, "gateways").uses == 1

    def test_who_is_rejected_hears_it_and_may_be_approved_after_all(self, fleet):
        joiner, secret = Joiner(fleet), token(fleet)
        joiner.asks(secret)
        assert fleet.client("operator").post("/api/v1/enrolments/pi-1/reject").status_code == 200
        assert codes(joiner.ask(secret)) == (403, "rejected")
        assert approve(fleet, joiner).status_code == 200
        assert joiner.asks(secret).status is Standing.ACCEPTED

    def test_asking_again_is_the_same_device_even_after_the_token_is_gone(self, fleet):
        joiner, secret = Joiner(fleet), auto(fleet, max_uses=1)
        first = joiner.asks(secret)
        assert codes(Joiner(fleet, "pi-2").ask(secret)) == (403, "bad-join-token")
        fleet.client("admin").request("DELETE", "/api/v1/join-tokens/auto")
        fleet.clock.now_ms += 3 * 3_600_000
        again = joiner.asks(secret, nonce="n-2")
        assert (again.nonce, again.member) == ("n-2", first.member)

    def test_another_token_that_is_good_serves_a_device_that_is_known(self, fleet):
        joiner = Joiner(fleet)
        first = joiner.asks(auto(fleet, "a"))
        assert joiner.asks(auto(fleet, "b")).member.mac_key == first.member.mac_key
        assert row(fleet, JoinTokenRow, "b").uses == 1
        assert codes(joiner.ask("epj_" + "x" * 49)) == (403, "bad-join-token")

    def test_an_id_belongs_to_one_key(self, fleet):
        secret = auto(fleet)
        Joiner(fleet).asks(secret)
        answer = Joiner(fleet).ask(secret)
        assert codes(answer) == (409, "id-taken")
        assert "choose another id" in answer.json()["detail"]
        assert row(fleet, JoinTokenRow, "auto").uses == 1

    def test_a_key_belongs_to_one_id(self, fleet):
        secret, joiner = auto(fleet), Joiner(fleet)
        joiner.asks(secret)
        answer = Joiner(fleet, "pi-2", key=joiner.key).ask(secret)
        assert codes(answer) == (409, "key-taken")
        assert "pi-1" in answer.json()["detail"]

    def test_who_waits_keeps_the_id_but_an_admitted_one_comes_first(self, fleet):
        waiting = Joiner(fleet)
        waiting.asks(token(fleet, max_uses=9))
        assert codes(Joiner(fleet).ask(token(fleet, "more"))) == (409, "id-taken")
        assert Joiner(fleet).asks(auto(fleet)).status is Standing.ACCEPTED

    def test_an_announced_key_is_accepted_with_any_token_and_only_for_its_id(self, fleet):
        joiner = Joiner(fleet)
        body = {"device": "pi-1", "key": joiner.key.public.fingerprint, "labels": {"site": "b"}}
        client = fleet.client("operator")
        assert client.post("/api/v1/preauthorised", json=body).status_code == 204
        secret = token(fleet, max_uses=5, labels={"site": "a"})
        other = Joiner(fleet, "pi-2", key=joiner.key)
        assert other.asks(secret).status is Standing.PENDING
        assert joiner.asks(secret).status is Standing.ACCEPTED
        assert row(fleet, Device, "pi-1").labels == {"site": "b"}
        assert codes(client.post("/api/v1/preauthorised", json=body)) == (409, "is-member")
        again = body | {"device": "pi-3"}
        assert codes(client.post("/api/v1/preauthorised", json=again)) == (409, "key-taken")

    def test_without_an_authority_there_is_no_certificate(self, fleet):
        keys = fleet.context.config.keys
        keys = msgspec.structs.replace(keys, authority=None, authority_certificate=None)
        config = msgspec.structs.replace(fleet.context.config, keys=keys)
        object.__setattr__(fleet.context, "config", config)
        member = Joiner(fleet).asks(auto(fleet)).member
        assert (member.certificate, member.certificate_expires) == (None, None)
        assert codes(Joiner(fleet).renew()) == (403, "bad-renewal")
        assert codes(fleet.client().get("/api/v1/crl")) == (404, "no-authority")

    def test_an_authority_that_devices_would_not_believe_issues_nothing(self, fleet):
        secret, other = auto(fleet), add_authority(fleet, "other")
        object.__setattr__(fleet.context, "config", configured(fleet, "other"))
        answer = Joiner(fleet).ask(secret)
        assert codes(answer) == (503, "unknown-authority")
        assert "other.pem" in answer.json()["detail"]
        assert row(fleet, JoinTokenRow, "auto").uses == 0
        name_authorities(fleet, other)
        assert Joiner(fleet).asks(secret).member.certificate is not None

    def test_an_authority_that_cannot_be_read_is_503_and_nothing_is_used_up(self, fleet):
        secret = auto(fleet)
        (fleet.folder / "authority.key").chmod(0o644)
        answer = Joiner(fleet).ask(secret)
        assert codes(answer) == (503, "authority")
        assert "chmod 600" in answer.json()["detail"]
        assert row(fleet, JoinTokenRow, "auto").uses == 0

    def test_where_the_broker_is_for_devices_can_be_said(self, fleet):
        said = {"broker_host": "broker.example", "broker_port": 8883, "broker_tls": True}
        old = fleet.context.config
        config = msgspec.structs.replace(old, enrolment=msgspec.convert(said, type(old.enrolment)))
        object.__setattr__(fleet.context, "config", config)
        broker = Joiner(fleet).asks(auto(fleet)).member.broker
        assert (broker.host, broker.port, broker.tls) == ("broker.example", 8883, True)


class TestBadWishes:
    def test_a_token_that_is_wrong_in_any_way_is_refused_alike(self, fleet):
        used, late = auto(fleet, "used", max_uses=1), token(fleet, "late", ttl_seconds=1)
        gone = token(fleet, "gone")
        fleet.client("admin").request("DELETE", "/api/v1/join-tokens/gone")
        Joiner(fleet, "pi-9").asks(used)
        Joiner(fleet, "taken").asks(auto(fleet))
        answers = {
            Joiner(fleet, name).ask(secret).text
            for name in ("pi-1", "taken")
            for secret in (used, late, gone, "epj_" + "x" * 49, "", "epa_" + "x" * 49)
        }
        assert len(answers) == 1
        assert "bad-join-token" in answers.pop()

    @pytest.mark.parametrize(
        ("change", "status", "code"),
        [
            ({"request": "nothing"}, 422, "bad-request"),
            ({"request": "x" * 17_000}, 422, None),
            ({"labels": {"Site": "a"}}, 422, "invalid"),
            ({"labels": {f"l{n}": "" for n in range(65)}}, 422, "invalid"),
            ({"nonce": "n" * 129}, 422, None),
            ({"more": 1}, 422, None),
            ({"request": None}, 422, None),
        ],
    )
    def test_a_malformed_wish_is_refused(self, fleet, change, status, code):
        answer = Joiner(fleet).ask(auto(fleet), **change)
        assert answer.status_code == status, answer.text
        assert code in (None, answer.json()["code"])
        assert row(fleet, JoinTokenRow, "auto").uses == 0

    def test_the_sender_must_have_the_key(self, fleet):
        joiner = Joiner(fleet)
        raw = bytearray(base64.b64decode("".join(joiner.request.splitlines()[1:-1])))
        raw[-4] ^= 1
        pem = b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(bytes(raw))
        pem += b"-----END CERTIFICATE REQUEST-----\n"
        answer = joiner.ask(auto(fleet), request=pem.decode())
        assert codes(answer) == (422, "bad-request")

    @pytest.mark.parametrize("name", ["Pi-1", "a/b", "+", "#", "_fleet", "x" * 64, "../etc"])
    def test_an_id_that_is_no_id_is_refused(self, fleet, name):
        assert codes(Joiner(fleet, name).ask(auto(fleet))) == (422, "bad-id")

    def test_another_curve_is_refused(self, fleet):
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pi-1")])
        request = x509.CertificateSigningRequestBuilder().subject_name(name)
        pem = request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        assert codes(Joiner(fleet).ask(auto(fleet), request=pem.decode())) == (422, "bad-key")

    def test_too_many_do_not_wait(self, fleet, monkeypatch):
        monkeypatch.setattr(enrolment, "MAX_PENDING", 2)
        secret = token(fleet, max_uses=9)
        for number in (1, 2):
            assert Joiner(fleet, f"pi-{number}").asks(secret).status is Standing.PENDING
        assert codes(Joiner(fleet, "pi-3").ask(secret)) == (409, "too-many-pending")
        assert row(fleet, JoinTokenRow, "gateways").uses == 2
        assert Joiner(fleet, "pi-4").asks(auto(fleet)).status is Standing.ACCEPTED

    def test_a_wish_is_forgotten_after_a_week(self, fleet):
        joiner, secret = Joiner(fleet), token(fleet)
        joiner.asks(secret)
        fleet.clock.now_ms += 7 * DAY_MS + 1
        assert codes(joiner.ask(secret)) == (403, "bad-join-token")
        Joiner(fleet, "pi-2").asks(token(fleet, "new"))
        assert row(fleet, EnrolmentRow, "pi-1") is None

    def test_one_address_asks_ten_times_a_minute(self, fleet):
        joiner = Joiner(fleet)
        body = {"token": "epj_" + "x" * 49, "request": joiner.request, "nonce": "n"}
        answers = [fleet.client().post("/api/v1/enrol", json=body) for _ in range(12)]
        assert [one.status_code for one in answers] == [403] * 10 + [429] * 2
        assert int(answers[-1].headers["Retry-After"]) >= 1

    def test_a_token_for_one_device_admits_one_of_many_at_once(self, fleet):
        secret = auto(fleet, max_uses=1)
        joiners = [Joiner(fleet, f"pi-{number}") for number in range(6)]
        answers = []
        threads = [
            threading.Thread(target=lambda one=one: answers.append(one.ask(secret)))
            for one in joiners
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(one.status_code for one in answers) == [200] + [403] * 5


class TestTheEnd:
    def test_a_revoked_device_is_out_at_once(self, fleet):
        joiner, secret = Joiner(fleet), auto(fleet)
        member = joiner.asks(secret).member
        assert act(fleet, "pi-1", "revoke").json()["status"] == "revoked"
        crl = x509.load_pem_x509_crl(fleet.client().get("/api/v1/crl").content)
        serial = read_certificate(member.certificate.encode()).serial_number
        assert crl.get_revoked_certificate_by_serial_number(serial) is not None
        assert codes(joiner.renew()) == (403, "revoked")
        assert codes(joiner.ask(secret)) == (403, "revoked")
        pull = derived_secret(bytes.fromhex(member.mac_key), "pull")
        header = "Basic " + base64.b64encode(f"pi-1:{pull}".encode()).decode()
        assert fleet.client(Authorization=header).get("/v2/").status_code == 401
        with fleet.context.database.read() as session:
            cleared = session.execute(select(OutboxRow.topic, OutboxRow.payload)).all()
        assert cleared == [("edgepack/v1/default/pi-1/desired", b"")]

    def test_it_comes_back_with_a_new_key_and_an_operators_word(self, fleet):
        old, secret = Joiner(fleet), auto(fleet)
        before = old.asks(secret).member
        with fleet.context.database.write() as session:
            device = session.get(Device, "pi-1")
            device.session, device.reported_sequence, device.generation_seen = 9, 8, 7
            device.labels = {"site": "oslo"}
        act(fleet, "pi-1", "revoke")
        new = Joiner(fleet)
        assert new.asks(secret).status is Standing.PENDING
        assert codes(old.ask(secret)) == (403, "revoked")
        assert approve(fleet, new).status_code == 200
        after = new.asks(secret).member
        assert after.mac_key != before.mac_key
        device = row(fleet, Device, "pi-1")
        assert (device.session, device.reported_sequence, device.generation_seen) == (0, 0, 0)
        assert device.enrolment == new.key.public.fingerprint
        assert device.labels == {"site": "oslo"}
        assert codes(old.ask(secret)) == (409, "id-taken")
        assert codes(old.renew()) == (403, "bad-renewal")
        with fleet.context.database.read() as session:
            good = session.scalars(
                select(CertificateRow.serial).where(CertificateRow.revoked_ms.is_(None))
            ).all()
        assert len(good) == 1

    def test_a_rejected_return_leaves_it_revoked(self, fleet):
        old, secret = Joiner(fleet), auto(fleet)
        old.asks(secret)
        act(fleet, "pi-1", "revoke")
        new = Joiner(fleet)
        new.asks(secret)
        fleet.client("operator").post("/api/v1/enrolments/pi-1/reject")
        assert codes(old.ask(secret)) == (403, "revoked")
        assert codes(new.ask(secret)) == (403, "rejected")
        assert row(fleet, Device, "pi-1").status == "revoked"

    def test_a_decommissioned_device_leaves_nothing_to_its_successor(self, fleet):
        Joiner(fleet).asks(auto(fleet, labels={"site": "oslo"}))
        assert act(fleet, "pi-1", "decommission").json()["status"] == "decommissioned"
        with fleet.context.database.read() as session:
            topics = set(session.scalars(select(OutboxRow.topic)))
        assert {one.rpartition("/")[2] for one in topics} == {
            "state", "birth", "reported", "desired",
        }  # fmt: skip
        new, secret = Joiner(fleet), token(fleet)
        new.asks(secret)
        approve(fleet, new)
        assert row(fleet, Device, "pi-1").labels == {}

    def test_ends_are_for_members(self, fleet):
        for verb in ("revoke", "decommission"):
            assert codes(act(fleet, "pi-1", verb)) == (404, "not-found")
        Joiner(fleet).asks(token(fleet))
        for verb in ("revoke", "decommission"):
            answer = act(fleet, "pi-1", verb)
            assert codes(answer) == (409, "no-member")
            assert "reject" in answer.json()["detail"]
        reject = fleet.client("operator").post("/api/v1/enrolments/pi-2/reject")
        assert codes(reject) == (404, "not-found")

    def test_everything_is_in_the_audit_log_and_no_secret_is(self, fleet):
        joiner, secret = Joiner(fleet), token(fleet)
        joiner.asks(secret)
        approve(fleet, joiner)
        member = joiner.asks(secret).member
        act(fleet, "pi-1", "revoke")
        act(fleet, "pi-1", "decommission")
        names = [action for _, action, _ in actions(fleet)]
        assert names == [
            "join-token.create", "device.enrol", "device.approve", "device.revoke",
            "device.decommission",
        ]  # fmt: skip
        with fleet.context.database.read() as session:
            kept = str([vars(one) for one in session.scalars(select(AuditRow))])
        assert secret not in kept
        assert member.mac_key not in kept


class TestRenewal:
    def test_a_certificate_is_renewed_for_the_same_key(self, fleet):
        joiner = Joiner(fleet)
        first = joiner.asks(auto(fleet)).member
        fleet.clock.now_ms += 60 * DAY_MS
        answer = msgspec.json.decode(joiner.renew().content, type=RenewalAnswer)
        assert answer.nonce == "r-1"
        assert answer.certificate_expires > first.certificate_expires
        certificate = read_certificate(answer.certificate.encode())
        assert common_name(certificate) == "pi-1"
        assert answer.keyring == first.keyring
        assert row(fleet, Device, "pi-1").certificate_expires_ms == answer.certificate_expires
        assert ("device:pi-1", "device.renew", "pi-1") in actions(fleet)

    def test_a_replayed_renewal_adds_nothing(self, fleet):
        joiner = Joiner(fleet)
        joiner.asks(auto(fleet))
        fleet.clock.now_ms += 60 * DAY_MS
        answers = {joiner.renew().text for _ in range(5)}
        assert len(answers) == 1
        with fleet.context.database.read() as session:
            assert session.scalar(select(func.count()).select_from(CertificateRow)) == 2

    @pytest.mark.parametrize(
        ("days", "status"), [(COMEBACK_DAYS - 1, 200), (COMEBACK_DAYS + 1, 403)]
    )
    def test_a_device_comes_back_within_a_year_of_its_certificates_end(self, fleet, days, status):
        joiner = Joiner(fleet)
        end = joiner.asks(auto(fleet)).member.certificate_expires
        fleet.clock.now_ms = end + days * DAY_MS
        answer = joiner.renew()
        assert answer.status_code == status
        if status == 403:
            assert answer.json()["code"] == "enrol-anew"

    def test_what_no_device_of_ours_signed_is_refused_alike(self, fleet):
        joiner, stranger = Joiner(fleet), Joiner(fleet)
        joiner.asks(auto(fleet))
        answers = {
            stranger.renew().text,
            stranger.renew(device="pi-9").text,
            joiner.renew(tenant="acme").text,
            joiner.renew(enrolment="0" * 64).text,
        }
        assert len(answers) == 1
        assert "bad-renewal" in answers.pop()

    @pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b"[" * 100_000])
    def test_malformed_renewals_are_refused(self, fleet, raw):
        assert fleet.client().post("/api/v1/enrol/renew", content=raw).status_code == 422

    def test_a_signature_of_another_kind_is_none(self, fleet):
        joiner = Joiner(fleet)
        joiner.asks(auto(fleet))
        body = msgspec.json.encode(
            Renewal(tenant="default", device="pi-1", enrolment="x", nonce="n")
        )
        raw = seal_envelope(PayloadType.DESIRED, body, joiner.key)
        assert fleet.client().post("/api/v1/enrol/renew", content=raw).status_code == 422

    def test_a_renewal_that_is_too_large_is_not_read(self, fleet):
        answer = fleet.client().post("/api/v1/enrol/renew", content=b"x" * 300_000)
        assert answer.status_code == 413

    def test_a_device_that_was_added_without_a_certificate_can_get_its_first(self, fleet):
        joiner = Joiner(fleet)
        body = {
            "id": "pi-1", "mac_key": "ab" * 32, "public_key": joiner.key.public.pem.decode(),
        }  # fmt: skip
        assert fleet.client("admin").post("/api/v1/devices", json=body).status_code == 201
        assert joiner.renew().status_code == 200


class TestJoinTokens:
    def test_an_operator_makes_those_that_wait_and_an_admin_all(self, fleet):
        for role, mode, status in [
            ("viewer", "pending", 403), ("operator", "pending", 201), ("operator", "auto", 403),
            ("publisher", "auto", 403), ("admin", "auto", 201),
        ]:  # fmt: skip
            body = {"name": f"{role}-{mode}", "mode": mode}
            answer = fleet.client(role).post("/api/v1/join-tokens", json=body)
            assert answer.status_code == status, (role, mode)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"name": "Bad Name"}, {"ttl_seconds": 0}, {"ttl_seconds": 30 * 86400 + 1},
            {"max_uses": 0}, {"max_uses": 10_001}, {"labels": {"A": "b"}}, {"mode": "always"},
            {"max_uses": 2**70}, {"more": 1},
        ],
    )  # fmt: skip
    def test_malformed_ones_are_refused(self, fleet, wrong):
        body = {"name": "gateways"} | wrong
        assert fleet.client("admin").post("/api/v1/join-tokens", json=body).status_code == 422

    def test_a_secret_is_shown_once_and_kept_as_a_hash(self, fleet):
        secret = token(fleet)
        shown = fleet.client("operator").get("/api/v1/join-tokens")
        assert secret not in shown.text
        (one,) = shown.json()["items"]
        assert (one["name"], one["mode"], one["uses"], one["max_uses"]) == (
            "gateways", "pending", 0, 1,
        )  # fmt: skip
        assert one["expires_ms"] - one["created_ms"] == 3_600_000
        assert secret not in str(vars(row(fleet, JoinTokenRow, "gateways")))

    def test_a_name_is_free_again_once_its_token_is_worthless(self, fleet):
        token(fleet, ttl_seconds=60)
        client = fleet.client("admin")
        again = client.post("/api/v1/join-tokens", json={"name": "gateways"})
        assert codes(again) == (409, "conflict")
        fleet.clock.now_ms += 60_000
        assert token(fleet)
        assert client.request("DELETE", "/api/v1/join-tokens/gateways").status_code == 204
        assert client.request("DELETE", "/api/v1/join-tokens/gateways").status_code == 404


def test_labels_are_replaced_by_an_operator(fleet):
    fleet.add_device("pi-1", site="a")
    path = "/api/v1/devices/pi-1/labels"
    client = fleet.client("operator")
    assert client.post(path, json={"labels": {"hall": "2"}}).json()["labels"] == {"hall": "2"}
    assert client.post(path, json={"labels": {"A": "2"}}).status_code == 422
    assert ("operator", "device.label", "pi-1") in actions(fleet)


def test_why_says_who_waits_and_who_is_out(fleet):
    joiner = Joiner(fleet)
    joiner.asks(token(fleet))
    path = "/api/v1/devices/pi-1/why"
    words = fleet.client("viewer").get(path).json()["why"]
    assert f"waits to join with key {joiner.key.public.fingerprint}" in words
    fleet.client("operator").post("/api/v1/enrolments/pi-1/reject")
    assert "was rejected" in fleet.client("viewer").get(path).json()["why"]
    approve(fleet, joiner)
    act(fleet, "pi-1", "revoke")
    assert "was revoked" in fleet.client("viewer").get(path).json()["why"]


def test_a_device_that_was_added_by_hand_is_a_member_like_others(fleet):
    fleet.add_device("pi-1")
    assert fleet.client(Authorization=device_header("pi-1")).get("/v2/").status_code == 200
    assert act(fleet, "pi-1", "revoke").status_code == 200
    assert fleet.client(Authorization=device_header("pi-1")).get("/v2/").status_code == 401

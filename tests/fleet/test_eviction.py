"""Who is revoked is put out of the broker: decided from the database, done beside everything."""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading

import pytest
from broker_process import SECONDS
from cryptography import x509
from fleet_devices import NOW, FakeDevice, RecordingPublisher
from sqlalchemy import select

from edgepack_contract.certificates import Authority, certificate_key, read_certificate
from edgepack_contract.keyring import make_keyring, open_keyring
from edgepack_contract.keys import PrivateKey, write_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.topics import FLEET_NODE
from edgepack_fleet import broker_guard
from edgepack_fleet.authority import LISTS_FILE
from edgepack_fleet.broker_files import issue_service
from edgepack_fleet.broker_guard import BrokerGuard, tell_broker
from edgepack_fleet.config import FleetConfig, KeysConfig, MqttConfig
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import CertificateRow, Device, OutboxRow
from edgepack_fleet.errors import BrokerError
from edgepack_fleet.eviction import INSIST_MS, REPEAT_MS, Revocation, due, evict
from edgepack_fleet.ingest import Ingest

DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("revoked", "evicted", "member", "wanted"),
    [
        (0, None, False, True),
        (-DAY_MS, None, False, True),  # the service was away
        (0, None, True, True),  # it joined again before its old session was ended
        (0, 0, False, False),
        (-REPEAT_MS, -REPEAT_MS + 1, False, False),
        (-REPEAT_MS, -REPEAT_MS, False, True),  # the broker may have read the list only now
        (-REPEAT_MS, -REPEAT_MS, True, False),  # its own new session ended the old one
        (-INSIST_MS, -REPEAT_MS, False, True),
        (-INSIST_MS - REPEAT_MS, -REPEAT_MS, False, False),
        (-DAY_MS, -DAY_MS, False, True),  # evicted once and then the service stopped
    ],
)
def test_whom_to_evict(revoked, evicted, member, wanted):
    at = None if evicted is None else NOW + evicted
    one = Revocation("pi-1", NOW + revoked, at, is_member=member)
    assert due([one, one], now_ms=NOW) == (["pi-1"] if wanted else [])


class Evictions:
    """Stands for the broker: who was evicted, and what the list said then."""

    def __init__(self, crl_file):
        self.devices: list[str] = []
        self.listed: list[set[int]] = []
        self.issuers: list[Authority] = []
        self.fails = False
        self._crl_file = crl_file

    def __call__(self, device, config, authority, *, now_ms):
        if self.fails:
            raise BrokerError("it is away")
        self.devices.append(device)
        self.issuers.append(authority)
        self.listed.append(serials(self._crl_file))


def serials(path):
    return {one.serial_number for one in x509.load_pem_x509_crl(path.read_bytes())}


class Place:
    """A database with devices and an authority; a guard that can be killed and begin anew."""

    def __init__(self, folder):
        self.folder = folder
        self.now_ms = NOW
        self.crl_file = folder / "crl.pem"
        self.evictions = Evictions(self.crl_file)
        self.database = Database(f"sqlite:///{folder / 'fleet.db'}")
        self.authority = self.make_authority("authority")
        self.former = self.make_authority("former")
        self.named, self.configured = [self.authority], ["authority"]
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self.authority.pem)
        self.begin()

    def make_authority(self, name):
        key = PrivateKey.generate()
        authority = Authority.create(key, name=f"edgepack {name}", now_ms=NOW)
        write_private_key(self.folder / f"{name}.key", key)
        (self.folder / f"{name}.pem").write_bytes(authority.pem)
        return authority

    def keyring(self):
        owner = PrivateKey.generate()
        file = make_keyring(
            owner, version=1, epoch=1, publishers=[], fleets=[owner.public],
            authorities=[one.pem.decode() for one in self.named],
        )  # fmt: skip
        return open_keyring(file, owner_fingerprint=owner.public.fingerprint)

    def begin(self, **mqtt):
        self.config = FleetConfig(
            data_dir=str(self.folder),
            keys=KeysConfig(
                fleet="", keyring="", owner="0" * 64,
                authority=tuple(str(self.folder / f"{one}.key") for one in self.configured),
                authority_certificate=tuple(
                    str(self.folder / f"{one}.pem") for one in self.configured
                ),
            ),
            mqtt=MqttConfig(**{"tls_ca": str(self.ca), "crl_file": str(self.crl_file)} | mqtt),
        )  # fmt: skip
        self.guard = BrokerGuard(
            self.config, self.database, keyring=self.keyring,
            now_ms=lambda: self.now_ms, on_commit=lambda: None,
        )  # fmt: skip

    def enrol(self, name, serial, *, status="accepted", by=None):
        with self.database.write() as session:
            FakeDevice(name).enrol(session)
            session.get_one(Device, name).status = status
            session.add(
                CertificateRow(
                    serial=f"{serial:x}", device=name, pem="", issued_ms=NOW,
                    authority=(by or self.authority).key.public.fingerprint,
                    expires_ms=NOW + 90 * DAY_MS,
                )
            )  # fmt: skip

    def revoke(self, name, *, status="revoked"):
        with self.database.write() as session:
            session.get_one(Device, name).status = status
            for row in session.scalars(select(CertificateRow).filter_by(device=name)):
                row.revoked_ms = row.revoked_ms or self.now_ms

    def after(self, seconds):
        self.now_ms += int(seconds * 1000)
        self.guard.round()


@pytest.fixture
def place(tmp_path, monkeypatch):
    place = Place(tmp_path)
    monkeypatch.setattr(broker_guard, "evict", place.evictions)
    monkeypatch.setattr(broker_guard, "RELOAD_SECONDS", 0.0)
    yield place
    place.database.close()


def test_nobody_is_evicted_without_reason_and_the_list_is_there_from_the_start(place):
    place.enrol("pi-1", 1)
    place.guard.round()
    assert serials(place.crl_file) == set()
    assert place.evictions.devices == []


def test_the_list_comes_first_and_then_the_eviction(place):
    place.enrol("pi-1", 1)
    place.enrol("pi-2", 2)
    place.guard.round()
    place.revoke("pi-1")
    place.after(5)
    assert place.evictions.devices == ["pi-1"]
    assert place.evictions.listed == [{1}]
    assert place.guard.counts == {"evicted": 1}


def test_who_is_revoked_while_the_list_is_written_waits_for_the_next_one(place, monkeypatch):
    """Its certificate would let it in again at once."""
    place.enrol("pi-1", 1)
    write = place.guard._write

    def write_late(fresh):
        written = write(fresh)
        place.revoke("pi-1")
        return written

    monkeypatch.setattr(place.guard, "_write", write_late)
    place.guard.round()
    assert place.evictions.devices == []
    place.after(5)
    assert place.evictions.devices == ["pi-1"]
    assert place.evictions.listed == [{1}]


def test_it_insists_for_some_minutes_and_then_rests(place):
    place.enrol("pi-1", 1)
    place.revoke("pi-1")
    for _ in range(120):
        place.after(5)
    assert len(place.evictions.devices) == INSIST_MS // REPEAT_MS + 1


def test_who_joined_again_is_disturbed_once_at_most(place):
    place.enrol("pi-1", 1)
    place.revoke("pi-1", status="accepted")
    for _ in range(120):
        place.after(5)
    assert place.evictions.devices == ["pi-1"]


def test_a_crash_between_any_two_steps_leaves_nothing_undone(place):
    place.enrol("pi-1", 1)
    place.revoke("pi-1")
    place.evictions.fails = True  # killed after the list was written
    place.guard.round()
    assert serials(place.crl_file) == {1}
    place.evictions.fails = False
    place.begin()
    place.now_ms += DAY_MS
    place.guard.round()
    assert place.evictions.devices == ["pi-1"]


def test_a_broker_that_is_away_is_tried_again_but_not_all_the_time(place, caplog):
    place.enrol("pi-1", 1)
    place.revoke("pi-1")
    place.evictions.fails = True
    for _ in range(10):
        place.after(5)
    assert place.guard.counts["failed"] == 2
    assert len([one for one in caplog.records if "it is away" in one.message]) == 1
    place.evictions.fails = False
    place.after(30)
    assert place.evictions.devices == ["pi-1"]


def test_one_failure_ends_the_round_so_that_a_dead_broker_costs_one_timeout(place):
    for number in range(1, 6):
        place.enrol(f"pi-{number}", number)
        place.revoke(f"pi-{number}")
    place.evictions.fails = True
    place.guard.round()
    assert place.guard.counts["failed"] == 1


def test_who_speaks_without_being_a_member_is_evicted_again_each_half_minute(place):
    place.enrol("pi-1", 1)
    place.revoke("pi-1")
    place.after(5)
    place.after(INSIST_MS / 1000 + DAY_MS / 1000)
    before = len(place.evictions.devices)
    for _ in range(12):
        place.guard.heard_stranger("pi-1")
        place.after(5)
    assert len(place.evictions.devices) == before + 2


@pytest.mark.parametrize("status", ["accepted", "pending", "rejected"])
def test_words_of_somebody_else_evict_nobody(place, status):
    place.enrol("pi-1", 1, status=status)
    place.guard.heard_stranger("pi-1")
    place.guard.heard_stranger("never-heard-of")
    place.guard.round()
    assert place.evictions.devices == []


def test_ingest_tells_of_strangers_and_of_nobody_else(place):
    place.enrol("pi-1", 1)
    place.enrol("pi-2", 2)
    place.revoke("pi-1")
    heard = []
    publisher = RecordingPublisher()
    ingest = Ingest(
        place.database, tenant="default", publish=publisher.publish, on_stranger=heard.append
    )
    ingest.commit([FakeDevice("pi-1").state(), FakeDevice("pi-2").state()])
    assert heard == ["pi-1"]


def test_strangers_are_remembered_up_to_a_limit(place):
    for number in range(3 * broker_guard.STRANGERS):
        place.guard.heard_stranger(f"pi-{number}")
    assert len(place.guard._strangers) == broker_guard.STRANGERS


def test_a_round_has_an_end(place, monkeypatch):
    monkeypatch.setattr(broker_guard, "EVICTIONS", 3)
    for number in range(1, 6):
        place.enrol(f"pi-{number}", number)
        place.revoke(f"pi-{number}")
    place.guard.round()
    assert place.evictions.devices == ["pi-1", "pi-2", "pi-3"]
    place.after(5)
    assert place.evictions.devices == [f"pi-{number}" for number in range(1, 6)]


def test_what_the_will_of_a_decommissioned_device_leaves_is_cleared(place):
    place.enrol("pi-1", 1)
    place.revoke("pi-1", status="decommissioned")
    place.guard.round()
    with place.database.read() as session:
        rows = session.scalars(select(OutboxRow)).all()
        assert {(row.topic, row.payload, row.retained) for row in rows} == {
            (f"edgepack/v1/default/pi-1/{kind}", b"", True)
            for kind in ("state", "birth", "reported", "desired")
        }


def test_a_revoked_device_keeps_what_it_retained(place):
    place.enrol("pi-1", 1)
    place.revoke("pi-1")
    place.guard.round()
    with place.database.read() as session:
        assert session.scalars(select(OutboxRow)).all() == []


def test_a_list_that_somebody_spoilt_is_mended_within_a_minute(place):
    place.enrol("pi-1", 1)
    place.revoke("pi-1")
    place.guard.round()
    place.crl_file.write_bytes(b"spoilt")
    place.after(60)
    assert serials(place.crl_file) == {1}


def test_a_folder_that_cannot_be_written_is_said_and_the_rest_goes_on(place, caplog):
    place.begin(crl_file=str(place.folder / "none" / "crl.pem"))
    place.enrol("pi-1", 1)
    place.revoke("pi-1")
    place.evictions._crl_file = place.folder / "empty.pem"
    place.evictions._crl_file.write_bytes(place.authority.revocation_list([], now_ms=NOW))
    place.guard.round()
    assert "mqtt.crl_file" in caplog.text
    assert place.evictions.devices == ["pi-1"]


def test_without_tls_or_an_authority_there_is_nothing_to_guard(place):
    place.begin(tls_ca=None)
    place.enrol("pi-1", 1)
    place.revoke("pi-1")
    place.guard.round()
    assert place.evictions.devices == []
    assert not place.crl_file.exists()


class Hearer:
    """A process called like the broker that says when it is sent SIGHUP."""

    def __init__(self, folder):
        code = (
            "import ctypes, signal, sys\n"
            "ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)\n"
            "signal.signal(signal.SIGHUP, lambda *_: print('hup', flush=True))\n"
            "print('ready', flush=True)\n"
            "while True: signal.pause()\n"
        )
        self.pid_file = folder / "broker.pid"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "mosquitto"], stdout=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self.line() == "ready\n"
        self.pid_file.write_text(f"{self.process.pid}\n")

    def line(self):
        return self._lines.get(timeout=SECONDS)

    def close(self):
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def _read(self):
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)


@pytest.fixture
def hearer(tmp_path):
    hearer = Hearer(tmp_path)
    yield hearer
    hearer.close()


def test_the_broker_is_told_at_the_start_and_of_every_new_list(place, hearer):
    place.begin(broker_pid_file=str(hearer.pid_file))
    place.guard.round()
    assert hearer.line() == "hup\n"
    place.enrol("pi-1", 1)
    place.revoke("pi-1")
    place.after(5)
    assert hearer.line() == "hup\n"
    # once more, for it may have been reading its files when the signal came
    place.after(60)
    assert hearer.line() == "hup\n"


def test_a_broker_that_cannot_be_told_is_told_later(place, hearer, caplog):
    place.begin(broker_pid_file=str(place.folder / "none.pid"))
    place.guard.round()
    assert "mqtt.broker_pid_file" in caplog.text
    hearer.pid_file.rename(place.folder / "none.pid")
    place.after(5)
    assert hearer.line() == "hup\n"


@pytest.mark.parametrize("content", ["", "x", "-1", "0", "1", "ours"])
def test_no_other_process_is_ever_sent_a_signal(tmp_path, content):
    """SIGHUP ends who does not expect it; this very test, for one."""
    content = content.replace("ours", str(os.getpid()))
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        (tmp_path / "pid").write_text(content)
        with pytest.raises(BrokerError):
            tell_broker(tmp_path / "pid")
    finally:
        signal.signal(signal.SIGHUP, previous)


def lists(path):
    """By the name of the authority: what its list says."""
    begin = b"-----BEGIN X509 CRL-----"
    parts = [x509.load_pem_x509_crl(begin + one) for one in path.read_bytes().split(begin)[1:]]
    return {
        one.issuer.rfc4514_string().removeprefix("CN="): {row.serial_number for row in one}
        for one in parts
    }


class TestTwoAuthorities:
    @pytest.fixture
    def place(self, place):
        place.named, place.configured = [place.former, place.authority], ["authority", "former"]
        place.ca.write_bytes(place.former.pem + place.authority.pem)
        place.begin()
        return place

    def test_each_lists_what_it_took_back_also_when_the_keyring_names_it_no_more(self, place):
        place.enrol("pi-1", 1, by=place.former)
        place.enrol("pi-2", 2)
        place.guard.round()
        assert lists(place.crl_file) == {"edgepack authority": set(), "edgepack former": set()}
        place.revoke("pi-2")
        place.after(5)
        assert lists(place.crl_file) == {"edgepack authority": {2}, "edgepack former": set()}
        place.named = [place.authority]
        place.revoke("pi-1")
        place.after(5)
        assert lists(place.crl_file) == {"edgepack authority": {2}, "edgepack former": {1}}

    def test_the_last_list_of_one_whose_key_is_gone_is_kept_without_the_brokers_file(self, place):
        place.enrol("pi-1", 1, by=place.former)
        place.revoke("pi-1")
        place.guard.round()
        place.crl_file.unlink()
        place.named, place.configured = [place.authority], ["authority"]
        place.begin()
        place.guard.round()
        wanted = {"edgepack authority": set(), "edgepack former": {1}}
        assert lists(place.crl_file) == wanted
        assert (place.folder / LISTS_FILE).read_bytes() == place.crl_file.read_bytes()

    @pytest.mark.parametrize(
        ("named", "accepted", "by"),
        [
            (["former", "authority"], ["former", "authority"], "authority"),
            (["authority", "former"], ["former", "authority"], "former"),
            # the broker has not heard of the new one
            (["former", "authority"], ["former"], "former"),
            (["authority"], ["former"], "former"),
            # the broker still accepts the former one
            (["authority"], ["former", "authority"], "authority"),
            (["former"], ["former", "authority"], "former"),
            # its own certificate is of somebody else
            (["former", "authority"], ["stranger"], "authority"),
            (["former"], ["stranger"], "former"),
        ],
    )
    def test_who_vouches_for_the_eviction_is_somebody_whom_the_broker_accepts(
        self, place, named, accepted, by
    ):
        stranger = Authority.create(PrivateKey.generate(), name="stranger", now_ms=NOW)
        known = {"former": place.former, "authority": place.authority, "stranger": stranger}
        place.named = [known[one] for one in named]
        place.ca.write_bytes(b"".join(known[one].pem for one in accepted))
        place.enrol("pi-1", 1, by=place.former)
        place.revoke("pi-1")
        place.guard.round()
        assert place.evictions.devices == ["pi-1"]
        assert place.evictions.issuers[0].certificate == known[by].certificate

    @pytest.mark.parametrize("content", [b"", b"no certificate"])
    def test_a_file_of_authorities_that_is_none_is_said(self, place, content, caplog):
        place.ca.write_bytes(content)
        place.enrol("pi-1", 1)
        place.revoke("pi-1")
        place.guard.round()
        assert f"mqtt.tls_ca {place.ca}" in caplog.text
        assert lists(place.crl_file)["edgepack authority"] == {1}

    def test_the_services_own_certificate_follows_when_its_authority_is_believed_no_more(
        self, place
    ):
        path, key = place.folder / "client.pem", PrivateKey.generate()
        path.write_bytes(issue_service(key.public, place.former, now_ms=NOW).pem)
        before = path.read_bytes()
        place.begin(client_certificate=str(path), client_key="k")
        place.after(60)
        assert path.read_bytes() == before
        place.named = [place.authority]
        place.after(60)
        read_certificate(path.read_bytes()).verify_directly_issued_by(place.authority.certificate)

    def test_when_the_keyring_names_none_of_them_nothing_is_issued(self, place):
        path, key = place.folder / "client.pem", PrivateKey.generate()
        path.write_bytes(issue_service(key.public, place.former, now_ms=NOW).pem)
        before = path.read_bytes()
        place.named = []
        place.begin(client_certificate=str(path), client_key="k")
        place.after(60)
        assert path.read_bytes() == before
        assert set(lists(place.crl_file)) == {"edgepack authority", "edgepack former"}


@pytest.mark.parametrize("content", [b"", b"x" * (LIMITS.revocation_list_bytes + 1)])
def test_lists_that_cannot_be_what_they_should_be_are_replaced_or_said(place, content, caplog):
    (place.folder / LISTS_FILE).write_bytes(content)
    place.guard.round()
    assert ("revoked.pem is too large" in caplog.text) == bool(content)
    assert place.crl_file.exists() != bool(content)


@pytest.mark.parametrize(("days", "renewed"), [(0, False), (500, False), (600, True), (900, True)])
def test_the_services_own_certificate_is_renewed_in_time(place, days, renewed):
    path, key = place.folder / "client.pem", PrivateKey.generate()
    path.write_bytes(issue_service(key.public, place.authority, now_ms=NOW).pem)
    before = path.read_bytes()
    place.begin(client_certificate=str(path), client_key="k")
    place.after(days * 86_400)
    assert (path.read_bytes() != before) == renewed
    now = read_certificate(path.read_bytes())
    assert certificate_key(now).fingerprint == key.public.fingerprint


def test_a_certificate_of_another_authority_is_left_alone(place):
    path, key = place.folder / "client.pem", PrivateKey.generate()
    other = Authority.create(PrivateKey.generate(), name="somebody else", now_ms=NOW)
    path.write_bytes(other.issue_client(key.public, name=FLEET_NODE, now_ms=NOW, days=1).pem)
    before = path.read_bytes()
    place.begin(client_certificate=str(path), client_key="k")
    place.guard.round()
    assert path.read_bytes() == before


def test_an_unreachable_broker_is_named(place, tmp_path):
    (tmp_path / "ca.pem").write_bytes(place.authority.pem)
    config = MqttConfig(host="127.0.0.1", port=1, tls_ca=str(tmp_path / "ca.pem"))
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1: "):
        evict("pi-1", config, place.authority, now_ms=NOW)


def test_the_thread_begins_ends_and_outlives_its_faults(place, monkeypatch, caplog):
    monkeypatch.setattr(broker_guard, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(place.guard, "_keep_list", None)
    place.enrol("pi-1", 1)
    caplog.set_level(logging.ERROR)
    place.guard.start()
    while caplog.text.count("cannot guard the broker") < 2:
        assert place.guard._thread.is_alive()
    place.guard.stop()
    assert not place.guard._thread.is_alive()

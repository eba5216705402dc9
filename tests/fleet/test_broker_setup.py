"""``edgepack fleet mqtt-config`` as a user runs it."""

from __future__ import annotations

import contextlib
import shutil

import pytest
from cryptography import x509
from fleet_devices import FakeDevice
from world_process import run_to_end

from edgepack_contract.certificates import Authority
from edgepack_contract.keys import PrivateKey, read_private_key, read_public_key, write_private_key
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import CertificateRow
from edgepack_fleet.wallclock import wall_ms

CONFIG = """\
data_dir = "fleet"
[keys]
fleet = "keys/fleet.key"
keyring = "keys/keyring.json"
owner = "{owner}"
"""
AUTHORITY = 'authority = "keys/{name}.key"\nauthority_certificate = "keys/{name}.pem"\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    done = run_to_end("edgepack_cli", "keys", "init", folder / "keys", "--no-passphrase")
    assert done.returncode == 0, done.stderr
    return folder


class Place:
    def __init__(self, folder):
        self.folder = folder
        self.out = folder / "out"
        owner = read_public_key(folder / "keys" / "owner.pub").fingerprint
        self.base = CONFIG.format(owner=owner)
        self.configure(AUTHORITY.format(name="authority"))

    def configure(self, more):
        (self.folder / "fleet.toml").write_text(self.base + more)

    def run(self, *more, hosts=("broker.example",)):
        config = self.folder / "fleet.toml"
        return run_to_end(
            "edgepack_cli", "fleet", "mqtt-config", "--config", config, "--out", self.out,
            *(f"--host={host}" for host in hosts), *more,
        )  # fmt: skip

    def refused(self, *more, **changes):
        done = self.run(*more, **changes)
        assert done.returncode == 78, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def database(self):
        return Database(f"sqlite:///{self.folder / 'fleet' / 'fleet.db'}")

    def fingerprint(self, name="authority"):
        return read_private_key(self.folder / "keys" / f"{name}.key").public.fingerprint

    def revoke_one(self):
        database = self.database()
        with contextlib.closing(database), database.write() as session:
            FakeDevice("pi-1").enrol(session)
            session.add(
                CertificateRow(
                    serial="abc", device="pi-1", pem="", authority=self.fingerprint(),
                    issued_ms=wall_ms(), expires_ms=wall_ms() + 86_400_000, revoked_ms=wall_ms(),
                )
            )  # fmt: skip

    def listed(self):
        (crl,) = self.lists()
        return crl

    def lists(self):
        begin, pem = b"-----BEGIN X509 CRL-----", (self.out / "crl.pem").read_bytes()
        lists = [x509.load_pem_x509_crl(begin + one) for one in pem.split(begin)[1:]]
        return [{one.serial_number for one in crl} for crl in lists]

    def keys(self, *words):
        done = run_to_end("edgepack_cli", "keys", *words, self.folder / "keys")
        assert done.returncode == 0, done.stderr

    def issuer(self, name):
        certificate = x509.load_pem_x509_certificate((self.out / name).read_bytes())
        for path in (self.folder / "keys").glob("authority*.pem"):
            if x509.load_pem_x509_certificate(path.read_bytes()).subject == certificate.issuer:
                return path.stem
        return None


@pytest.fixture
def place(made, tmp_path):
    shutil.copytree(made / "keys", tmp_path / "keys")
    return Place(tmp_path)


def test_it_says_what_it_did_and_what_is_next(place):
    done = place.run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("issued, valid until") == 2
    for words in ('host = "broker.example"', f'crl_file = "{place.out}/crl.pem"', "systemctl"):
        assert words in done.stdout
    assert not (place.folder / "fleet").exists()
    again = place.run()
    assert again.stdout.count("kept, valid until") == 2
    assert "issued" not in again.stdout


def test_the_files_can_be_for_another_machine(place):
    done = place.run("--broker-folder", "/etc/mosquitto/edgepack", "--port", "1234")
    text = (place.out / "edgepack.conf").read_text()
    assert "crlfile /etc/mosquitto/edgepack/crl.pem\n" in text
    assert "listener 1234\n" in text
    assert "put all but fleet-client.* into /etc/mosquitto/edgepack" in done.stdout


def test_who_is_revoked_already_is_on_the_list(place):
    place.revoke_one()
    assert place.run().returncode == 0
    assert place.listed() == {0xABC}


def test_while_the_service_runs_its_list_is_kept_or_must_be_fetched(place):
    place.revoke_one()
    running = place.database()
    said = place.refused()
    assert f"curl -o {place.out}/crl.pem URL/api/v1/crl" in said
    running.close()
    assert place.run().returncode == 0
    running = place.database()
    assert place.run("--renew").returncode == 0
    running.close()
    assert place.listed() == {0xABC}


def test_without_an_authority_it_says_how_to_get_one(place):
    place.configure("")
    assert "edgepack keys init" in place.refused()


def test_an_authority_that_devices_do_not_know_is_refused(place):
    key = PrivateKey.generate()
    write_private_key(place.folder / "keys" / "other.key", key)
    other = Authority.create(key, name="other", now_ms=wall_ms())
    (place.folder / "keys" / "other.pem").write_bytes(other.pem)
    place.configure(AUTHORITY.format(name="other"))
    assert "edgepack keys rotate authority" in place.refused()


BOTH = (
    'authority = ["keys/authority.key", "keys/authority-2.key"]\n'
    'authority_certificate = ["keys/authority.pem", "keys/authority-2.pem"]\n'
)
ISSUED = ("server.pem", "fleet-client.pem")


def test_while_two_authorities_count_both_may_vouch_and_have_lists_and_certificates_stay(place):
    place.revoke_one()
    assert place.run().returncode == 0
    place.keys("rotate", "authority")
    place.configure(BOTH)
    done = place.run()
    assert done.stdout.count("kept, valid until") == 2
    assert "Nobody knows" not in done.stdout
    assert (place.out / "ca.pem").read_text().count("BEGIN CERTIFICATE") == 2
    assert place.lists() == [{0xABC}, set()]
    assert {place.issuer(name) for name in ISSUED} == {"authority"}
    assert place.run("--renew").returncode == 0
    assert {place.issuer(name) for name in ISSUED} == {"authority-2"}


def test_when_the_keyring_names_the_former_no_more_certificates_are_of_the_new_one(place):
    place.revoke_one()
    assert place.run().returncode == 0
    place.keys("rotate", "authority")
    place.keys("revoke", "authority", "authority")
    place.configure(BOTH)
    assert place.run().stdout.count("issued, valid until") == 2
    assert (place.out / "ca.pem").read_bytes() == (
        place.folder / "keys" / "authority-2.pem"
    ).read_bytes()
    assert {place.issuer(name) for name in ISSUED} == {"authority-2"}
    assert place.lists() == [{0xABC}, set()]


def test_while_a_service_runs_that_has_not_yet_the_new_authority_it_has_an_empty_list(place):
    place.revoke_one()
    assert place.run().returncode == 0
    place.keys("rotate", "authority")
    place.configure(BOTH)
    running = place.database()
    done = place.run()
    running.close()
    assert done.returncode == 0, done.stderr
    assert sorted(place.lists(), key=len) == [set(), {0xABC}]


def test_an_authority_that_counts_and_whose_list_nobody_knows_is_named(place):
    place.keys("rotate", "authority")
    place.configure(AUTHORITY.format(name="authority-2"))
    done = place.run()
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "Nobody knows" in line]
    assert f"edgepack authority {place.fingerprint()[:16]}" in line


def test_key_and_certificate_must_stand_at_the_same_place(place):
    place.keys("rotate", "authority")
    crossed = '"keys/authority-2.pem", "keys/authority.pem"'
    place.configure(BOTH.replace('"keys/authority.pem", "keys/authority-2.pem"', crossed))
    done = place.run()
    assert done.returncode != 0
    assert "authority.key with keys.authority_certificate" in done.stderr
    assert "belongs to another key" in done.stderr


@pytest.mark.parametrize("host", ["bad host", "https://broker", "-x", ""])
def test_what_is_no_host_is_refused(place, host):
    assert "neither a host name nor an address" in place.refused(hosts=["broker", host])


def test_names_and_addresses_are_hosts(place):
    hosts = ["10.0.0.1", "fd00::1", "::1", "broker", "b.example"]
    assert place.run(hosts=hosts).returncode == 0
    assert "kept, valid until" in place.run(hosts=hosts[::-1]).stdout


def test_a_certificate_of_ones_own_must_fit_its_key(place):
    certificate, key = place.folder / "own.pem", place.folder / "own.key"
    one, two = PrivateKey.generate(), PrivateKey.generate()
    other = Authority.create(PrivateKey.generate(), name="public", now_ms=wall_ms())
    issued = other.issue_server(one.public, hosts=["broker.example"], now_ms=wall_ms())
    certificate.write_bytes(issued.pem)
    write_private_key(key, two)
    own = ("--server-certificate", certificate, "--server-key", key)
    assert "own.pem" in place.refused(*own)
    assert "belong together" in place.refused(*own[:2])
    key.unlink()
    write_private_key(key, one)
    done = place.run(*own)
    assert done.returncode == 0, done.stderr
    assert (place.out / "server.pem").read_bytes() == issued.pem
    assert "FILE-OF-WHO-SIGNED-IT.pem" in done.stdout


def test_a_folder_that_cannot_be_made_is_named(place):
    place.out.write_text("a file")
    done = place.run()
    assert done.returncode != 0
    assert str(place.out) in done.stderr

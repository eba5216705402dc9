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
from edgepack_fleet.service import wall_ms

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
        crl = x509.load_pem_x509_crl((self.out / "crl.pem").read_bytes())
        return {one.serial_number for one in crl}


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

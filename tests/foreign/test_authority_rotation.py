"""An authority is followed by another: a real broker, a real service, and devices of both."""

from __future__ import annotations

import pytest
from broker_tls import HOST, Client, wall_ms
from cryptography import x509
from world_process import Process
from world_tls import DEVICE, TlsLoop
from world_waiting import eventually

from edgepack_contract.certificates import Authority
from edgepack_contract.keys import read_private_key
from edgepack_contract.topics import Kind, device_topic

pytestmark = [pytest.mark.foreign("mosquitto"), pytest.mark.e2e]

MINUTE = 60.0
ONE = 'authority = "keys/{0}.key"\nauthority_certificate = "keys/{0}.pem"\n'
BOTH = (
    'authority = ["keys/authority.key", "keys/authority-2.key"]\n'
    'authority_certificate = ["keys/authority.pem", "keys/authority-2.pem"]\n'
)


class Rotation(TlsLoop):
    """The steps of docs/keys.md, in its order."""

    def rotate(self):
        """The new authority is there beside the former one; the service issues with it."""
        self.cli("keys", "rotate", "authority", self.folder / "keys")
        self._configure(ONE.format("authority"), BOTH)
        self._carry()
        self.fleet.end()
        self.restart_fleet()

    def remove_former(self):
        """Nobody believes the former one any more, and the service does not have its key."""
        self.cli("keys", "revoke", "authority", "authority", self.folder / "keys")
        self._carry()
        self._configure(BOTH, ONE.format("authority-2"))
        self.fleet.end()
        self.restart_fleet()
        # after the service: who has to come in again asks it for a certificate at once
        self.mosquitto.kill()
        self.mosquitto.start()

    def _configure(self, before, after):
        config = self.folder / "fleet.toml"
        assert before in config.read_text()
        config.write_text(config.read_text().replace(before, after))

    def _carry(self):
        """Have the service and the broker take up the new keyring."""
        self.cli("keys", "keyring", "push", self.folder / "keys" / "keyring.json")
        config, out = self.folder / "fleet.toml", self.mosquitto.out
        self.cli("fleet", "mqtt-config", "--config", config, "--host", HOST,
                 "--port", self.mosquitto.port, "--out", out)  # fmt: skip
        self.mosquitto.reload()

    def authority(self, name):
        keys = self.folder / "keys"
        pem = (keys / f"{name}.pem").read_bytes()
        return Authority.open(read_private_key(keys / f"{name}.key"), pem)

    def issuer(self, path):
        """Which authority has issued the certificate of a file."""
        subject = x509.load_pem_x509_certificate(path.read_bytes()).issuer
        (found,) = [
            name for name in ("authority", "authority-2")
            if self.authority(name).certificate.subject == subject
        ]  # fmt: skip
        return found

    def identity(self, name):
        return self.folder / name / "device.pem", self.folder / name / "device.key"

    def lets_in(self, name):
        client = Client(self.mosquitto, self.identity(name))
        try:
            return client.comes_in()
        finally:
            client.close()

    def end_certificate(self, name):
        """As if a device had been off until its certificate of the former authority ended."""
        certificate, key = self.identity(name)
        ended = self.authority("authority").issue_client(
            read_private_key(key).public, name=name, now_ms=wall_ms() - 60_000, days=0
        )
        certificate.write_bytes(ended.pem)

    def run(self, name):
        log, config = self.folder / f"{name}.log", self.folder / name / "device.toml"
        return Process(log, "edgepack_cli", "run", "--config", config)

    def revoke(self, name):
        answer = self.api(f"/api/v1/devices/{name}/revoke", "POST")
        assert answer.status == 200, answer.body

    def served_lists(self):
        return self.api("/api/v1/crl").body


@pytest.fixture
def loop(tmp_path):
    loop = Rotation(tmp_path)
    loop.others = []
    yield loop
    for one in loop.others:
        one.kill()
    loop.close()


def listens(loop, name):
    """Somebody with a device's certificate who only listens, so that nothing gives them away."""
    client = Client(loop.mosquitto, loop.identity(name))
    assert client.comes_in()
    client.subscribe(device_topic("default", name, Kind.DESIRED))
    return client


def test_one_authority_follows_another_and_no_device_is_lost_or_stays_that_should_not(loop):
    for name in (DEVICE, "revoked", "off", "kept"):
        loop.join(name)
    loop.run_device()
    spy = listens(loop, "revoked")
    loop.rotate()

    # both kinds are in, by one service that speaks to both
    loop.join("newer")
    assert loop.issuer(loop.identity("kept")[0]) == "authority"
    assert loop.issuer(loop.identity("newer")[0]) == "authority-2"
    assert loop.lets_in("kept")
    assert loop.lets_in("newer")
    assert loop.issuer(loop.mosquitto.out / "server.pem") == "authority"

    # a device of the former one is revoked
    loop.revoke("revoked")
    assert spy.ended.wait(MINUTE)
    spy.close()
    assert not loop.lets_in("revoked")
    assert loop.lets_in("kept")
    crl = loop.mosquitto.out / "crl.pem"
    eventually(lambda: loop.served_lists() == crl.read_bytes(), loop.served_lists)
    assert crl.read_bytes().count(b"BEGIN X509 CRL") == 2

    # one whose certificate has ended gets one of the new authority
    loop.end_certificate("off")
    back = loop.run("off")
    loop.others.append(back)
    back.wait_said("connected to the broker")
    assert loop.issuer(loop.identity("off")[0]) == "authority-2"

    # the former one is believed no more: who has a certificate of it renews, or stays out
    came_in = loop.daemon.said.count("connected to the broker")
    loop.remove_former()
    assert (loop.mosquitto.out / "ca.pem").read_bytes() == loop.authority("authority-2").pem
    assert loop.issuer(loop.mosquitto.out / "server.pem") == "authority-2"
    assert loop.issuer(loop.mosquitto.out / "fleet-client.pem") == "authority-2"
    loop.daemon.wait_said("connected to the broker", times=came_in + 1)
    assert loop.issuer(loop.home / "device.pem") == "authority-2"
    assert loop.lets_in("newer")
    assert not loop.lets_in("kept")
    assert not loop.lets_in("revoked")

    # what the former one took back is not forgotten, and the new one takes back too
    spy = listens(loop, "newer")
    loop.revoke("newer")
    assert spy.ended.wait(MINUTE)
    spy.close()
    assert not loop.lets_in("newer")
    assert crl.read_bytes().count(b"BEGIN X509 CRL") == 2

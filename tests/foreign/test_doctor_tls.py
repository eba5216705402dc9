"""The doctor and a real Mosquitto over TLS: what is wrong with either side, and what to do."""

from __future__ import annotations

import pytest
from broker_process import Mosquitto
from broker_tls import HOST, TlsBroker, new_authority, wall_ms
from world_device import keyring_file, make_home
from world_process import run_to_end, running

from edgepack_contract.keys import PrivateKey, read_private_key, write_private_key
from edgepack_fleet.mqtt_config import SERVER_CERTIFICATE, SERVER_KEY
from edgepack_runtime.config import load_config
from edgepack_runtime.local.link_checks import check_broker

pytestmark = pytest.mark.foreign("mosquitto")

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    broker = TlsBroker(tmp_path_factory.mktemp("broker"))
    yield broker
    broker.kill()


class Home:
    """A device's folder; what is wrong with it is put there by the tests."""

    def __init__(self, folder, broker):
        self.folder, self.broker = folder, broker
        make_home(folder, "pi-1", broker.port)
        self.path = folder / "device.toml"
        self.change("[serve]", 'certificate = "device.pem"\n[serve]')
        self.change("[telemetry]", "tls = true\n[telemetry]")
        self.believe(broker.authority)
        self.certify(broker.authority)

    def change(self, old, new):
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new))

    def believe(self, authority):
        (self.folder / "keyring.json").write_bytes(
            keyring_file(1, authorities=[authority.pem.decode()])
        )

    def certify(self, authority, *, days=1.0):
        key = read_private_key(self.folder / "device.key").public
        issued = authority.issue_client(key, name="pi-1", now_ms=wall_ms(), days=days)
        (self.folder / "device.pem").write_bytes(issued.pem)
        return issued

    def examine(self):
        (found,) = check_broker(load_config(self.path, {}), None, wall_ms)
        return found


@pytest.fixture
def home(tmp_path, broker):
    return Home(tmp_path / "pi-1", broker)


def test_a_broker_that_is_right_lets_the_device_in(home, broker):
    found = home.examine()
    assert (found.verdict, found.words) == ("ok", f"{HOST}:{broker.port} lets this device in")


def unknown_authority(home):
    home.believe(new_authority("somebody else"))


def another_file(home):
    (home.folder / "ca.pem").write_bytes(new_authority("somebody else").pem)
    home.change("tls = true", 'tls = true\nca = "ca.pem"')


def missing_file(home):
    home.change("tls = true", 'tls = true\nca = "none.pem"')


def no_certificates(home):
    (home.folder / "ca.pem").write_text("nonsense")
    home.change("tls = true", 'tls = true\nca = "ca.pem"')


def another_address(home):
    home.change('host = "127.0.0.1"\nport = ' + str(home.broker.port),
                'host = "127.0.0.2"\nport = ' + str(home.broker.port))  # fmt: skip


def expired_here(home):
    home.certify(home.broker.authority, days=-1 / 48)


def of_a_stranger(home):
    home.certify(new_authority("somebody else"))


def revoked(home):
    home.broker.revoke(home.certify(home.broker.authority))


def none_shown(home):
    home.change('certificate = "device.pem"\n', "")


def without_tls(home):
    home.change("tls = true", "tls = false")


@pytest.mark.parametrize(
    ("spoil", "words", "remedy"),
    [
        (unknown_authority, "an authority that is not trusted here", "[mqtt] ca"),
        (another_file, "an authority that is not trusted here", "[mqtt] ca"),
        (missing_file, "none.pem: No such file", "mend what it names"),
        (no_certificates, "not a certificate in PEM form", "mend what it names"),
        (another_address, "its certificate is for other addresses", "certificate"),
        (expired_here, "our certificate has expired", "edgepack enrol --again"),
        (of_a_stranger, "does not know the authority of our certificate", "edgepack enrol --again"),
        (revoked, "our certificate is revoked", "edgepack enrol --again"),
        (none_shown, "wants a certificate", "edgepack enrol --again"),
        (without_tls, "closed the connection", "tls = true"),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(home, spoil, words, remedy):
    spoil(home)
    found = home.examine()
    assert found.verdict == "fail"
    assert words in found.words
    assert remedy in found.remedy


def test_why_a_daemon_that_runs_has_no_connection(home):
    """It is asked nothing that would end a connection which it makes meanwhile."""
    revoked(home)
    config = home.folder / "device.toml"
    with running(home.folder / "daemon.log", "edgepack_cli", "run", "--config", config) as daemon:
        daemon.wait_said("our certificate is revoked")
        ended = run_to_end("edgepack_cli", "doctor", "--config", config)
    assert "FAIL  broker: 127.0.0.1:" in ended.stdout
    assert "it says that our certificate is revoked; enrol again" in ended.stdout
    assert "edgepack enrol --again FOLDER" in ended.stdout


@pytest.fixture
def own(tmp_path):
    broker = TlsBroker(tmp_path)
    yield broker
    broker.kill()


def test_a_broker_whose_certificate_has_expired(own, tmp_path):
    home = Home(tmp_path / "pi-1", own)
    own.kill()
    key = PrivateKey.generate()
    long_ago = wall_ms() - 4000 * DAY_MS
    issued = own.authority.issue_server(key.public, hosts=[HOST], now_ms=long_ago)
    (own.out / SERVER_KEY).unlink()
    write_private_key(own.out / SERVER_KEY, key)
    (own.out / SERVER_CERTIFICATE).write_bytes(issued.pem)
    own.start()
    found = home.examine()
    assert found.verdict == "fail"
    assert "its certificate has expired" in found.words
    assert "certificate" in found.remedy


@pytest.fixture
def guarded(tmp_path):
    """A broker without TLS that wants a name and a password, which no device has."""
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    broker = Mosquitto(tmp_path, f"allow_anonymous false\npassword_file {passwords}")
    yield broker
    broker.kill()


def test_a_broker_that_wants_other_credentials(guarded, tmp_path):
    home = tmp_path / "pi-1"
    make_home(home, "pi-1", guarded.port)
    ended = run_to_end("edgepack_cli", "doctor", "--config", home / "device.toml")
    assert ended.returncode == 1
    assert "FAIL  broker: it refuses this device: Not authorized\n      check that" in ended.stdout

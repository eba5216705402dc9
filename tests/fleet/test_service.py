"""The service as a process: a real broker, real messages, and kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter

import msgspec
import pytest
from broker_process import SECONDS, Broker, Peer, wait_for
from bundle_samples import PUBLISHER, fixed_key, one_variant
from fleet_devices import FakeDevice
from world_waiting import eventually

from edgepack_cli.demo.ports import free_port
from edgepack_contract.certificates import Authority
from edgepack_contract.keyring import Publisher, make_keyring
from edgepack_contract.keys import PrivateKey, write_private_key
from edgepack_contract.layout import write_bundle
from edgepack_contract.messages import Acked
from edgepack_contract.sealing import unseal
from edgepack_contract.states import Presence
from edgepack_contract.tls import client_context
from edgepack_contract.topics import fleet_state_topic, keyring_topic
from edgepack_fleet.__main__ import EXIT_CONFIG, EXIT_FAILED, EXIT_VERIFICATION, main, make_token
from edgepack_fleet.config import load_config
from edgepack_fleet.tokens import Role
from edgepack_fleet.wallclock import wall_ms

OWNER, FLEET = fixed_key(10), fixed_key(11)
CONFIG = """
data_dir = "data"
[http]
port = 0
[mqtt]
port = {port}
[keys]
fleet = "fleet.key"
keyring = "keyring.json"
owner = "{owner}"
[timings]
tick = 0.1
"""


def keyring_file(version=1, **changes):
    publisher = Publisher(key=PUBLISHER.public.pem.decode(), names=["*"])
    fields = {"epoch": 1, "publishers": [publisher], "fleets": [FLEET.public], **changes}
    return make_keyring(OWNER, version=version, **fields)


def write_config(folder, port=1, extra="", fleet=FLEET, **keyring):
    (folder / "keyring.json").write_bytes(keyring_file(**keyring))
    write_private_key(folder / "fleet.key", fleet)
    path = folder / "fleet.toml"
    path.write_text(CONFIG.format(port=port, owner=OWNER.public.fingerprint) + extra)
    return path


class Fleet:
    """The service in a process of its own, and a token for its API."""

    def __init__(self, folder, port):
        path = write_config(folder, port)
        self.config = str(path)
        self.context = None
        self.token = make_token(load_config(path, {}), "test", Role.ADMIN, days=1)
        self.start()

    def start(self, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgepack_fleet", "--config", self.config],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        ready = self.process.stdout.readline().split()
        assert ready[:2] == ["fleet", "ready"], self.process.stderr.read()
        self.url = ready[2]

    def end(self, number):
        self.process.send_signal(number)
        self.process.communicate(timeout=SECONDS)
        return self.process.returncode

    def ask(self, method, path, body=None):
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{self.url}/api/v1{path}", data=data, method=method, headers=headers
        )
        with urllib.request.urlopen(request, timeout=SECONDS, context=self.context) as response:
            return json.loads(response.read())


@pytest.fixture
def broker():
    broker = Broker()
    yield broker
    broker.kill()


@pytest.fixture
def fleet(tmp_path, broker):
    fleet = Fleet(tmp_path, broker.port)
    yield fleet
    if fleet.process.poll() is None:
        fleet.end(signal.SIGKILL)


@pytest.fixture
def device(fleet):
    device = FakeDevice("pi-1")
    device.at = wall_ms()
    fleet.ask(
        "POST",
        "/devices",
        {
            "id": device.name,
            "public_key": device.key.public.pem.decode(),
            "mac_key": device.mac_key.hex(),
        },
    )
    return device


@pytest.fixture
def peer(broker):
    peer = Peer(broker.port, fleet_state_topic("default"), "edgepack/v1/default/pi-1/#")
    yield peer
    peer.close()


def hear_ack(peer, device, through):
    """Wait for the acknowledgement of everything up to ``through``."""
    topic = f"edgepack/v1/default/{device.name}/acked/{device.slot}"
    for _ in range(1000):
        heard, payload = peer.heard.get(timeout=SECONDS)
        if heard == topic:
            body = unseal(payload, topic=topic, key=device.mac_key, max_bytes=999)
            if msgspec.json.decode(body, type=Acked) == Acked(session=7, through=through):
                return
    raise AssertionError(f"{through} was not acknowledged")


def test_it_stops_in_order_when_asked(fleet, peer):
    assert peer.states(Presence.ONLINE)
    assert fleet.end(signal.SIGTERM) == 0
    assert peer.states(Presence.OFFLINE)


def test_killed_it_goes_on_where_it_was(tmp_path, fleet, device, peer):
    path = tmp_path / "one.edgepack"
    write_bundle(path, one_variant(), signer=PUBLISHER)
    fleet.ask("PUT", "/bundles", path.read_bytes())
    fleet.ask("POST", "/groups", {"name": "all", "labels": {}})
    for message in (device.state(), device.birth(), device.window(1)):
        peer.send(message)
    hear_ack(peer, device, 1)
    body = {"bundle": "digits", "version": "1.0.0", "group": "all"}
    rollout = fleet.ask("POST", "/rollouts", body)
    desired = "edgepack/v1/default/pi-1/desired"
    envelope = b""
    while not envelope:
        topic, payload = peer.heard.get(timeout=SECONDS)
        envelope = payload if topic == desired else b""
    assert fleet.end(signal.SIGKILL) == -signal.SIGKILL
    # nobody is there, and this broker keeps nothing for who is away
    assert peer.states(Presence.LOST)
    peer.send(device.window(2))
    fleet.start()
    assert peer.states(Presence.ONLINE)
    # a new session of the fleet makes a device hand over again what is not acknowledged
    peer.send(device.window(2))
    hear_ack(peer, device, 2)
    later = fleet.ask("GET", f"/rollouts/{rollout['id']}")
    assert later["state"] == "running"
    assert later["updates"]["pi-1"]["state"] == "offered"
    events = fleet.ask("GET", f"/rollouts/{rollout['id']}/events")["items"]
    causes = Counter(event["cause"] for event in events)
    assert (causes["planned"], causes["started"], causes["device-offered"]) == (1, 1, 1)


def test_a_broker_that_lost_everything_is_told_again(tmp_path, broker, fleet, device, peer):
    path = tmp_path / "one.edgepack"
    write_bundle(path, one_variant(), signer=PUBLISHER)
    fleet.ask("PUT", "/bundles", path.read_bytes())
    fleet.ask("POST", "/groups", {"name": "all", "labels": {}})
    for message in (device.state(), device.birth()):
        peer.send(message)
    fleet.ask("POST", "/rollouts", {"bundle": "digits", "version": "1.0.0", "group": "all"})
    desired, envelope = "edgepack/v1/default/pi-1/desired", b""
    while not envelope:
        topic, payload = peer.heard.get(timeout=SECONDS)
        envelope = payload if topic == desired else b""
    broker.kill()
    broker.start()
    late = Peer(broker.port, desired)
    wait_for(late.heard, (desired, envelope))
    late.close()


def test_a_token_is_printed_once_and_only_its_hash_is_kept(tmp_path, capsys):
    config = str(write_config(tmp_path))
    assert main(["token", "--config", config, "--name", "ci", "--role", "publisher"]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("epa_")
    assert secret.encode() not in (tmp_path / "data" / "fleet.db").read_bytes()
    assert main(["token", "--config", config, "--name", "ci"]) == EXIT_FAILED
    assert "'ci'" in capsys.readouterr().err


def test_a_second_service_and_a_token_beside_a_running_one_are_refused(fleet, capsys):
    assert main(["--config", fleet.config]) == EXIT_FAILED
    assert main(["token", "--config", fleet.config, "--name", "x"]) == EXIT_FAILED
    assert "another fleet service" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("desired_ttl = 1\n", "timings.desired_refresh"),
        ("[http.tls]\n", "http"),
        ("unknown = 1\n", "unknown"),
    ],
)
def test_a_wrong_configuration_ends_with_78(tmp_path, capsys, extra, words):
    assert main(["--config", str(write_config(tmp_path, extra=extra))]) == EXIT_CONFIG
    assert words in capsys.readouterr().err


OPEN = 'host = "0.0.0.0"\n'
PUBLIC = 'public_url = "https://fleet.example"\n'


@pytest.mark.parametrize(
    ("http", "extra", "words"),
    [
        (OPEN, "", "http.host: tokens, logins and bundles would travel in the clear on 0.0.0.0"),
        (OPEN + 'tls_certificate = "c.pem"\n', "", "http.tls_key: a certificate is of no use"),
        (OPEN + 'tls_certificate = "c"\ntls_key = "k"\n', "", "http.tls_certificate: cannot read"),
        (OPEN + "behind_proxy = true\n", "", "http.trusted_proxies: behind_proxy does not say"),
        ('public_url = "http://fleet.example"\n', "", "http.public_url: http://fleet.example is"),
        (PUBLIC, "", "run: edgepack fleet init --config "),
        (PUBLIC, "", "keys.authority: without an authority, devices elsewhere (see http.pub"),
        ("", 'host = "b.example"\n', "mqtt.tls_ca: the broker b.example is another machine"),
        ("", 'host = "b"\n', "mqtt.client_certificate: the broker b is another machine"),
        ("", 'username = "u"\npassword_file = "fleet.toml"\n', "mqtt.password_file: "),
    ],
)
def test_what_is_insecure_ends_with_78_and_says_what_fixes_it(tmp_path, capsys, http, extra, words):
    path = write_config(tmp_path)
    text = path.read_text().replace("[http]\n", f"[http]\n{http}")
    path.write_text(text.replace("[mqtt]\n", f"[mqtt]\n{extra}"))
    path.chmod(0o644)
    assert main(["--config", str(path)]) == EXIT_CONFIG
    said = capsys.readouterr().err
    assert said.startswith("edgepack fleet: refusing to start, ")
    assert words in said
    assert all(line.startswith("  ") for line in said.splitlines()[1:])


def test_open_folders_and_demos_are_refused_off_loopback(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EDGEPACK_FLEET_HTTP_PUBLIC_URL", "https://fleet.example")
    monkeypatch.setenv("EDGEPACK_ALLOW_INSECURE", "I say so")
    path = write_config(tmp_path, demo=True)
    (tmp_path / "data").mkdir(mode=0o755)
    assert main(["--config", str(path)]) == EXIT_CONFIG
    said = capsys.readouterr().err
    assert f"chmod 700 {tmp_path / 'data'}" in said
    assert "keys.keyring: the keyring is a demo's" in said


def test_a_stated_reason_is_told_for_as_long_as_it_runs(fleet):
    fleet.end(signal.SIGTERM)
    port = free_port()
    fleet.start(
        EDGEPACK_FLEET_HTTP_PUBLIC_URL="http://fleet.example",
        EDGEPACK_FLEET_HTTP_PORT=str(port),
        EDGEPACK_ALLOW_INSECURE="only until Monday",
    )
    fleet.url = f"http://127.0.0.1:{port}"
    assert fleet.ask("GET", "/status")["insecure"] == {
        "reason": "only until Monday", "settings": ["http.public_url", "keys.authority"],
    }  # fmt: skip
    (entry,) = fleet.ask("GET", "/audit?action=service.insecure")["items"]
    assert (entry["actor"], entry["subject"]) == ("local", "only until Monday")
    request = urllib.request.Request(
        f"{fleet.url}/metrics", headers={"Authorization": f"Bearer {fleet.token}"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        assert "\nedgepack_insecure 1\n" in response.read().decode()
    fleet.process.send_signal(signal.SIGTERM)
    _, log = fleet.process.communicate(timeout=SECONDS)
    assert "insecure (only until Monday): http.public_url: http://fleet.example" in log


def secure(folder, port, *, authority=None, **keyring):
    """A configuration that may listen on every address, but for its certificate."""
    now = wall_ms()
    key = authority or PrivateKey.generate()
    made = Authority.create(key, name="test", now_ms=now)
    write_private_key(folder / "authority.key", key)
    (folder / "authority.pem").write_bytes(made.pem)
    path = write_config(folder, port, authorities=[made.pem.decode()], **keyring)
    http = free_port()
    text = path.read_text().replace(
        "port = 0\n",
        f'host = "0.0.0.0"\nport = {http}\npublic_url = "https://localhost:{http}"\n'
        'tls_certificate = "tls/service.pem"\ntls_key = "tls/service.key"\n',
    )
    text = text.replace(
        "[keys]\n",
        '[keys]\nauthority = "authority.key"\nauthority_certificate = "authority.pem"\n',
    )
    path.write_text(text)
    return path, made


def test_with_a_certificate_of_its_authority_it_answers_on_every_address(tmp_path, broker, capsys):
    path, authority = secure(tmp_path, broker.port)
    assert main(["--config", str(path)]) == EXIT_CONFIG
    assert "tls/service.pem: No such file" in capsys.readouterr().err
    tls = ["certificate", "--config", str(path), "--out", str(tmp_path / "tls")]
    assert main(tls) == EXIT_CONFIG
    assert main([*tls, "--host", "localhost", "--host", "127.0.0.1"]) == 0
    assert "issued, valid until" in capsys.readouterr().out
    assert {one.name: one.stat().st_mode & 0o777 for one in (tmp_path / "tls").iterdir()} == {
        "service.key": 0o600, "service.pem": 0o644,
    }  # fmt: skip
    assert main(["--config", str(path)]) == EXIT_CONFIG
    assert "edgepack fleet init" in capsys.readouterr().err
    fleet = Fleet.__new__(Fleet)
    fleet.config = str(path)
    fleet.token = make_token(load_config(path, {}), "test", Role.ADMIN, days=1)
    fleet.context = client_context([authority.pem.decode()])
    fleet.start()
    try:
        assert fleet.url.startswith("https://localhost:")
        assert fleet.ask("GET", "/status")["insecure"] is None
        before = served_certificate(fleet)
        assert main([*tls, "--host", "localhost", "--renew"]) == 0
        fleet.process.send_signal(signal.SIGHUP)
        eventually(lambda: served_certificate(fleet) != before, "the renewed certificate")
        fleet.context = client_context([])
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            fleet.ask("GET", "/status")
    finally:
        assert fleet.end(signal.SIGTERM) == 0


def served_certificate(fleet):
    host, port = fleet.url.removeprefix("https://").split(":")
    context = client_context([])
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, int(port)), timeout=SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=host) as secured,
    ):
        return secured.getpeercert(binary_form=True)


def test_behind_a_proxy_only_the_proxy_is_answered(tmp_path, broker):
    path, _ = secure(tmp_path, broker.port)
    text = path.read_text()
    for line in ('tls_certificate = "tls/service.pem"\n', 'tls_key = "tls/service.key"\n'):
        text = text.replace(line, "")
    path.write_text(text)
    fleet = Fleet.__new__(Fleet)
    fleet.config, fleet.context = str(path), None
    fleet.token = make_token(load_config(path, {}), "test", Role.ADMIN, days=1)
    port = load_config(path, {}).http.port
    for proxies, answered in (('["10.9.9.9/32"]', False), ('["127.0.0.0/8"]', True)):
        path.write_text(text.replace("[http]\n", f"[http]\nbehind_proxy = true\n"
                                     f"trusted_proxies = {proxies}\n"))  # fmt: skip
        fleet.start()
        fleet.url = f"http://127.0.0.1:{port}"
        try:
            if answered:
                assert fleet.ask("GET", "/status")["insecure"] is None
            else:
                with pytest.raises(urllib.error.HTTPError) as refused:
                    fleet.ask("GET", "/status")
                assert json.loads(refused.value.read())["code"] == "not-a-proxy"
                refused.value.close()
            with urllib.request.urlopen(f"{fleet.url}/healthz", timeout=SECONDS) as probe:
                assert probe.status == 200
        finally:
            fleet.end(signal.SIGTERM)


def test_every_address_is_none_that_devices_can_be_told(tmp_path, broker, capsys):
    path, _ = secure(tmp_path, broker.port)
    config = load_config(path, {})
    main(["certificate", "--config", str(path), "--out", str(tmp_path / "tls"), "--host", "x"])
    make_token(config, "test", Role.ADMIN, days=1)
    text = path.read_text()
    path.write_text("\n".join(one for one in text.splitlines() if "public_url" not in one))
    assert main(["--config", str(path)]) == EXIT_CONFIG
    assert "set http.public_url" in capsys.readouterr().err


KEYRING = keyring_topic("default")


def heard(peer, topic, when=lambda _: True):
    for _ in range(1000):
        name, payload = peer.heard.get(timeout=SECONDS)
        if name == topic and when(payload):
            return payload
    raise AssertionError(f"nothing on {topic}")


def test_the_keyring_is_retained_replaced_without_a_restart_and_read_anew(
    tmp_path, broker, fleet, device
):
    first = Peer(broker.port, KEYRING, "edgepack/v1/default/pi-1/desired")
    assert heard(first, KEYRING) == keyring_file()
    second = keyring_file(2, epoch=2)
    assert fleet.ask("PUT", "/keyring", second)["epoch"] == 2
    assert heard(first, KEYRING, lambda payload: payload != keyring_file()) == second
    # a new fleet key: its file first, then the keyring that names it, then SIGHUP
    config = fleet.config
    third = keyring_file(3, epoch=2, fleets=[fixed_key(12).public])
    with pytest.raises(urllib.error.HTTPError) as refused:
        fleet.ask("PUT", "/keyring", third)
    assert refused.value.code == 409
    refused.value.close()
    (tmp_path / "fleet.key").unlink()
    write_private_key(tmp_path / "fleet.key", fixed_key(12))
    (tmp_path / "keyring.json").write_bytes(third)
    fleet.process.send_signal(signal.SIGHUP)
    assert heard(first, KEYRING, lambda payload: payload == third)
    first.close()
    assert fleet.ask("GET", "/keyring/status")["keyring"]["version"] == 3
    # what does not hold is not used
    (tmp_path / "keyring.json").write_bytes(keyring_file(4)[:-5])
    fleet.process.send_signal(signal.SIGHUP)
    (tmp_path / "keyring.json").write_bytes(third)
    assert fleet.ask("GET", "/keyring/status")["keyring"]["version"] == 3
    broker.kill()
    broker.start()
    late = Peer(broker.port, KEYRING)
    assert heard(late, KEYRING) == third
    late.close()
    actions = [one["action"] for one in fleet.ask("GET", "/audit?action=keyring")["items"]]
    assert actions == ["keyring.load", "keyring.push", "keyring.load"]
    assert fleet.end(signal.SIGTERM) == 0
    assert main(["audit-verify", "--config", config]) == 0


def test_the_log_of_a_stopped_service_is_verified(tmp_path, fleet, device, capsys):
    head = fleet.ask("GET", "/audit/verify")["head"]
    assert main(["audit-verify", "--config", fleet.config]) == EXIT_FAILED
    assert "another fleet service" in capsys.readouterr().err
    fleet.end(signal.SIGTERM)
    verify = ["audit-verify", "--config", fleet.config]
    assert main([*verify, "--head", head]) == 0
    assert capsys.readouterr().out.strip().endswith(f"head {head}")
    assert main([*verify, "--head", "5"]) == EXIT_FAILED
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "fleet.db")) as database:
        database.execute("DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)")
        database.commit()
    capsys.readouterr()
    assert main(verify) == 0
    assert main([*verify, "--head", head]) == EXIT_VERIFICATION
    assert "its end was cut off" in capsys.readouterr().err


def test_a_fleet_key_that_the_owner_did_not_name_ends_with_78(tmp_path, capsys):
    config = str(write_config(tmp_path, fleet=fixed_key(12)))
    assert main(["--config", config]) == EXIT_CONFIG
    assert "is not in keyring" in capsys.readouterr().err


def test_a_keyring_of_another_owner_ends_with_78(tmp_path, capsys):
    config = write_config(tmp_path)
    text = config.read_text().replace(OWNER.public.fingerprint, "ab" * 32)
    config.write_text(text)
    assert main(["--config", str(config)]) == EXIT_CONFIG
    assert "keyring" in capsys.readouterr().err


def test_a_taken_port_ends_with_78(tmp_path, capsys, monkeypatch):
    config = str(write_config(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("EDGEPACK_FLEET_HTTP_PORT", str(taken.getsockname()[1]))
        assert main(["--config", config]) == EXIT_CONFIG
    assert "cannot listen" in capsys.readouterr().err


def test_a_request_without_a_token_is_refused(fleet):
    fleet.token = "epa_none"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        fleet.ask("GET", "/devices")
    assert refusal.value.code == 401
    refusal.value.close()

"""The service's own link to a real Mosquitto over mutual TLS."""

from __future__ import annotations

import queue
import random

import pytest
from broker_process import SECONDS
from broker_tls import HOST, TlsBroker, new_authority
from world_waiting import eventually

from edgepack_contract.topics import FLEET_NODE, Kind, device_topic, fleet_state_topic
from edgepack_fleet.config import MqttConfig
from edgepack_fleet.errors import BrokerError
from edgepack_fleet.link import FleetLink
from edgepack_fleet.mqtt_config import AUTHORITIES
from edgepack_fleet.outbox import Message

pytestmark = pytest.mark.foreign("mosquitto")


@pytest.fixture
def broker(tmp_path):
    broker = TlsBroker(tmp_path)
    broker.certify(FLEET_NODE)
    broker.certify("pi-1")
    yield broker
    broker.kill()


class Fleet:
    def __init__(self, broker, **mqtt):
        certificate, key = broker.identity(FLEET_NODE)
        settings = {
            "host": HOST, "port": broker.port, "tls_ca": str(broker.out / AUTHORITIES),
            "client_certificate": str(certificate), "client_key": str(key),
        }  # fmt: skip
        self.heard = queue.Queue()
        self.connections = queue.Queue()
        self.link = FleetLink(
            MqttConfig(**{**settings, **mqtt}),
            tenant="default",
            session=7,
            on_message=lambda topic, payload: self.heard.put((topic, payload)),
            on_connected=lambda: self.connections.put(True),
            rng=random.Random(1),
            now_ms=lambda: 8,
        )

    def __enter__(self):
        self.link.start()
        return self

    def __exit__(self, *_):
        self.link.stop()

    def comes_in(self):
        return self.connections.get(timeout=SECONDS)


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_it_hears_devices_and_they_hear_it(broker, protocol):
    with Fleet(broker, protocol=protocol) as fleet:
        assert fleet.comes_in()
        device = broker.client("pi-1")
        device.subscribe(fleet_state_topic("default"))
        topic, payload = device.heard.get(timeout=SECONDS)
        assert topic == fleet_state_topic("default")
        assert b'"session":7' in payload
        device.publish(device_topic("default", "pi-1", Kind.STATE), b"hello")
        assert fleet.heard.get(timeout=SECONDS) == ("edgepack/v1/default/pi-1/state", b"hello")
        device.close()


def test_a_renewed_certificate_is_used_without_a_restart(broker):
    old = broker.certify(FLEET_NODE)
    with Fleet(broker) as fleet:
        assert fleet.comes_in()
        broker.certify(FLEET_NODE)
        broker.revoke(old)
        broker.kill()
        broker.start()
        assert fleet.comes_in()


def test_it_comes_back_when_a_file_that_was_missing_is_there_again(broker, caplog):
    certificate, _ = broker.identity(FLEET_NODE)
    with Fleet(broker) as fleet:
        assert fleet.comes_in()
        away = certificate.rename(certificate.with_suffix(".away"))
        broker.kill()
        broker.start()
        eventually(lambda: f"cannot read {certificate}" in caplog.text, lambda: caplog.text)
        away.rename(certificate)
        assert fleet.comes_in()


def revoked(broker):
    broker.revoke(broker.certify(FLEET_NODE))
    return {}


def stranger(broker):
    broker.certify(FLEET_NODE, by=new_authority("somebody else"))
    return {}


def expired(broker):
    broker.certify(FLEET_NODE, days=-1 / 48)
    return {}


def nameless(broker):
    return {"client_certificate": None, "client_key": None}


def another_host(broker):
    return {"host": "127.0.0.2"}


def another_authority(broker):
    path = broker.folder / "other.pem"
    path.write_bytes(new_authority("somebody else").pem)
    return {"tls_ca": str(path)}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (revoked, "our certificate is revoked"),
        (stranger, "does not know the authority of our certificate"),
        (expired, "our certificate has expired"),
        (nameless, "wants a certificate"),
        (another_host, "other addresses"),
        (another_authority, "an authority that is not trusted here"),
    ],
)
def test_the_log_says_why_there_is_no_connection_and_what_to_do(broker, caplog, case, words):
    with Fleet(broker, **case(broker)) as fleet:
        eventually(lambda: "no connection to the broker" in caplog.text, lambda: caplog.text)
        assert words in caplog.text
        assert f":{broker.port}" in caplog.text
        assert "edgepack fleet mqtt-config" in caplog.text
        assert not fleet.link.connected


@pytest.mark.parametrize("key", ["client_certificate", "client_key", "tls_ca"])
def test_a_missing_file_is_named_at_the_start(broker, tmp_path, key):
    missing = str(tmp_path / "none.pem")
    with pytest.raises(BrokerError, match=r"mqtt\.tls_ca, .*none\.pem"):
        Fleet(broker, **{key: missing})


def test_the_certificate_of_a_device_does_not_make_a_fleet(broker):
    """It comes in under its own name, and hears nothing of others."""
    certificate, key = broker.identity("pi-1")
    with Fleet(broker, client_certificate=str(certificate), client_key=str(key)) as fleet:
        assert fleet.comes_in()
        broker.certify("pi-2")
        other = broker.client("pi-2")
        other.publish(device_topic("default", "pi-2", Kind.STATE), b"secret")
        other.close()
        # what came before is delivered before this is acknowledged
        fleet.link.publish(Message("nowhere", b"", retained=False)).wait_for_publish(SECONDS)
        assert fleet.heard.empty()

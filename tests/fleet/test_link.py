"""The link, over a real broker in a process of its own."""

from __future__ import annotations

import queue
import random
import socket
import subprocess
import sys

import pytest
from broker_process import (
    BROKERS,
    FLEET_STATE,
    SECONDS,
    Mosquitto,
    Peer,
    start_broker,
    wait_for,
)
from fleet_devices import NOW, FakeDevice

from edgepack_contract.states import Presence
from edgepack_contract.topics import Kind, device_topic, keyring_topic
from edgepack_fleet.config import MqttConfig
from edgepack_fleet.errors import BrokerError
from edgepack_fleet.link import FleetLink
from edgepack_fleet.outbox import Message


@pytest.fixture(params=BROKERS)
def broker(request, tmp_path):
    broker = start_broker(request.param, tmp_path)
    yield broker
    broker.kill()


@pytest.fixture
def peer(broker):
    peer = Peer(broker.port, FLEET_STATE, "edgepack/v1/default/+/desired")
    yield peer
    peer.close()


class Fleet:
    def __init__(self, port, session=NOW, protocol="3.1.1"):
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.connections: queue.Queue[int] = queue.Queue()
        self.link = FleetLink(
            MqttConfig(port=port, protocol=protocol),
            tenant="default",
            session=session,
            on_message=lambda topic, payload: self.heard.put((topic, payload)),
            on_connected=lambda: self.connections.put(self.link.session),
            rng=random.Random(1),
            now_ms=lambda: NOW,
        )
        self.link.start()

    def wait_connected(self):
        return self.connections.get(timeout=SECONDS)

    def wait_for(self, incoming):
        wait_for(self.heard, (incoming.topic, incoming.payload))


@pytest.fixture
def fleet(broker):
    fleet = Fleet(broker.port)
    fleet.wait_connected()
    yield fleet
    fleet.link.stop()
    # the collector may come to its sockets before it comes to paho's client, and complain
    fleet.link._client._reset_sockets(sockpair_only=True)


def test_it_says_that_it_is_there_and_that_it_goes(peer, fleet):
    assert peer.states(Presence.ONLINE) == NOW
    fleet.link.stop()
    assert peer.states(Presence.OFFLINE) == NOW


def test_what_devices_say_is_handed_over_as_it_came(peer, fleet):
    device = FakeDevice("pi-1")
    for incoming in (device.state(), device.window(1), device.event(2)):
        peer.send(incoming)
        fleet.wait_for(incoming)


def test_what_was_retained_before_it_came_is_heard(broker, peer):
    incoming = FakeDevice("pi-1").birth()
    peer.send(incoming, retain=True)
    fleet = Fleet(broker.port)
    fleet.wait_for(incoming)
    fleet.link.stop()


def test_a_retained_publish_reaches_who_comes_later(broker, fleet):
    topic = device_topic("default", "pi-1", Kind.DESIRED)
    delivery = fleet.link.publish(Message(topic, b"signed", retained=True))
    delivery.wait_for_publish(SECONDS)
    assert delivery.is_published()
    late = Peer(broker.port, topic)
    wait_for(late.heard, (topic, b"signed"))
    late.close()


def test_after_a_broker_restart_it_is_back_with_a_newer_session(broker, fleet):
    broker.kill()
    broker.start()
    assert fleet.wait_connected() > NOW
    peer = Peer(broker.port, FLEET_STATE)
    # what the former connection left open may be repeated first; the newest is what stays
    while peer.states(Presence.ONLINE) == NOW:
        continue
    late = Peer(broker.port, FLEET_STATE)
    assert late.states(Presence.ONLINE) > NOW
    late.close()
    incoming = FakeDevice("pi-1").state()
    peer.send(incoming)
    fleet.wait_for(incoming)
    peer.close()


def test_what_it_said_itself_is_no_message_to_it(broker, fleet):
    """When it comes back to its session, amqtt sends it whatever anybody subscribed to."""
    own = (keyring_topic("default"), device_topic("default", "pi-1", Kind.DESIRED))
    device = Peer(broker.port, *own)
    for topic in own:
        fleet.link.publish(Message(topic, b"ours", retained=True)).wait_for_publish(SECONDS)
    fleet.link._client.socket().shutdown(socket.SHUT_RDWR)
    fleet.wait_connected()
    last = FakeDevice("pi-1").birth()
    device.send(last)
    assert fleet.heard.get(timeout=SECONDS) == (last.topic, last.payload)
    device.close()


def test_its_last_will_says_that_it_is_lost(broker, peer):
    code = (
        "import random, sys, time\n"
        "from edgepack_fleet.config import MqttConfig\n"
        "from edgepack_fleet.link import FleetLink\n"
        "link = FleetLink(MqttConfig(port=int(sys.argv[1])), tenant='default', session=5,\n"
        "    on_message=print, on_connected=lambda: print('up', flush=True),\n"
        "    rng=random.Random(1), now_ms=lambda: 1)\n"
        "link.start()\n"
        "sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(broker.port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == b"up\n"
    assert peer.states(Presence.ONLINE) == 5
    child.kill()
    child.wait()
    child.stdout.close()
    child.stdin.close()
    assert peer.states(Presence.LOST) == 5


@pytest.mark.parametrize("key", ["password_file", "tls_ca"])
def test_a_missing_file_is_named(tmp_path, key):
    config = MqttConfig(username="fleet", **{key: str(tmp_path / "none")})
    with pytest.raises(BrokerError, match=f"mqtt.{key}"):
        FleetLink(
            config, tenant="default", session=1, on_message=lambda *_: None,
            on_connected=lambda: None, rng=random.Random(1), now_ms=lambda: 1,
        )  # fmt: skip


@pytest.mark.foreign("mosquitto")
@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_both_versions_of_the_protocol(tmp_path, protocol):
    broker = Mosquitto(tmp_path)
    fleet = Fleet(broker.port, protocol=protocol)
    fleet.wait_connected()
    peer = Peer(broker.port, FLEET_STATE)
    assert peer.states(Presence.ONLINE) == NOW
    incoming = FakeDevice("pi-1").state()
    peer.send(incoming)
    fleet.wait_for(incoming)
    fleet.link.stop()
    assert peer.states(Presence.OFFLINE) == NOW
    peer.close()
    broker.kill()

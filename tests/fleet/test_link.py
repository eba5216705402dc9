"""The link, over a real broker in a process of its own."""

from __future__ import annotations

import queue
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import paho.mqtt.client as mqtt
import pytest
from fleet_devices import NOW, FakeDevice
from paho.mqtt.enums import CallbackAPIVersion

from edgepack_contract.messages import FleetState
from edgepack_contract.states import Presence
from edgepack_contract.topics import Kind, device_topic, fleet_state_topic
from edgepack_fleet.config import MqttConfig
from edgepack_fleet.errors import BrokerError
from edgepack_fleet.link import FleetLink
from edgepack_fleet.outbox import Message

BROKER = Path(__file__).parents[1] / "support" / "amqtt_broker.py"
SECONDS = 20.0
FLEET_STATE = fleet_state_topic("default")


def wait_for(heard, message):
    """Wait for one message; amqtt may send others that nobody subscribed to before it."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if heard.get(timeout=SECONDS) == message:
            return
    raise AssertionError(f"{message} was not heard")


class Broker:
    """An amqtt process that can be killed and started again on the same port."""

    def __init__(self):
        self.port = 0
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, str(BROKER), str(self.port)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Peer:
    """Somebody else on the broker: sends what a device sends, hears what the fleet says."""

    def __init__(self, port, *filters):
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.ready = threading.Event()
        self._filters = filters
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self.client.on_connect = self._subscribe
        self.client.on_message = lambda _c, _u, m: self.heard.put((m.topic, bytes(m.payload)))
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.ready.wait(SECONDS)

    def _subscribe(self, client, *_):
        client.subscribe([(one, 1) for one in self._filters])

    def send(self, incoming, *, retain=False):
        self.client.publish(incoming.topic, incoming.payload, 1, retain).wait_for_publish(SECONDS)

    def states(self, wanted):
        """Wait for a fleet state and return the session in it."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            topic, payload = self.heard.get(timeout=SECONDS)
            if topic == FLEET_STATE:
                state = msgspec.json.decode(payload, type=FleetState)
                if state.state is wanted:
                    return state.session
        raise AssertionError(f"no {wanted} was heard")

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def broker():
    broker = Broker()
    yield broker
    broker.kill()


@pytest.fixture
def peer(broker):
    peer = Peer(broker.port, FLEET_STATE, "edgepack/v1/default/+/desired")
    yield peer
    peer.close()


class Fleet:
    def __init__(self, port, session=NOW):
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.connections: queue.Queue[int] = queue.Queue()
        self.link = FleetLink(
            MqttConfig(port=port),
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
    assert peer.states(Presence.ONLINE) > NOW
    incoming = FakeDevice("pi-1").state()
    peer.send(incoming)
    fleet.wait_for(incoming)
    peer.close()


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

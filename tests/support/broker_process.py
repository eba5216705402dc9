"""A real broker in a process of its own, and somebody who talks over it."""

from __future__ import annotations

import contextlib
import getpass
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edgepack_cli.demo.ports import free_port
from edgepack_contract.messages import FleetState
from edgepack_contract.topics import fleet_state_topic

BROKER = Path(__file__).with_name("amqtt_broker.py")
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


class Mosquitto(Broker):
    """Debian's Mosquitto, on loopback; like the other it remembers nothing over a restart.

    ``access`` is who may come in, as lines of its configuration.
    """

    def __init__(self, folder: Path, access: str = "allow_anonymous true"):
        self._folder, self._access = folder, access
        super().__init__()

    def start(self):
        self.port = self.port or free_port()
        config = self._folder / "mosquitto.conf"
        # started by root it would become another user, who may not enter the test's folder
        config.write_text(
            f"listener {self.port} 127.0.0.1\n{self._access}\nuser {getpass.getuser()}\n"
        )
        program = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
        assert program is not None
        self.process = subprocess.Popen(
            [program, "-c", config], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        wait_listening(self.port)


def wait_listening(port):
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
    raise AssertionError(f"nothing listens on port {port}")


BROKERS = ["amqtt", pytest.param("mosquitto", marks=pytest.mark.foreign("mosquitto"))]
"""For a parametrised fixture: the demo's broker, and the one that we recommend."""


def start_broker(kind, folder):
    return Mosquitto(folder) if kind == "mosquitto" else Broker()


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
        # the collector may come to its sockets before it comes to paho's client, and complain
        self.client._reset_sockets(sockpair_only=True)

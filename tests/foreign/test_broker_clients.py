"""The lines of docs/broker.md for clients that ask by MQTT, in a real Mosquitto's access list."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
from broker_tls import TlsBroker

from edgepack_contract.topics import Kind
from edgepack_fleet.mqtt_config import ACCESS

pytestmark = pytest.mark.foreign("mosquitto")

DOCUMENT = Path(__file__).parents[2] / "docs" / "broker.md"
ROOT = "edgepack/v1/default"
CLIENT, ASKED, OTHER = "line-3", "pi-1", "pi-2"
REQUEST, RESPONSE = f"{ROOT}/{ASKED}/request/main", f"{ROOT}/{ASKED}/response/{CLIENT}"
FLEET = "_fleet"
NAMES = (CLIENT, ASKED, OTHER, FLEET)
NAMED = {Kind.TELEMETRY: "main", Kind.ACKED: "main", Kind.EVENT: "crash", Kind.CMD: "ping",
         Kind.ACK: "ping", Kind.REQUEST: "main", Kind.RESPONSE: CLIENT}  # fmt: skip
TOPICS = [
    *(f"{ROOT}/{device}/{kind}" + (f"/{NAMED[kind]}" if kind in NAMED else "")
      for device, kind in product((ASKED, OTHER), Kind)),
    f"{ROOT}/{ASKED}/request/second", f"{ROOT}/{ASKED}/response/line-4",
    f"{ROOT}/_fleet/state", f"{ROOT}/_fleet/keyring", "elsewhere",
]  # fmt: skip


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    broker = TlsBroker(tmp_path_factory.mktemp("broker"))
    lines = re.search(r"```\n(user line-3\n.*?)```", DOCUMENT.read_text(), re.DOTALL)
    with (broker.out / ACCESS).open("a") as access:
        access.write("\n" + lines[1])
    broker.reload()
    for name in NAMES:
        broker.certify(name)
    yield broker
    broker.kill()


@pytest.fixture
def clients(broker):
    made = {name: broker.client(name) for name in NAMES}
    for one in (CLIENT, ASKED, OTHER):
        made[one].subscribe("#", f"{ROOT}/+/request/+", f"{ROOT}/+/response/+", *TOPICS)
    yield made
    for one in made.values():
        one.close()


def test_a_client_asks_the_device_that_it_may_ask_and_hears_its_own_answers(clients):
    for writer, topic in product((CLIENT, ASKED, OTHER), TOPICS):
        assert clients[writer].publish(topic, f"{writer} on {topic}".encode())
    # what each hears last comes behind all that it must not hear
    lasts = {
        ASKED: (CLIENT, REQUEST),
        CLIENT: (ASKED, RESPONSE),
        OTHER: (FLEET, f"{ROOT}/{OTHER}/cmd/last"),
    }
    heard = {}
    for reader, (writer, topic) in lasts.items():
        clients[writer].publish(topic, b"last")
        heard[reader] = set(clients[reader].until(topic, b"last"))
    assert heard == {
        ASKED: {(REQUEST, f"{CLIENT} on {REQUEST}".encode())},
        CLIENT: {(RESPONSE, f"{ASKED} on {RESPONSE}".encode())},
        OTHER: set(),
    }

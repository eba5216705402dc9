"""Predictions over a real broker: whom they are for, where the answer goes, each once."""

from __future__ import annotations

import asyncio
import json
import queue
import random
import threading
import time

import paho.mqtt.client as mqtt
import pytest
from broker_process import BROKERS, SECONDS, start_broker
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from world_waiting import eventually

from edgepack_contract.errors import DocumentError
from edgepack_contract.limits import LIMITS
from edgepack_runtime import mqtt_predict
from edgepack_runtime.link import Asked, Broker, DeviceLink, LinkIdentity
from edgepack_runtime.mqtt_predict import MqttPredictor, Question, read_request
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.slot import Slot

NOW = 1_780_000_000_000
BASE = "edgepack/v1/default/pi-1"
TOPIC, REPLY = f"{BASE}/request/pump", f"{BASE}/response/line-3"
ROWS = [[0.5, -1.0, 2.0, 0.0]]
OIP = [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": ROWS[0]}]


def asked(body=None, **changes):
    members = {"id": "1", "reply_to": REPLY, "instances": ROWS}
    raw = json.dumps(members | (body or {})).encode()
    return Asked(**{"topic": TOPIC, "payload": raw} | changes)


def read(message):
    return read_request(message, tenant="default", device="pi-1", now_ms=NOW)


def test_a_request_of_either_protocol_is_read():
    assert read(asked()) == Question("pump", "line-3", "1", None, v1=True)
    oip = {"id": "1", "reply_to": REPLY, "inputs": OIP, "expires_at": NOW + 1}
    assert not read(Asked(TOPIC, json.dumps(oip).encode())).v1


def test_the_properties_of_mqtt_5_come_first():
    message = asked(response_topic=f"{BASE}/response/other", correlation=b"\x00\xff")
    found = read(message)
    assert (found.reply, found.correlation) == ("other", b"\x00\xff")
    bare = Asked(TOPIC, b'{"instances":[]}', response_topic=REPLY, correlation=b"7")
    assert read(bare).id is None


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (asked(retained=True), "retained"),
        (asked(payload=b" " * (LIMITS.message_bytes + 1)), "too-large"),
        (asked(correlation=b"x" * 2000), "too-large"),
        (asked(payload=b""), "malformed"),
        (asked(payload=b"\xff\xfe"), "malformed"),
        (asked(payload=b"[" * 100_000), "malformed"),
        (asked({"id": 7}), "malformed"),
        (asked({"id": "x" * 129}), "malformed"),
        (asked({"id": ""}), "malformed"),
        (asked({"id": None}), "no-id"),
        (asked({"reply_to": None}), "no-reply"),
        (asked({"expires_at": NOW}), "expired"),
        *(
            (asked({"reply_to": where}), "reply-elsewhere")
            for where in (
                "", "x", "$SYS/x", f"{BASE}/response", f"{BASE}/response/a/b", f"{BASE}/response/+",
                f"{BASE}/state", f"{BASE}/telemetry/pump", f"{BASE}/request/pump",
                "edgepack/v1/default/pi-2/response/x", "edgepack/v1/other/pi-1/response/x",
                f"{BASE}/response/../desired",
            )
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_has_no_answer_is_ignored_for_a_reason(message, code):
    with pytest.raises(DocumentError) as caught:
        read(message)
    assert caught.value.code == code


class Device:
    """A link and a slot in a loop of their own, as in a daemon."""

    def __init__(self, port: int, model: ServingModel | None, *, version_5: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        up = threading.Event()
        self.link = DeviceLink(
            LinkIdentity("default", "pi-1", 7, bytes(32)),
            Broker(host="127.0.0.1", port=port, version_5=version_5),
            on_message=lambda _topic, _payload: None,
            on_connected=up.set,
            rng=random.Random(1),
            now_ms=lambda: NOW,
            # the predictor needs the loop, and is there before the link starts
            on_request=lambda one: self.predictor.take(one),  # noqa: PLW0108
        )
        self.wait(self._open(model))
        self.link.start()
        assert up.wait(SECONDS)

    async def _open(self, model: ServingModel | None) -> None:
        self.slot = Slot("pump")
        if model is not None:
            self.slot.swap(model, keep_previous=False)
        self.predictor = MqttPredictor(
            {"pump": self.slot, "closed": self.slot},
            admits=lambda name: name == "pump", tenant="default", device="pi-1",
            answer=self.link.answer, spawn=self.loop.create_task, now_ms=lambda: NOW,
        )  # fmt: skip

    def wait(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def close(self) -> None:
        self.link.stop()
        self.wait(self.slot.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Client:
    """Who asks."""

    def __init__(self, port: int, *, version_5: bool) -> None:
        self.heard: queue.Queue[mqtt.MQTTMessage] = queue.Queue()
        ready = threading.Event()
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5 if version_5 else mqtt.MQTTv311
        )
        self.client.on_connect = lambda client, *_: client.subscribe(f"{BASE}/response/+", 1)
        self.client.reconnect_delay_set(1, 2)
        self.client.on_message = lambda _client, _data, message: self.heard.put(message)
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert ready.wait(SECONDS)

    def send(self, body, topic=TOPIC, **options):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.client.publish(topic, raw, 1, **options).wait_for_publish(SECONDS)

    def ask(self, body, topic=TOPIC, **options):
        self.send({"reply_to": REPLY} | body, topic, **options)
        return json.loads(self.hear().payload)

    def hear(self):
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            message = self.heard.get(timeout=SECONDS)
            if message.topic.startswith(f"{BASE}/response/"):
                return message
        raise AssertionError("no answer")

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture(params=BROKERS, scope="module")
def broker(request, tmp_path_factory):
    broker = start_broker(request.param, tmp_path_factory.mktemp("broker"))
    broker.kind = request.param
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def variant(make_variant):
    return make_variant("mqtt", version="1.2.0")


@pytest.fixture
def model(variant):
    return ServingModel.load(variant, "sha256:" + "a" * 64)


@pytest.fixture
def device(broker, model):
    device = Device(broker.port, model, version_5=False)
    yield device
    device.close()


@pytest.fixture
def client(broker, device):
    client = Client(broker.port, version_5=False)
    yield client
    client.close()


def test_both_protocols_are_answered_and_counted(device, client):
    answer = client.ask({"id": "a", "instances": ROWS * 2})
    assert (answer["id"], answer["model_version"]) == ("a", "1.2.0")
    assert len(answer["predictions"]) == 2
    answer = client.ask({"id": "b", "inputs": OIP, "outputs": [{"name": "label"}]})
    assert (answer["id"], [one["name"] for one in answer["outputs"]]) == ("b", ["label"])
    assert (device.slot.totals.answered, device.slot.totals.rows) == (2, 3)
    assert device.predictor.counts == {"answered": 2}


@pytest.mark.parametrize(
    ("body", "topic", "status", "words"),
    [
        ({"instances": [[1.0]]}, TOPIC, 400, "4"),
        ({"instances": {}}, TOPIC, 400, "instances"),
        ({}, TOPIC, 400, "inputs"),
        ({"inputs": OIP, "parameters": {"binary_data_output": True}}, TOPIC, 400, "binary"),
        ({"instances": ROWS}, f"{BASE}/request/none", 404, "'none'"),
        ({"instances": ROWS}, f"{BASE}/request/closed", 404, "MQTT"),
        ({"instances": ROWS * 5000}, TOPIC, 400, "fewer rows"),
    ],
    ids=["short row", "no rows", "neither", "binary", "unknown", "not opted in", "large"],
)
def test_an_error_is_an_answer_too(client, body, topic, status, words):
    answer = client.ask({"id": "é-1"} | body, topic)
    assert (answer["id"], answer["status"]) == ("é-1", status), answer
    assert words in answer["error"]
    assert set(answer) == {"id", "error", "status"}


def test_what_comes_twice_is_answered_once(device, client):
    for _ in range(100):
        client.client.publish(TOPIC, asked().payload, 1)
    assert json.loads(client.hear().payload)["id"] == "1"
    answer = client.ask({"id": "last", "instances": ROWS})
    assert answer["id"] == "last"
    assert device.predictor.counts == {"answered": 2, "repeated": 99}


def test_a_kept_or_expired_request_is_never_answered(broker, device, client):
    client.send(asked({"expires_at": NOW - 1}).payload)
    client.send(asked({"id": "kept"}).payload, retain=True)
    assert client.ask({"id": "kept"} | {"instances": ROWS})["id"] == "kept"
    late = Device(broker.port, None, version_5=False)
    eventually(lambda: late.predictor.counts["retained"], lambda: late.predictor.counts)
    late.close()
    client.send(b"", retain=True)


def test_what_cannot_be_kept_up_with_is_refused(device, client, monkeypatch):
    monkeypatch.setattr(mqtt_predict, "MOST_AT_WORK", 0)
    assert client.ask({"id": "a", "instances": ROWS})["status"] == 429
    monkeypatch.setattr(mqtt_predict, "MOST_HANDED_OVER", 0)
    client.send(asked({"id": "b"}).payload)
    eventually(lambda: device.predictor.counts["crowded"], lambda: device.predictor.counts)


def test_a_device_that_nobody_may_ask_does_not_listen(broker):
    heard = queue.Queue()
    up = threading.Event()
    link = DeviceLink(
        LinkIdentity("default", "pi-1", 8, bytes(32)),
        Broker(host="127.0.0.1", port=broker.port),
        on_message=lambda topic, _payload: heard.put(topic), on_connected=up.set,
        rng=random.Random(1), now_ms=lambda: NOW,
    )  # fmt: skip
    link.start()
    assert up.wait(SECONDS)
    client = Client(broker.port, version_5=False)
    client.send(asked().payload)
    client.send(b"{}", f"{BASE}/desired")
    while (topic := heard.get(timeout=SECONDS)) != f"{BASE}/desired":
        assert "/request/" not in topic
    client.close()
    link.stop()


@pytest.mark.foreign("mosquitto")
def test_mqtt_5_says_in_its_own_way_where_the_answer_goes(tmp_path, model):
    broker = start_broker("mosquitto", tmp_path)
    device = Device(broker.port, model, version_5=True)
    client = Client(broker.port, version_5=True)
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic, properties.CorrelationData = REPLY, b"\x00\x01\xff"
    client.send({"instances": ROWS}, properties=properties)
    message = client.hear()
    assert message.topic == REPLY
    assert message.properties.CorrelationData == b"\x00\x01\xff"
    assert len(json.loads(message.payload)["predictions"]) == 1
    client.close()
    device.close()
    broker.kill()

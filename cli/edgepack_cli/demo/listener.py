"""Counts what goes over the broker: the demo's own view of the bytes that devices send."""

from __future__ import annotations

import threading
from collections import Counter

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgepack_contract.errors import MalformedDocumentError
from edgepack_contract.topics import ROOT, UP, parse_topic


class Listener:
    """Subscribes to every topic of edgepack and adds up payload sizes."""

    def __init__(self, port: int) -> None:
        self._lock = threading.Lock()
        self._bytes: Counter[str] = Counter()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id="demo-listener", protocol=mqtt.MQTTv311
        )
        self._client.on_connect = lambda client, *_: client.subscribe(f"{ROOT}/#")
        self._client.on_message = lambda _client, _data, message: self._count(message)
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()

    def totals(self) -> dict[str, int]:
        """Bytes from devices and to devices."""
        with self._lock:
            return {name: self._bytes[name] for name in ("from devices", "to devices")}

    def stop(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _count(self, message: mqtt.MQTTMessage) -> None:
        try:
            up = parse_topic(message.topic).kind in UP
        except MalformedDocumentError:
            return
        with self._lock:
            self._bytes["from devices" if up else "to devices"] += len(message.payload)

"""The MQTT link of a device: paho wrapped in one place.

The link keeps retained messages (birth, reported) in memory and says them again on every
connection; spool items are handed over again by their reporter. So nothing of an earlier connection
is kept by paho, which would resend all of it after what is newer. Callbacks arrive on paho's
thread; what they do is hand bytes over, nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgepack_contract.canonical import canonical_json
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import State
from edgepack_contract.sealing import seal
from edgepack_contract.states import Presence
from edgepack_contract.tls import FreshHandshake, tls_trouble
from edgepack_contract.topics import Kind, Topic, device_filters, device_topic

logger = logging.getLogger(__name__)

IN_FLIGHT = 20
RECONNECT_MAX_SECONDS = 120
GOODBYE_SECONDS = 2.0
MOST_PACKET_BYTES = 2 * max(LIMITS.message_bytes, LIMITS.keyring_bytes, LIMITS.desired_bytes)
"""What an MQTT 5 broker is told; one of 3.1.1 has a limit of its own."""


@dataclass(frozen=True, slots=True)
class LinkIdentity:
    """Who speaks: the ids that go into topics, the session, and the key that seals."""

    tenant: str
    device: str
    session: int
    mac_key: bytes


@dataclass(frozen=True, slots=True)
class Broker:
    """Where to connect.

    Attributes:
        host: The broker's host.
        port: The broker's port.
        keepalive_seconds: The MQTT keep-alive.
        tls: Makes the TLS context of the next connection; None to speak without TLS.
        version_5: Speak MQTT 5, not 3.1.1.
    """

    host: str
    port: int
    keepalive_seconds: int = 60
    tls: Callable[[], ssl.SSLContext] | None = None
    version_5: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A message on a ``request`` topic.

    Attributes:
        topic: Where it came on.
        payload: What it says.
        retained: Whether the broker had kept it.
        response_topic: Where its sender waits, when that was said as a property of MQTT 5.
        correlation: What the answer must carry, likewise.
    """

    topic: str
    payload: bytes
    retained: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None


class _Client(mqtt.Client):
    """paho's client, which keeps to itself why a connection failed."""

    def __init__(self, *, say_trouble: Callable[[OSError], None], **options: Any) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, **options)
        self._say_trouble = say_trouble
        self.on_log = self._remember

    def reconnect(self) -> MQTTErrorCode:
        """See :meth:`paho.mqtt.client.Client.reconnect`."""
        try:
            return super().reconnect()
        except OSError as error:
            self._say_trouble(error)
            raise

    def _remember(self, _client: mqtt.Client, _userdata: object, level: int, _text: str) -> None:
        # A broker that refuses a client's certificate says so after the handshake (RFC 8446, 4.4.2)
        error = sys.exc_info()[1]
        if level == mqtt.MQTT_LOG_ERR and isinstance(error, OSError):
            self._say_trouble(error)


class DeviceLink:
    """One connection to the broker, kept up for as long as the daemon runs.

    Args:
        who: Ids, session and MAC key.
        broker: Where to connect.
        on_message: Called on paho's thread with (topic, payload).
        on_connected: Called on paho's thread after every subscription.
        rng: Spreads reconnects of many devices.
        now_ms: Wall clock, milliseconds since 1970 UTC.
        on_refused: Called on paho's thread when the broker does not accept this device.
        on_request: Called on paho's thread with each request for a prediction; None for none.
    """

    def __init__(
        self,
        who: LinkIdentity,
        broker: Broker,
        *,
        on_message: Callable[[str, bytes], None],
        on_connected: Callable[[], None],
        rng: random.Random,
        now_ms: Callable[[], int],
        on_refused: Callable[[], None] = lambda: None,
        on_request: Callable[[Asked], None] | None = None,
    ) -> None:
        self._who = who
        self._on_request = on_request
        self._requests = str(Topic(who.tenant, who.device, Kind.REQUEST, ""))
        self._on_refused = on_refused
        self._broker = f"{broker.host}:{broker.port}"
        self._on_message = on_message
        self._on_connected = on_connected
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._sequence = 0
        self._retained: dict[str, bytes] = {}
        self._connected = threading.Event()
        self._client = self._make_client(rng, version_5=broker.version_5)
        if broker.tls is not None:
            self._client.tls_set_context(FreshHandshake(broker.tls))  # type: ignore[arg-type]
        self._client.connect_async(
            broker.host,
            broker.port,
            keepalive=broker.keepalive_seconds,
            **_connect_options(version_5=broker.version_5),
        )

    def _make_client(self, rng: random.Random, *, version_5: bool) -> mqtt.Client:
        client = _Client(
            say_trouble=self._trouble,
            client_id=self._who.device,
            clean_session=None if version_5 else True,
            protocol=mqtt.MQTTv5 if version_5 else mqtt.MQTTv311,
        )
        client.max_inflight_messages_set(IN_FLIGHT)
        client.max_queued_messages_set(4 * IN_FLIGHT)
        # Devices that lost the same broker must not come back in the same instant.
        client.reconnect_delay_set(1 + rng.randrange(2), RECONNECT_MAX_SECONDS)
        client.on_connect = self._connected_callback
        client.on_disconnect = self._disconnected_callback
        client.on_message = self._message_callback
        topic, lost = self._sealed_state(Presence.LOST, sequence=0)
        client.will_set(topic, lost, qos=1, retain=True)
        return client

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and no disconnect was seen since."""
        return self._connected.is_set()

    def reconnect(self) -> None:
        """Let go of the connection and make another, with the certificate that is there by then."""
        connection = self._client.socket()
        if connection is not None:
            with contextlib.suppress(OSError):
                # paho's own thread sees the end and connects again; TLS is left to it
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # type: ignore[arg-type]

    def next_sequence(self) -> int:
        """The next sequence of this session's device-level messages, from 1."""
        with self._lock:
            self._sequence += 1
            return self._sequence

    def start(self) -> None:
        """Connect in the background, and again whenever the connection is lost."""
        self._client.loop_start()

    def stop(self) -> None:
        """Say ``offline`` and disconnect cleanly, so that the will is not sent."""
        if self._connected.is_set():
            topic, offline = self._sealed_state(Presence.OFFLINE, sequence=self.next_sequence())
            info = self._client.publish(topic, offline, qos=1, retain=True)
            if info.rc == mqtt.MQTT_ERR_SUCCESS:
                info.wait_for_publish(timeout=GOODBYE_SECONDS)
        self._client.disconnect()
        self._client.loop_stop()

    def retain(self, kind: Kind, body: bytes) -> None:
        """Publish a retained message now and on every later connection."""
        topic = device_topic(self._who.tenant, self._who.device, kind)
        sealed = seal(body, topic=topic, key=self._who.mac_key)
        # Published under the lock: what the broker keeps must be what was said last.
        with self._lock:
            self._retained[topic] = sealed
            if self._connected.is_set():
                self._client.publish(topic, sealed, qos=1, retain=True)

    def send(self, kind: Kind, name: str | None, body: bytes, *, qos: int) -> bool:
        """Publish once, not retained; False when there is no connection or no room."""
        if not self._connected.is_set():
            return False
        topic = device_topic(self._who.tenant, self._who.device, kind, name)
        sealed = seal(body, topic=topic, key=self._who.mac_key)
        info = self._client.publish(topic, sealed, qos=qos, retain=False)
        return info.rc == mqtt.MQTT_ERR_SUCCESS

    def answer(self, name: str, body: bytes, correlation: bytes | None = None) -> bool:
        """Answer a request, unsealed: who asks has no key; False as for :meth:`send`.

        Args:
            name: Last level of the ``response`` topic.
            body: The answer.
            correlation: What the request carried, of MQTT 5.
        """
        if not self._connected.is_set():
            return False
        topic = device_topic(self._who.tenant, self._who.device, Kind.RESPONSE, name)
        properties = None
        if correlation is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = correlation
        info = self._client.publish(topic, body, qos=1, retain=False, properties=properties)
        return info.rc == mqtt.MQTT_ERR_SUCCESS

    def _say_again(self) -> None:
        with self._lock:
            for topic, sealed in self._retained.items():
                self._client.publish(topic, sealed, qos=1, retain=True)

    def _sealed_state(self, state: Presence, *, sequence: int) -> tuple[str, bytes]:
        topic = device_topic(self._who.tenant, self._who.device, Kind.STATE)
        message = State(
            session=self._who.session, sequence=sequence, at=self._now_ms(), state=state
        )
        return topic, seal(canonical_json(message), topic=topic, key=self._who.mac_key)

    def _connected_callback(
        self,
        client: mqtt.Client,
        _userdata: object,
        _flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            logger.warning(
                "the broker %s refused the connection: %s; check that this device is enrolled there"
                " and not revoked, and what the broker allows",
                self._broker, reason, extra={"event": "mqtt_refused"},
            )  # fmt: skip
            self._on_refused()
            return
        client.drop_out_messages()
        filters = device_filters(
            self._who.tenant, self._who.device, requests=self._on_request is not None
        )
        client.subscribe([(one, 1) for one in filters])
        topic, online = self._sealed_state(Presence.ONLINE, sequence=self.next_sequence())
        client.publish(topic, online, qos=1, retain=True)
        self._connected.set()
        self._say_again()
        logger.info("connected to the broker", extra={"event": "mqtt_connected"})
        self._on_connected()

    def _disconnected_callback(
        self,
        _client: mqtt.Client,
        _userdata: object,
        _flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._connected.clear()
        logger.info(
            "disconnected from the broker: %s", reason, extra={"event": "mqtt_disconnected"}
        )

    def _trouble(self, error: OSError) -> None:
        logger.warning(
            "no connection to the broker %s: %s", self._broker, tls_trouble(error),
            extra={"event": "mqtt_trouble"},
        )  # fmt: skip
        if isinstance(error, ssl.SSLError):
            self._on_refused()

    def _message_callback(
        self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage
    ) -> None:
        # An exception on paho's thread ends the thread silently and with it the link.
        try:
            if message.topic.startswith(self._requests):
                if self._on_request is not None:
                    self._on_request(_asked(message))
                return
            self._on_message(message.topic, bytes(message.payload))
        except Exception:
            logger.exception("message handler failed", extra={"event": "mqtt_handler_failed"})


def _connect_options(*, version_5: bool) -> dict[str, Any]:
    if not version_5:
        return {}
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = MOST_PACKET_BYTES
    return {"clean_start": True, "properties": properties}


def _asked(message: mqtt.MQTTMessage) -> Asked:
    properties = message.properties
    return Asked(
        topic=message.topic,
        payload=bytes(message.payload),
        retained=message.retain,
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
    )

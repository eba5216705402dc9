"""The MQTT link of the fleet service: paho wrapped in one place.

Only MQTT 3.1.1 is needed: plain subscriptions, retained messages, a last will, QoS 1. The broker
is asked to keep our session, so that what devices say while this service restarts is queued there.
When it has not kept it, the fleet's own session grows, which makes every device say again what it
is. Callbacks arrive on paho's thread; what they do is hand bytes over, nothing else.
"""

from __future__ import annotations

import logging
import random
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgepack_contract.canonical import canonical_json
from edgepack_contract.errors import ConfigError
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import FleetState
from edgepack_contract.small_files import read_small
from edgepack_contract.states import Presence
from edgepack_contract.tls import FreshHandshake, client_context, read_authorities, tls_trouble
from edgepack_contract.topics import FLEET_NODE, Kind, fleet_filters, fleet_state_topic
from edgepack_fleet.config import MqttConfig
from edgepack_fleet.errors import BrokerError
from edgepack_fleet.outbox import Message

logger = logging.getLogger(__name__)

IN_FLIGHT = 100
KEEPALIVE_SECONDS = 30
RECONNECT_MAX_SECONDS = 30
SESSION_EXPIRY_SECONDS = 86_400
GOODBYE_SECONDS = 2.0


class _Client(mqtt.Client):
    """paho's client, which keeps to itself why a connection failed, and forgets no password."""

    def __init__(
        self, config: MqttConfig, say_trouble: Callable[[OSError], None], **options: Any
    ) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, **options)
        self._config = config
        self._say_trouble = say_trouble
        self.on_log = self._remember
        self._take_password()
        if config.tls_ca is not None:
            _tls(config)
            self.tls_set_context(FreshHandshake(lambda: _tls(config)))  # type: ignore[arg-type]

    def reconnect(self) -> MQTTErrorCode:
        """See :meth:`paho.mqtt.client.Client.reconnect`."""
        try:
            self._take_password()
            return super().reconnect()
        except BrokerError as error:
            self._say_trouble(OSError(str(error)))
            raise OSError(str(error)) from error
        except OSError as error:
            self._say_trouble(error)
            raise

    def _take_password(self) -> None:
        if self._config.username is not None:
            self.username_pw_set(self._config.username, _password(self._config.password_file))

    def _remember(self, _client: mqtt.Client, _userdata: object, level: int, _text: str) -> None:
        # by TLS 1.3 a refusal of our certificate comes after the handshake (RFC 8446, 4.4.2)
        error = sys.exc_info()[1]
        if level == mqtt.MQTT_LOG_ERR and isinstance(error, OSError):
            self._say_trouble(error)


class FleetLink:
    """One connection to the broker, kept up for as long as the service runs.

    Args:
        config: Where the broker is, and how to log in.
        tenant: Whose topics.
        session: The fleet's session; larger than that of any earlier run.
        on_message: Called on paho's thread with (topic, payload); it may wait.
        on_connected: Called on paho's thread after every subscription.
        rng: Spreads reconnects.
        now_ms: Wall clock, milliseconds since 1970 UTC.

    Raises:
        BrokerError: The password, a certificate or its key cannot be read.
    """

    def __init__(
        self,
        config: MqttConfig,
        *,
        tenant: str,
        session: int,
        on_message: Callable[[str, bytes], None],
        on_connected: Callable[[], None],
        rng: random.Random,
        now_ms: Callable[[], int],
    ) -> None:
        self._config = config
        self._tenant = tenant
        self._session = session
        self._on_message = on_message
        self._on_connected = on_connected
        self._now_ms = now_ms
        self._connected = threading.Event()
        self._was_connected = False
        self._address = f"{config.host}:{config.port}"
        self._client = self._make_client(rng)

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and no disconnect was seen since."""
        return self._connected.is_set()

    @property
    def session(self) -> int:
        """The session that devices see; it grows when messages may have been missed."""
        return self._session

    def start(self) -> None:
        """Connect in the background, and again whenever the connection is lost."""
        config = self._config
        if config.protocol == "5":
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_EXPIRY_SECONDS
            self._client.connect_async(
                config.host,
                config.port,
                KEEPALIVE_SECONDS,
                clean_start=False,
                properties=properties,
            )
        else:
            self._client.connect_async(config.host, config.port, KEEPALIVE_SECONDS)
        self._client.loop_start()

    def stop(self) -> None:
        """Say ``offline`` and disconnect cleanly, so that the will is not sent."""
        if self.connected:
            self._say(Presence.OFFLINE).wait_for_publish(GOODBYE_SECONDS)
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, message: Message) -> mqtt.MQTTMessageInfo:
        """Hand a message over without waiting; QoS 1."""
        return self._client.publish(message.topic, message.payload, qos=1, retain=message.retained)

    def _make_client(self, rng: random.Random) -> mqtt.Client:
        v5 = self._config.protocol == "5"
        client = _Client(
            self._config,
            self._trouble,
            client_id=f"edgepack-fleet-{self._tenant}",
            clean_session=None if v5 else False,
            protocol=mqtt.MQTTv5 if v5 else mqtt.MQTTv311,
        )
        client.max_inflight_messages_set(IN_FLIGHT)
        # Replicas and devices that lost the same broker must not come back in the same instant.
        client.reconnect_delay_set(1 + rng.randrange(2), RECONNECT_MAX_SECONDS)
        client.on_connect = self._connected_callback
        client.on_subscribe = self._subscribed_callback
        client.on_disconnect = self._disconnected_callback
        client.on_message = self._message_callback
        client.will_set(
            fleet_state_topic(self._tenant), self._state(Presence.LOST), qos=1, retain=True
        )
        return client

    def _state(self, presence: Presence) -> bytes:
        return canonical_json(FleetState(session=self._session, at=self._now_ms(), state=presence))

    def _say(self, presence: Presence) -> mqtt.MQTTMessageInfo:
        topic = fleet_state_topic(self._tenant)
        return self.publish(Message(topic, self._state(presence), retained=True))

    def _connected_callback(
        self,
        client: mqtt.Client,
        _userdata: object,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            logger.error(
                "the broker %s refused the connection: %s; it must know this service by the name "
                "in mqtt.client_certificate or by mqtt.username, and its access list must allow "
                "what `edgepack fleet mqtt-config` writes",
                self._address, reason, extra={"event": "mqtt_refused"},
            )  # fmt: skip
            return
        if self._was_connected and not flags.session_present:
            self._session = max(self._now_ms(), self._session + 1)
        self._was_connected = True
        client.subscribe([(one, 1) for one in fleet_filters(self._tenant)])

    def _subscribed_callback(
        self,
        _client: mqtt.Client,
        _userdata: object,
        _mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        """Begin to speak, and not before.

        After a reconnect paho repeats what the former connection left open. What is said earlier
        than that would be followed by something older, and the broker would retain the older.
        """
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            logger.error(
                "the broker %s refused subscriptions: %s; compare its access list with what "
                "`edgepack fleet mqtt-config` writes",
                self._address, refused, extra={"event": "mqtt_refused"},
            )  # fmt: skip
            return
        self._say(Presence.ONLINE)
        self._connected.set()
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
        # what is said of certificates is said to devices too, which enrol; the service does not
        hint = "; `edgepack fleet mqtt-config` issues both sides' certificates"
        logger.warning(
            "no connection to the broker %s: %s%s", self._address, tls_trouble(error),
            hint if isinstance(error, ssl.SSLError) else "", extra={"event": "mqtt_trouble"},
        )  # fmt: skip

    def _message_callback(
        self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage
    ) -> None:
        if _is_our_own(message.topic):
            return
        # An exception on paho's thread ends the thread silently and with it the link.
        try:
            self._on_message(message.topic, bytes(message.payload))
        except Exception:
            logger.exception("message handler failed", extra={"event": "mqtt_handler_failed"})


def _is_our_own(topic: str) -> bool:
    """Whether the service itself says what is retained on a topic.

    The filter for devices' states matches that of the service too, and amqtt sends a session that
    comes back whatever is retained for anybody: the keyring, and the desired documents.
    """
    _, _, _, node, kind, *_ = *topic.split("/"), "", "", "", "", ""
    return node == FLEET_NODE or kind == Kind.DESIRED


def _tls(config: MqttConfig) -> ssl.SSLContext:
    certificate, key = config.client_certificate, config.client_key
    try:
        return client_context(
            read_authorities(Path(config.tls_ca or "")),
            certificate=None if certificate is None else Path(certificate),
            key=None if key is None else Path(key),
        )
    except ConfigError as error:
        files = "mqtt.tls_ca, mqtt.client_certificate, mqtt.client_key"
        raise BrokerError(f"{files}: {error}") from error


def _password(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return read_small(Path(path), LIMITS.key_file_bytes).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BrokerError(f"cannot read mqtt.password_file {path}: {error}") from error

"""Ends the session of a revoked device at the broker.

A broker asks for the list of revoked certificates only when somebody connects; who is connected
stays. But a client that connects with the client id of another ends the other's session, on every
broker (MQTT-3.1.4-2), and the authority can vouch for any name. So the service connects for a
moment as the revoked device, with a certificate that lives for minutes.

When that is done is decided from the database: at once, and again for some minutes, because the
broker may read the new list later than the device comes back.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgepack_contract.certificates import Authority
from edgepack_contract.keys import PrivateKey, write_private_key
from edgepack_contract.tls import FreshHandshake, client_context, read_authorities, tls_trouble
from edgepack_fleet.config import MqttConfig
from edgepack_fleet.errors import BrokerError

REPEAT_MS = 30_000
"""How long after an eviction the same device is evicted again, at the earliest."""

INSIST_MS = 5 * 60_000
"""For how long after its revocation a device is evicted again and again."""

CERTIFICATE_DAYS = 5 / 1440
CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revoked certificate: whose, since when, and when its holder was last evicted.

    ``is_member`` says that the device has joined again since; its new session has then ended the
    old one, and must not be disturbed.
    """

    device: str
    revoked_ms: int
    evicted_ms: int | None
    is_member: bool


def due(revocations: Iterable[Revocation], *, now_ms: int) -> list[str]:
    """Whom to evict now, by name."""
    return sorted({one.device for one in revocations if _is_due(one, now_ms)})


def _is_due(one: Revocation, now_ms: int) -> bool:
    if one.evicted_ms is None:
        return True
    insists = not one.is_member and one.evicted_ms < one.revoked_ms + INSIST_MS
    return insists and now_ms - one.evicted_ms >= REPEAT_MS


def evict(device: str, config: MqttConfig, authority: Authority, *, now_ms: int) -> None:
    """Connect as a device, which ends its session, and leave.

    Raises:
        BrokerError: The broker could not be reached, or did not let us in.
        ConfigError: ``mqtt.tls_ca`` is missing or not a file of certificates.
    """
    key = PrivateKey.generate()
    issued = authority.issue_client(key.public, name=device, now_ms=now_ms, days=CERTIFICATE_DAYS)
    with tempfile.TemporaryDirectory(prefix="edgepack-") as folder:
        certificate_path, key_path = Path(folder) / "device.pem", Path(folder) / "device.key"
        certificate_path.write_bytes(issued.pem)
        write_private_key(key_path, key)
        context = client_context(
            read_authorities(Path(config.tls_ca or "")), certificate=certificate_path, key=key_path
        )
    # 3.1.1 with a clean session: nothing of this connection, or of the one before, is left behind
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2, client_id=device, clean_session=True, protocol=mqtt.MQTTv311
    )
    client.tls_set_context(FreshHandshake(lambda: context))  # type: ignore[arg-type]
    client.connect_timeout = CONNECT_SECONDS
    _come_and_go(client, config)


def _come_and_go(client: mqtt.Client, config: MqttConfig) -> None:
    answered, answers = threading.Event(), list[ReasonCode]()

    def take(
        _client: mqtt.Client,
        _userdata: object,
        _flags: mqtt.ConnectFlags | mqtt.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        answers.append(reason)
        answered.set()

    client.on_connect = take
    client.on_disconnect = take
    try:
        client.connect(config.host, config.port)
    except OSError as error:
        raise BrokerError(f"{config.host}:{config.port}: {tls_trouble(error)}") from error
    client.loop_start()
    try:
        in_time = answered.wait(CONNECT_SECONDS)
        reason = answers[0] if in_time else None
    finally:
        client.disconnect()
        client.loop_stop()
    if reason is None or reason.is_failure:
        words = "it did not answer" if reason is None else f"it answered: {reason}"
        raise BrokerError(f"{config.host}:{config.port}: {words}")

"""Whether the broker and the fleet service can be reached, by the device's own means."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgepack_contract.errors import EdgepackError
from edgepack_contract.keyring import advance_keyring
from edgepack_contract.limits import LIMITS
from edgepack_contract.tls import FreshHandshake, tls_trouble
from edgepack_runtime.config import RuntimeConfig
from edgepack_runtime.connections import broker
from edgepack_runtime.link import Broker
from edgepack_runtime.local.findings import Finding, fail, ok, warn
from edgepack_runtime.local.view import DeviceView
from edgepack_runtime.membership.enrolment import KEYRING_PATH
from edgepack_runtime.membership.fleet_client import FleetClient, Patience
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.trust import Trust, peek_trust

CONNECT_SECONDS = 4.0
LOGIN_SECONDS = 6.0
_NETWORK = "check the cable, the route, the firewall, and the name in [mqtt] of the configuration"
_BROKER_LOG = "look at the broker's log"
_ENROL = "edgepack enrol --again FOLDER gives this device another certificate"
_CERTIFICATE = "check [mqtt] ca, the clock, and the broker's certificate"
_TLS_PORT = f"check that port in [mqtt] is the broker's port for TLS; else {_BROKER_LOG}"
_MAYBE_TLS = f"if it wants TLS, set tls = true in [mqtt]; else {_BROKER_LOG}"


def check_broker(
    config: RuntimeConfig, view: DeviceView | None, now_ms: Callable[[], int]
) -> list[Finding]:
    """TCP, TLS and login, each only when the one before works.

    A running daemon is asked instead of logging in: the broker would end its connection for ours.
    """
    where = f"{config.mqtt.host}:{config.mqtt.port}"
    if view is not None and view.broker is not None and view.broker.connected:
        return [ok("broker", f"the daemon is connected to {where}")]
    try:
        socket.create_connection((config.mqtt.host, config.mqtt.port), CONNECT_SECONDS).close()
    except OSError as error:
        return [fail("broker", f"{where}: {error}", _NETWORK)]
    trust = _trust(config, now_ms)
    if trust is None:
        return [warn("broker", f"{where} takes connections; no login was tried", "see keyring")]
    place = broker(config, trust)
    found = _shake_hands(place) if place.tls is not None else None
    if found is not None:
        return [found]
    if view is not None and view.daemon is not None:
        refusal = _refusal(place)
        words = f"{where} takes connections, and the daemon has none yet"
        return [refusal or warn("broker", words, "wait a minute; then look at the daemon's log")]
    return [_log_in(place, config.device)]


def check_fleet(config: RuntimeConfig, now_ms: Callable[[], int]) -> list[Finding]:
    """Whether the fleet service answers, and has no other keyring than this device."""
    url = config.fleet.url
    if url is None:
        words = "no [fleet] url: nothing renews the device's certificate"
        no_need = config.identity.certificate is None
        return [ok("fleet", words) if no_need else warn("fleet", words, "set url in [fleet]")]
    trust = _trust(config, now_ms)
    if trust is None:
        return [warn("fleet", "not asked, because the keyring cannot be used", "see keyring")]
    try:
        patience = Patience(stall_seconds=CONNECT_SECONDS, total_seconds=LOGIN_SECONDS)
        client = FleetClient(url, tls=trust.tls_context(config.fleet.ca), patience=patience)
        raw = client.get(KEYRING_PATH, max_bytes=LIMITS.keyring_bytes)
        newest = advance_keyring(trust.keyring, raw)
    except EdgepackError as error:
        return [fail("fleet", f"{url}: {error}", "check the address in [fleet], and the network")]
    if newest.version > trust.keyring.version:
        words = f"it has keyring {newest.version}, and this device {trust.keyring.version}"
        return [warn("fleet", words, "a running daemon takes it by itself; start it")]
    return [ok("fleet", f"{url} answers, with the same keyring")]


def check_connection(view: DeviceView | None, lines: list[str]) -> list[Finding]:
    """Since when there is no connection, and how much waits for it.

    Args:
        view: The device.
        lines: The daemon's last log lines.
    """
    if view is None or view.daemon is None or view.broker is None:
        return [warn("connection", "no daemon runs", "systemctl start edgepack")]
    spool = view.daemon.spool
    waits = f"{spool.items} items wait for the fleet"
    if view.broker.connected:
        return [ok("connection", f"connected; {waits}")]
    lost = [line for line in lines if '"mqtt_disconnected"' in line or '"mqtt_connected"' in line]
    since = lost[-1][:60] if lost else "this daemon was never connected"
    return [warn("connection", f"none now ({since}); {waits}", "see broker")]


def _trust(config: RuntimeConfig, now_ms: Callable[[], int]) -> Trust | None:
    try:
        return peek_trust(config, DurableFS(), system_ms=now_ms)
    except EdgepackError:
        # what is wrong with it is a finding of its own
        return None


def _shake_hands(place: Broker) -> Finding | None:
    error = _tls_error(place)
    if error is None:
        return None
    if isinstance(error.__cause__, EdgepackError):
        return fail("broker", str(error), "mend what it names, in [mqtt] or [identity]")
    words = f"TLS with {place.host}:{place.port}: {tls_trouble(error)}"
    is_untrusted = isinstance(error, ssl.SSLCertVerificationError)
    return fail("broker", words, _CERTIFICATE if is_untrusted else _TLS_PORT)


def _tls_error(place: Broker, *, listens: bool = False) -> OSError | None:
    """Why there is no TLS; None when there is.

    Args:
        place: Where to connect.
        listens: Wait for what is said after the handshake: by TLS 1.3 a refusal of our certificate
            comes then (RFC 8446, 4.4.2), and is lost to who writes meanwhile.
    """
    if place.tls is None:
        return None
    try:
        plain = socket.create_connection((place.host, place.port), CONNECT_SECONDS)
        with FreshHandshake(place.tls).wrap_socket(plain, server_hostname=place.host) as connection:
            if listens:
                connection.recv(1)
    except OSError as error:
        return error
    return None


def _log_in(place: Broker, device: str) -> Finding:
    ended, answers = threading.Event(), []

    def on_connect(_c: Any, _u: Any, _f: Any, reason: Any, _p: Any) -> None:
        answers.append(reason)
        ended.set()

    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=device,
        protocol=mqtt.MQTTv5 if place.version_5 else mqtt.MQTTv311,
        reconnect_on_failure=False,
    )
    client.connect_timeout = CONNECT_SECONDS
    client.on_connect = on_connect
    client.on_disconnect = lambda *_: ended.set()
    if place.tls is not None:
        client.tls_set_context(FreshHandshake(place.tls))  # type: ignore[arg-type]
    try:
        client.connect(place.host, place.port)
        client.loop_start()
        has_ended = ended.wait(LOGIN_SECONDS)
    except OSError as error:
        return fail("broker", f"{place.host}:{place.port}: {tls_trouble(error)}", _NETWORK)
    finally:
        client.disconnect()
        client.loop_stop()
    if not answers:
        return _unanswered(place, has_ended=has_ended)
    if answers[0].is_failure:
        remedy = "check that this device is enrolled and not revoked: edgepack device list"
        return fail("broker", f"it refuses this device: {answers[0]}", remedy)
    return ok("broker", f"{place.host}:{place.port} lets this device in")


def _unanswered(place: Broker, *, has_ended: bool) -> Finding:
    where = f"{place.host}:{place.port}"
    if not has_ended:
        return fail("broker", "it does not answer the login", _BROKER_LOG)
    words = f"{where} closed the connection before it answered the login"
    remedy = _MAYBE_TLS if place.tls is None else _BROKER_LOG
    return _refusal(place) or fail("broker", words, remedy)


def _refusal(place: Broker) -> Finding | None:
    error = _tls_error(place, listens=True)
    if not isinstance(error, ssl.SSLError):
        return None
    return fail("broker", f"{place.host}:{place.port}: {tls_trouble(error)}", _ENROL)

"""What Mosquitto is told so that nobody at the broker can be, read or write another: pure text.

A device's certificate names it; Mosquitto makes that name its user name and its client id, and the
access list is by pattern of the user name. The list is derived from :mod:`edgepack_contract.topics`
and says nothing of its own. Every setting is one that Mosquitto 2.0 has and 2.1 has not deprecated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from edgepack_contract.limits import KIB, LIMITS, MIB
from edgepack_contract.topics import (
    CLIENTS,
    FLEET_NODE,
    NAMED,
    RETAINED,
    UP,
    Kind,
    Topic,
    fleet_filters,
    fleet_state_topic,
    keyring_topic,
)

CONFIG = "edgepack.conf"
ACCESS = "edgepack.acl"
AUTHORITIES = "ca.pem"
SERVER_CERTIFICATE = "server.pem"
SERVER_KEY = "server.key"
REVOKED = "crl.pem"

MAX_PACKET_BYTES = max(LIMITS.message_bytes, LIMITS.keyring_bytes) + KIB
"""The largest payload of the protocol, its topic and headers."""

MAX_KEEPALIVE_SECONDS = 600
MAX_IN_FLIGHT = 100
MAX_QUEUED = 10_000
MAX_QUEUED_BYTES = 64 * MIB
SESSION_DAYS = 14
AUTOSAVE_SECONDS = 300

USER = "%u"
"""What Mosquitto replaces by the user name in a pattern."""


@dataclass(frozen=True, slots=True)
class BrokerPlan:
    """Where the broker listens, and the folder on its machine that holds its files."""

    tenant: str
    port: int
    folder: PurePosixPath


def access_text(tenant: str) -> str:
    """The access list: what is not in it is denied."""
    rules = [
        "# Written by `edgepack fleet mqtt-config` from the topics of edgepack; do not edit.",
        "# What is not here is denied. A pattern holds for every user; %u is the user name, which",
        "# is the common name of the certificate: the device's id.",
        *(f"pattern write {topic}" for topic in device_writes(tenant)),
        *(f"pattern read {topic}" for topic in device_reads(tenant)),
        "",
        f"# The service: {FLEET_NODE} is the name in its certificate, and no possible device id.",
        f"user {FLEET_NODE}",
        *(f"topic read {topic}" for topic in fleet_filters(tenant)),
        *(f"topic write {topic}" for topic in fleet_writes(tenant)),
    ]
    return "\n".join(rules) + "\n"


def device_writes(tenant: str) -> list[str]:
    """What a device may publish on, with ``%u`` for its id."""
    return [_any(tenant, USER, kind) for kind in Kind if kind in UP]


def device_reads(tenant: str) -> list[str]:
    """What a device may receive, with ``%u`` for its id."""
    own = [_any(tenant, USER, kind) for kind in Kind if kind not in UP]
    return [*own, fleet_state_topic(tenant), keyring_topic(tenant)]


def fleet_writes(tenant: str) -> list[str]:
    """What the service publishes on: also the empty messages that clear a device's retained."""
    down = [kind for kind in Kind if kind not in UP | CLIENTS or kind in RETAINED]
    return [
        *(_any(tenant, "+", kind) for kind in down),
        fleet_state_topic(tenant),
        keyring_topic(tenant),
    ]


def _any(tenant: str, device: str, kind: Kind) -> str:
    return str(Topic(tenant, device, kind, "+" if kind in NAMED else None))


def config_text(plan: BrokerPlan) -> str:
    """The configuration, to stand in ``conf.d`` or to be named by ``mosquitto -c``."""
    lines = [
        "# Written by `edgepack fleet mqtt-config`; run it again instead of editing.",
        "# Works with Mosquitto 2.0.11; in production use 2.0.21 or newer, which mends ways to",
        "# stop the broker from afar. One broker serves one fleet: device ids are its client ids.",
    ]
    for reason, setting in [*_listener(plan), *_limits()]:
        lines += ["", f"# {reason}", setting]
    return "\n".join(lines) + "\n"


def _listener(plan: BrokerPlan) -> list[tuple[str, str]]:
    folder = plan.folder
    return [
        ("The only door; TLS from the first byte.", f"listener {plan.port}"),
        ("Who may vouch for clients: the fleet's authorities only, never public ones.",
         f"cafile {folder / AUTHORITIES}"),
        ("How the broker proves itself to devices and the service.",
         f"certfile {folder / SERVER_CERTIFICATE}"),
        ("Readable by the broker's user only.", f"keyfile {folder / SERVER_KEY}"),
        ("Whose certificate was taken back; read again at SIGHUP.", f"crlfile {folder / REVOKED}"),
        ("The oldest version that is accepted; newer ones are used where both know them.",
         "tls_version tlsv1.2"),
        ("A client without a certificate of the fleet never reaches MQTT.",
         "require_certificate true"),
        ("The name in the certificate is the user, whatever the client says.",
         "use_identity_as_username true"),
        ("And it is the client id: nobody can push another out by using its id.",
         "use_username_as_clientid true"),
        ("What the system allows: LimitNOFILE of the broker must be more than there are devices.",
         "max_connections -1"),
        ("Said aloud, because other files of conf.d may have other listeners.",
         "allow_anonymous false"),
        ("Who may publish and receive what; also read again at SIGHUP.",
         f"acl_file {folder / ACCESS}"),
    ]  # fmt: skip


def _limits() -> list[tuple[str, str]]:
    return [
        ("A retained message is delivered only while who wrote it may still write it.",
         "check_retain_source true"),
        (f"The largest message is {LIMITS.message_bytes // KIB} KiB; more ends the connection.",
         f"max_packet_size {MAX_PACKET_BYTES}"),
        ("A client that vanished is noticed: who would stay silent for longer is told not to.",
         f"max_keepalive {MAX_KEEPALIVE_SECONDS}"),
        ("So that the service is not slowed down to one round trip for each message.",
         f"max_inflight_messages {MAX_IN_FLIGHT}"),
        ("What waits for the service while it restarts; devices say the rest again.",
         f"max_queued_messages {MAX_QUEUED}"),
        ("The same, for the memory of the broker.", f"max_queued_bytes {MAX_QUEUED_BYTES}"),
        ("Only the service keeps a session; one that never comes back is forgotten.",
         f"persistent_client_expiration {SESSION_DAYS}d"),
        ("Retained documents survive a restart of the broker.", "persistence true"),
        ("Seconds between saves; the service says again what a crash of the broker lost.",
         f"autosave_interval {AUTOSAVE_SECONDS}"),
    ]  # fmt: skip

"""``edgepack fleet mqtt-config``: everything for a Mosquitto of this fleet, and what to do with it.

The service may run meanwhile: its database is not needed where a list of revoked certificates is
there already, which the service keeps.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from edgepack_contract.certificates import Authority, certificate_key, common_name
from edgepack_contract.errors import ConfigError
from edgepack_contract.keyring import Keyring, open_keyring
from edgepack_contract.tls import client_context
from edgepack_fleet.authority import (
    known_lists,
    named_authorities,
    open_authorities,
    require_issuer,
    revocation_list,
)
from edgepack_fleet.broker_files import (
    CLIENT_CERTIFICATE,
    CLIENT_KEY,
    BrokerRequest,
    Trusted,
    read_bounded,
    write_broker_files,
)
from edgepack_fleet.config import FleetConfig
from edgepack_fleet.db.database import Database
from edgepack_fleet.errors import StorageError
from edgepack_fleet.mqtt_config import AUTHORITIES, CONFIG, REVOKED, SERVER_KEY
from edgepack_fleet.revoked_list import key_identifier, listed_issuers, merge_lists
from edgepack_fleet.trust import read_keyring_file

_HOST = re.compile(r"\A[A-Za-z0-9](?:[A-Za-z0-9.:_-]{0,251}[A-Za-z0-9])?\Z|\A::1\Z")


def set_up_broker(config: FleetConfig, request: BrokerRequest, *, now_ms: int) -> list[str]:
    """Write the files; say what was done and what is next, line by line.

    Raises:
        ConfigError: There is no authority, or the keyring does not name it, or the revoked
            certificates cannot be known, or a host is malformed, or a certificate of one's own
            does not fit its key, or the folder cannot be written.
        AuthorityError, SigningKeyError: A key or certificate cannot be used.
        UntrustedDocumentError, MalformedDocumentError: The keyring does not hold.
    """
    _check(request)
    keyring = open_keyring(read_keyring_file(config.keys), owner_fingerprint=config.keys.owner)
    # also former ones: devices with their certificates still connect
    named = [pem.strip().encode() + b"\n" for pem in keyring.authorities]
    issuer = require_issuer(config.keys, keyring)
    revoked = _revoked(config, request.out / REVOKED, now_ms)
    trusted = Trusted(authority=issuer, authorities=named, revoked=revoked)
    done = write_broker_files(request, trusted, now_ms=now_ms)
    return [
        f"{request.out}:",
        *(f"  {name:<18} {became}" for name, became in done),
        *_without_list(keyring, revoked),
        "",
        *_next_steps(request),
    ]


def _check(request: BrokerRequest) -> None:
    for host in request.hosts:
        if not _HOST.match(host):
            raise ConfigError(
                f"--host {host[:80]!r} is neither a host name nor an address", code="bad-host"
            )
    if request.own is not None:
        certificate, key = request.own
        client_context([], certificate=certificate, key=key)  # says whether they fit


def _revoked(config: FleetConfig, path: Path, now_ms: int) -> bytes:
    """The lists of every authority, with what is in the folder and in the service's own files."""
    authorities = open_authorities(config.keys)
    known = known_lists(config) + (read_bounded(path) if path.exists() else b"")
    if config.database_url.startswith("sqlite:///") and not _database(config).exists():
        return merge_lists(known, [one.revocation_list([], now_ms=now_ms) for one in authorities])
    try:
        database = Database(config.database_url)
        with contextlib.closing(database), database.read() as session:
            fresh = [revocation_list(session, one, now_ms) for one in authorities]
    except StorageError as error:
        if error.code != "in-use" or not listed_issuers(known):
            raise ConfigError(
                f"cannot tell which certificates are revoked: {error}; or fetch the list from the "
                f"running service first: curl -o {path} URL/api/v1/crl",
                code="no-list",
            ) from error
        return _completed(known, authorities, now_ms)
    return merge_lists(known, fresh)


def _completed(known: bytes, authorities: Sequence[Authority], now_ms: int) -> bytes:
    """What the running service keeps; an authority that it has not yet has taken back nothing."""
    there, empty = listed_issuers(known), []
    for one in authorities:
        pem = one.revocation_list([], now_ms=now_ms)
        if not listed_issuers(pem) <= there:
            empty.append(pem)
    return merge_lists(known, empty)


def _without_list(keyring: Keyring, revoked: bytes) -> list[str]:
    listed = {identifier for _, identifier in listed_issuers(revoked)}
    return [
        f"  Nobody knows what {common_name(one)} has taken back, so the broker will refuse its "
        "clients: name its files too in keys.authority and keys.authority_certificate, or have "
        "the owner revoke it: edgepack keys revoke authority"
        for one in named_authorities(keyring)
        if key_identifier(certificate_key(one)) not in listed
    ]


def _database(config: FleetConfig) -> Path:
    return Path(config.database_url.removeprefix("sqlite:///"))


def _next_steps(request: BrokerRequest) -> Sequence[str]:
    out, there = request.out, request.on_broker
    carried = [] if str(out) == str(there) else [f"  put all but fleet-client.* into {there}"]
    issuer = AUTHORITIES if request.own is None else "FILE-OF-WHO-SIGNED-IT.pem"
    return [
        "On the machine of the broker, as root:",
        *carried,
        f"  chown mosquitto {there / SERVER_KEY}",
        f"  cp {there / CONFIG} /etc/mosquitto/conf.d/",
        "  systemctl restart mosquitto",
        "After a change of certificates or of the list, `systemctl reload mosquitto` is enough.",
        "",
        "In the configuration of the service:",
        "  [mqtt]",
        f'  host = "{request.hosts[0]}"',
        f"  port = {request.port}",
        f'  tls_ca = "{out / issuer}"',
        f'  client_certificate = "{out / CLIENT_CERTIFICATE}"',
        f'  client_key = "{out / CLIENT_KEY}"',
        f'  crl_file = "{out / REVOKED}"',
        '  # broker_pid_file = "/run/mosquitto/mosquitto.pid"  if it may be signalled',
        "",
        f"The user of the service must own {out} and fleet-client.*, so that it can keep them up",
        "to date. docs/broker.md has the rest: who reloads the broker, brokers on other machines.",
    ]

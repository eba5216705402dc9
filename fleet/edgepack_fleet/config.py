"""The configuration of the fleet service: one TOML file and ``EDGEPACK_FLEET_*``, strictly read.

An environment variable is named after its key: ``EDGEPACK_FLEET_TENANT``,
``EDGEPACK_FLEET_HTTP_PORT`` for ``port`` of ``[http]``. Unknown keys are refused by name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from edgepack_contract.errors import ConfigError
from edgepack_contract.names import DEFAULT_TENANT, check_id
from edgepack_contract.settings import load_settings

ENVIRONMENT_PREFIX = "EDGEPACK_FLEET"
DATABASE_FILE = "fleet.db"
BROKER_FILES = (
    "password_file", "tls_ca", "client_certificate", "client_key", "crl_file", "broker_pid_file",
)  # fmt: skip

S = TypeVar("S", bound=msgspec.Struct)

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(ge=0.05, le=366 * 86400)]
Fingerprint = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Files = Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


class DatabaseConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where state is kept; without a URL, ``fleet.db`` in the data folder."""

    url: str | None = None


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The listener of the API, the bundle store and the page.

    ``public_url`` is how devices reach it, and the base of bundle sources; without one it is the
    address that was bound. Port 0 takes a free one. ``requests_per_minute`` is for each token,
    device or anonymous address. ``trusted_proxies`` are networks such as ``10.0.0.0/8`` whose
    ``X-Forwarded-For`` is believed. ``behind_proxy`` says that they have the TLS; only they are
    answered then.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    unix: str | None = None
    public_url: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    requests_per_minute: Annotated[int, msgspec.Meta(ge=60, le=10_000_000)] = 6000
    trusted_proxies: tuple[str, ...] = ()
    behind_proxy: bool = False


class MqttConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The broker. Protocol 3.1.1 is all that is needed; with 5 it may forget us after a day.

    ``tls_ca`` signed the broker's certificate. The service says who it is with
    ``client_certificate`` and ``client_key``, or with ``username`` and ``password_file``.
    ``crl_file`` is where the list of revoked certificates is kept for the broker, and
    ``broker_pid_file`` names the process that is sent SIGHUP to read it anew.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 1883
    protocol: Literal["3.1.1", "5"] = "3.1.1"
    username: str | None = None
    password_file: str | None = None
    tls_ca: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    crl_file: str | None = None
    broker_pid_file: str | None = None


class KeysConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fleet key (signs desired state), the keyring, and the owner's pinned fingerprint.

    ``fleet`` may name several files: the key that the keyring names last is used. ``authority`` and
    ``authority_certificate`` issue the certificates with which devices connect; without them
    devices connect without any, which is for loopback. Both may name several files, in the same
    order: the authority that the keyring names last issues, and each lists what it took back.
    """

    fleet: str | Files
    keyring: str
    owner: Fingerprint
    authority: str | Files | None = None
    authority_certificate: str | Files | None = None

    @property
    def fleet_files(self) -> tuple[str, ...]:
        """The files of the fleet keys."""
        return _as_files(self.fleet)

    @property
    def authority_files(self) -> tuple[str, ...]:
        """The files of the authorities' keys."""
        return _as_files(self.authority)

    @property
    def authority_certificate_files(self) -> tuple[str, ...]:
        """The files of the authorities' certificates, in the order of their keys."""
        return _as_files(self.authority_certificate)


class EnrolmentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where devices that join are told to find the broker; what is left out is as in ``[mqtt]``."""

    broker_host: str | None = None
    broker_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    broker_tls: bool | None = None


class TimingsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds.

    ``device_lease`` without a message makes a device offline; ``desired_refresh`` is the age at
    which a desired document is issued again; ``gap`` is how long a hole in a device's sequence is
    waited for; ``retention`` is how long windows are kept.
    """

    tick: Seconds = 1.0
    lease: Seconds = 15.0
    device_lease: Seconds = 180.0
    desired_ttl: Seconds = 7 * 86400.0
    desired_refresh: Seconds = 86400.0
    gap: Seconds = 60.0
    retention: Seconds = 2 * 86400.0


class FleetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that ``edgepack fleet serve`` is told."""

    data_dir: str
    keys: KeysConfig
    tenant: str = DEFAULT_TENANT
    database: DatabaseConfig = DatabaseConfig()
    http: HttpConfig = HttpConfig()
    mqtt: MqttConfig = MqttConfig()
    enrolment: EnrolmentConfig = EnrolmentConfig()
    timings: TimingsConfig = TimingsConfig()

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL of the database."""
        return self.database.url or f"sqlite:///{self.data_path / DATABASE_FILE}"

    @property
    def data_path(self) -> Path:
        """The data folder."""
        return Path(self.data_dir)


def load_config(path: Path | None, environment: Mapping[str, str]) -> FleetConfig:
    """Read the configuration file and apply the environment.

    Relative paths are relative to the folder of the file; without a file, to the working folder.

    Raises:
        ConfigError: The file cannot be read, or a key is unknown, missing or out of range.
    """
    for name in environment:
        if name.startswith(f"{ENVIRONMENT_PREFIX}_") and name not in environment_names():
            raise ConfigError(
                f"{name} is not a setting of the fleet service; known are "
                f"{', '.join(sorted(environment_names()))}",
                code="unknown-key",
            )
    config = load_settings(path, FleetConfig, prefix=ENVIRONMENT_PREFIX, environ=environment)
    check_id(config.tenant, what="tenant")
    _check_timings(config.timings)
    _check_proxies(config.http)
    _check_broker(config.mqtt)
    _check_authority(config.keys)
    return _resolved(config, Path.cwd() if path is None else path.absolute().parent)


def environment_names() -> frozenset[str]:
    """Every environment variable that is a setting."""
    names = []
    for field in msgspec.structs.fields(FleetConfig):
        kind = field.type
        nested = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        inner = [f"_{name}" for name in kind.__struct_fields__] if nested else [""]
        names += [f"{ENVIRONMENT_PREFIX}_{field.name}{part}".upper() for part in inner]
    return frozenset(names)


def configured_url(http: HttpConfig) -> str:
    """Where the service will be reached, as far as its configuration says.

    Raises:
        ConfigError: It says neither an address nor a port.
    """
    if http.public_url is not None:
        return http.public_url.rstrip("/")
    if http.unix is not None or http.port == 0:
        raise ConfigError(
            "the page's address is not known: set http.public_url, or http.port to a fixed port"
        )
    return url_of(http, http.host, http.port)


def url_of(http: HttpConfig, host: str, port: int) -> str:
    """The URL of a listener at an address and a port."""
    scheme = "http" if http.tls_certificate is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _resolved(config: FleetConfig, base: Path) -> FleetConfig:
    return msgspec.structs.replace(
        config,
        data_dir=str(base / config.data_dir),
        keys=_at(config.keys, base, "fleet", "keyring", "authority", "authority_certificate"),
        http=_at(config.http, base, "unix", "tls_certificate", "tls_key"),
        mqtt=_at(config.mqtt, base, *BROKER_FILES),
    )


def _at(section: S, base: Path, *names: str) -> S:
    paths = {name: getattr(section, name) for name in names}
    found = {name: _below(base, path) for name, path in paths.items() if path is not None}
    return msgspec.structs.replace(section, **found)


def _as_files(named: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if named is None:
        return ()
    return (named,) if isinstance(named, str) else named


def _below(base: Path, path: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(path, str):
        return str(base / path)
    return tuple(str(base / one) for one in path)


def _check_timings(timings: TimingsConfig) -> None:
    if timings.desired_refresh >= timings.desired_ttl:
        raise ConfigError(
            "timings.desired_refresh must be shorter than timings.desired_ttl, or devices would "
            "hold expired documents"
        )
    if timings.lease <= timings.tick:
        raise ConfigError("timings.lease must be longer than timings.tick, which renews it")


def _check_proxies(http: HttpConfig) -> None:
    for network in http.trusted_proxies:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ConfigError(
                f"http.trusted_proxies: {error}; expected networks such as '10.0.0.0/8'"
            ) from error


def _check_authority(keys: KeysConfig) -> None:
    if (keys.authority is None) != (keys.authority_certificate is None):
        raise ConfigError(
            "keys.authority and keys.authority_certificate belong together: set both; `edgepack "
            "keys init` makes authority.key and authority.pem"
        )
    paths, certificates = keys.authority_files, keys.authority_certificate_files
    if len(paths) != len(certificates):
        raise ConfigError(
            f"keys.authority names {len(paths)} files and keys.authority_certificate "
            f"{len(certificates)}: each key needs its certificate, in the same order"
        )


def _check_broker(mqtt: MqttConfig) -> None:
    identity = (mqtt.client_certificate, mqtt.client_key)
    if any(identity) and not (all(identity) and mqtt.tls_ca is not None):
        raise ConfigError(
            "mqtt.client_certificate, mqtt.client_key and mqtt.tls_ca belong together: set all "
            "three; `edgepack fleet mqtt-config` writes the files"
        )
    if mqtt.password_file is not None and mqtt.username is None:
        raise ConfigError("mqtt.password_file needs mqtt.username, whose password it holds")
    if mqtt.broker_pid_file is not None and mqtt.crl_file is None:
        raise ConfigError(
            "mqtt.broker_pid_file needs mqtt.crl_file: the broker is told to read that file anew"
        )

"""The configuration of the device daemon: ``/etc/edgepack/device.toml`` and ``EDGEPACK_*``.

Relative paths are relative to the folder of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from edgepack_contract.limits import GIB, LIMITS, MIB
from edgepack_contract.names import DEFAULT_TENANT, check_id
from edgepack_contract.settings import load_settings

S = TypeVar("S", bound=msgspec.Struct)

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(ge=0.1, le=86_400.0)]


class IdentityConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who this device is, as enrolment left it.

    ``owner`` is the pinned fingerprint of the owner keys (64 hex digits). ``certificate`` is what
    the device shows to the broker; it is for ``key``, and none is needed on loopback.
    """

    key: str
    mac_key: str
    keyring: str
    owner: str
    certificate: str | None = None


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where predictions are served; ``port = 0`` takes a free one.

    Off loopback it takes TLS, and a file with the token that every request must bear.
    ``body_bytes`` bounds the body of a request, unpacked; ``waiting`` how many requests may wait
    for a model. A daemon that is asked to end says at once that it is not ready, goes on for
    ``drain_seconds`` for load balancers that look only now and then, and then gives what is in
    flight ``grace_seconds``. With ``grpc_port`` the protocol is answered by gRPC too, on the same
    host and behind the same certificate and token; it takes the extra ``edgepack[grpc]``.
    Where requests come within ``busy_poll_us`` microseconds of the wait for them, the next one is
    waited for awake for so long; 0 always sleeps.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    grpc_port: Port | None = None
    unix_socket: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    token_file: str | None = None
    body_bytes: Annotated[int, msgspec.Meta(ge=1024, le=LIMITS.request_body_bytes)] = (
        LIMITS.request_body_bytes
    )
    waiting: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    drain_seconds: Annotated[float, msgspec.Meta(ge=0.0, le=600.0)] = 0.0
    grace_seconds: Annotated[int, msgspec.Meta(ge=0, le=600)] = 5
    busy_poll_us: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 100


class BatchingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests that come together are answered by one run; none unless ``rows`` is given.

    ``rows`` is the most rows of a run, ``delay_ms`` how long the first of them waits for others.
    """

    rows: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 0
    delay_ms: Annotated[float, msgspec.Meta(ge=0.0, le=1000.0)] = 2.0


class SlotConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this device settles for one slot, by its name.

    ``threads`` are those of the model where its bundle leaves them to the device. ``by_mqtt``
    lets it answer requests that come by the broker, from whoever the broker admits.
    """

    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    batching: BatchingConfig = BatchingConfig()
    by_mqtt: bool = False


class CaptureConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampled inputs and outputs that stay on this device; none unless ``share`` is given.

    ``share`` of the requests is kept, the newest ``max_bytes`` of them. What ``redact`` names
    (inputs, outputs, features, ``x-edgepack-key``) is never written.
    """

    share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    max_bytes: Annotated[int, msgspec.Meta(ge=MIB, le=GIB)] = 16 * MIB
    redact: list[str] = []


class RegistryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One host that bundles are pulled from, ``HOST[:PORT]``, and how it knows this device."""

    host: str
    user: str | None = None
    password_file: str | None = None
    ca: str | None = None


class DownloadConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How bundles are pulled.

    ``bytes_per_second`` is a cap, 0 for none. ``metered`` names the network interfaces whose bytes
    cost money: over those it takes ``metered_bytes_per_second``, where 0 means that downloads wait
    for another link. Proxies come from the environment (``HTTPS_PROXY``, ``NO_PROXY``).
    """

    bytes_per_second: Annotated[int, msgspec.Meta(ge=0, le=GIB)] = 0
    metered: list[str] = []
    metered_bytes_per_second: Annotated[int, msgspec.Meta(ge=0, le=GIB)] = 0
    registries: list[RegistryConfig] = []


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``auto`` is text in a terminal and JSON lines elsewhere."""

    format: Literal["auto", "json", "text"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class OpsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A listener of its own for health, ready and metrics; read-only, plain, on any address."""

    host: str | None = None
    port: Port = 9464


class MqttConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The broker. ``ca`` signed its certificate; without one the authorities of the keyring did.

    ``version`` 5 is needed only for requests that name their response topic in its way.
    """

    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 1883
    keepalive_seconds: Annotated[int, msgspec.Meta(ge=5, le=65535)] = 60
    tls: bool = False
    ca: str | None = None
    version: Literal["3.1.1", "5"] = "3.1.1"


class FleetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fleet service, which renews the certificate. ``ca`` is as in :class:`MqttConfig`."""

    url: str | None = None
    ca: str | None = None


class TelemetryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often windows are closed, and how much may wait on the disk for the broker."""

    window_seconds: Seconds = 60.0
    health_seconds: Seconds = 60.0
    spool_bytes: Annotated[int, msgspec.Meta(ge=MIB, le=GIB)] = 64 * MIB


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a device daemon is told.

    ``factory`` is a folder with one bundle file ``SLOT.edgepack`` for each slot that has something
    to serve before the fleet has said anything, and when nothing else works any more.
    """

    device: str
    state_dir: str
    identity: IdentityConfig
    mqtt: MqttConfig
    tenant: str = DEFAULT_TENANT
    serve: ServeConfig = ServeConfig()
    ops: OpsConfig = OpsConfig()
    fleet: FleetConfig = FleetConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    download: DownloadConfig = DownloadConfig()
    capture: CaptureConfig = CaptureConfig()
    log: LogConfig = LogConfig()
    slots: dict[str, SlotConfig] = {}
    factory: str | None = None

    def slot(self, name: str) -> SlotConfig:
        """What is settled for a slot."""
        return self.slots.get(name, SlotConfig())


def load_config(path: Path, environ: Mapping[str, str]) -> RuntimeConfig:
    """Read the daemon's configuration; whether it is safe, :mod:`.security` decides.

    Raises:
        ConfigError: See :func:`~edgepack_contract.settings.load_settings`; or an id is malformed.
    """
    config = load_settings(path, RuntimeConfig, prefix="EDGEPACK", environ=environ)
    check_id(config.device, what=f"{path}: device")
    check_id(config.tenant, what=f"{path}: tenant")
    for name in config.slots:
        check_id(name, what=f"{path}: slots")
    return _absolute(config, path.parent.resolve())


def _absolute(config: RuntimeConfig, base: Path) -> RuntimeConfig:
    return msgspec.structs.replace(
        config,
        state_dir=str(base / config.state_dir),
        identity=_at(config.identity, base, "key", "mac_key", "keyring", "certificate"),
        serve=_at(config.serve, base, "unix_socket", "tls_certificate", "tls_key", "token_file"),
        mqtt=_at(config.mqtt, base, "ca"),
        fleet=_at(config.fleet, base, "ca"),
        download=_download_at(config.download, base),
        factory=str(base / config.factory) if config.factory is not None else None,
    )


def _download_at(section: DownloadConfig, base: Path) -> DownloadConfig:
    registries = [_at(one, base, "password_file", "ca") for one in section.registries]
    return msgspec.structs.replace(section, registries=registries)


def _at(section: S, base: Path, *names: str) -> S:
    paths = {name: getattr(section, name) for name in names}
    found = {name: str(base / path) for name, path in paths.items() if path is not None}
    return msgspec.structs.replace(section, **found)


def to_toml(config: RuntimeConfig) -> str:
    """The configuration as a file that says the same; of secrets it has the paths."""
    return "\n".join(_toml_lines(msgspec.to_builtins(config), ())) + "\n"


def _toml_lines(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    values = {key: value for key, value in table.items() if value is not None}
    inner = {key: value for key, value in values.items() if _is_table(value)}
    yield from (
        f"{key} = {_toml_value(value)}" for key, value in values.items() if key not in inner
    )
    for key, value in inner.items():
        name = ".".join((*path, key))
        for one in value if isinstance(value, list) else [value]:
            yield f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
            yield from _toml_lines(one, (*path, key))


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    )


def _toml_value(value: object) -> str:
    # TOML's strings, numbers, booleans and lists are JSON's, but for DEL in a string
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

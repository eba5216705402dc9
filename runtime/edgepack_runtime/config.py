"""The configuration of the device daemon: ``/etc/edgepack/device.toml`` and ``EDGEPACK_*``.

Relative paths are relative to the folder of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from edgepack_contract.limits import GIB, MIB
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
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    unix_socket: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    token_file: str | None = None


class OpsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A listener of its own for health, ready and metrics; read-only, plain, on any address."""

    host: str | None = None
    port: Port = 9464


class MqttConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The broker. ``ca`` signed its certificate; without one the authorities of the keyring did."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 1883
    keepalive_seconds: Annotated[int, msgspec.Meta(ge=5, le=65535)] = 60
    tls: bool = False
    ca: str | None = None


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
    """Everything a device daemon is told."""

    device: str
    state_dir: str
    identity: IdentityConfig
    mqtt: MqttConfig
    tenant: str = DEFAULT_TENANT
    serve: ServeConfig = ServeConfig()
    ops: OpsConfig = OpsConfig()
    fleet: FleetConfig = FleetConfig()
    telemetry: TelemetryConfig = TelemetryConfig()


def load_config(path: Path, environ: Mapping[str, str]) -> RuntimeConfig:
    """Read the daemon's configuration; whether it is safe, :mod:`.security` decides.

    Raises:
        ConfigError: See :func:`~edgepack_contract.settings.load_settings`; or an id is malformed.
    """
    config = load_settings(path, RuntimeConfig, prefix="EDGEPACK", environ=environ)
    check_id(config.device, what=f"{path}: device")
    check_id(config.tenant, what=f"{path}: tenant")
    return _absolute(config, path.parent.resolve())


def _absolute(config: RuntimeConfig, base: Path) -> RuntimeConfig:
    return msgspec.structs.replace(
        config,
        state_dir=str(base / config.state_dir),
        identity=_at(config.identity, base, "key", "mac_key", "keyring", "certificate"),
        serve=_at(config.serve, base, "unix_socket", "tls_certificate", "tls_key", "token_file"),
        mqtt=_at(config.mqtt, base, "ca"),
        fleet=_at(config.fleet, base, "ca"),
    )


def _at(section: S, base: Path, *names: str) -> S:
    paths = {name: getattr(section, name) for name in names}
    found = {name: str(base / path) for name, path in paths.items() if path is not None}
    return msgspec.structs.replace(section, **found)

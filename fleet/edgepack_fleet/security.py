"""The gate that the service passes before it listens or connects: a table of what is insecure.

Pure: :mod:`edgepack_fleet.admission` looks at files, clock and database, this decides. Off loopback
means every address but loopback, also ``0.0.0.0`` inside a container.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgepack_contract.errors import ConfigError
from edgepack_contract.gate import (
    OTHERS,
    FileFacts,
    Rule,
    TlsFacts,
    Violation,
    day,
    is_local_url,
    is_safe_url,
)
from edgepack_contract.keyring import Keyring
from edgepack_contract.loopback import is_loopback
from edgepack_fleet.config import FleetConfig, HttpConfig, MqttConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the gate goes by.

    Attributes:
        config: What the service was told.
        now: Seconds since 1970 UTC.
        source: The configuration's file, for commands.
        files: What settings name, by setting.
        tls: None without ``http.tls_certificate`` and ``http.tls_key``.
        demo: Whether the keyring is a demo's, whose keys are no secret.
        admins: How many tokens and people may do everything; looked up off loopback only.
    """

    config: FleetConfig
    now: float
    source: str = "fleet.toml"
    files: Mapping[str, tuple[FileFacts, ...]] = field(default_factory=dict)
    tls: TlsFacts | None = None
    demo: bool = False
    admins: int = 0

    @property
    def http(self) -> HttpConfig:
        """The listener."""
        return self.config.http

    @property
    def mqtt(self) -> MqttConfig:
        """The broker."""
        return self.config.mqtt

    @property
    def listens(self) -> bool:
        """Whether it listens off loopback by itself."""
        return self.http.unix is None and not is_loopback(self.http.host)

    @property
    def is_reached(self) -> bool:
        """Whether others reach it, by itself or through a proxy."""
        url = self.http.public_url
        return self.listens or (url is not None and not is_local_url(url))

    @property
    def broker_elsewhere(self) -> bool:
        """Whether the broker is another machine."""
        return not is_loopback(self.mqtt.host)

    def opened(self, key: str, forbidden: int | None = None) -> FileFacts | None:
        """The first file of a setting that others can read, as far as that is forbidden."""
        for file in self.files.get(key, ()):
            if file.is_told() if forbidden is None else file.is_open(forbidden):
                return file
        return None


def leaving(config: FleetConfig) -> list[str]:
    """The settings that reach beyond this machine."""
    facts = Facts(config=config, now=0)
    url = config.http.public_url
    found = {
        "http.host": facts.listens,
        "http.public_url": url is not None and not is_local_url(url),
        "mqtt.host": facts.broker_elsewhere,
    }
    return [key for key, leaves in found.items() if leaves]


def security_gate(facts: Facts) -> list[Violation]:
    """Everything that keeps the service from starting; empty when nothing does. Total."""
    return [rule.violation(_told(facts, rule.key)) for rule in RULES if rule.broken(facts)]


def refuse_demo(config: FleetConfig, keyring: Keyring) -> None:
    """Refuse a demo's keyring for a service that reaches beyond this machine.

    Raises:
        ConfigError: With code ``demo-keyring``.
    """
    reaching = leaving(config)
    if keyring.demo and reaching:
        raise ConfigError(
            f"keyring version {keyring.version} is a demo's, whose keys are no secret, and by "
            f"{' and '.join(reaching)} it would be used beyond this machine; make keys with: "
            "edgepack keys init FOLDER",
            code="demo-keyring",
        )


def _secret(key: str, whose: str) -> Rule[Facts]:
    """A secret of which others could take a copy."""
    return Rule(
        key,
        lambda facts: facts.opened(key) is not None,
        "{path} can be read or written by others (mode {mode}), who could " + whose,
        "run: chmod 600 {path}",
    )


RULES: tuple[Rule[Facts], ...] = (
    Rule(
        "http.host",
        lambda f: (
            f.listens
            and f.http.tls_certificate is None
            and f.http.tls_key is None
            and not f.http.behind_proxy
        ),
        "tokens, logins and bundles would travel in the clear on {host}, for everybody on the way "
        "to read",
        "run: edgepack fleet certificate --config {source} --host NAME-OR-ADDRESS --out tls, and "
        'set http.tls_certificate = "tls/service.pem" and http.tls_key = "tls/service.key"; or set '
        'http.host = "127.0.0.1"',
    ),
    Rule(
        "http.tls_key",
        lambda f: f.http.tls_certificate is not None and f.http.tls_key is None,
        "a certificate is of no use without its private key",
        "set http.tls_key to the PEM file with the key of http.tls_certificate",
        waivable=False,
    ),
    Rule(
        "http.tls_certificate",
        lambda f: f.http.tls_key is not None and f.http.tls_certificate is None,
        "a private key is of no use without its certificate",
        "set http.tls_certificate to the PEM file with the certificate of http.tls_key",
        waivable=False,
    ),
    Rule(
        "http.tls_certificate",
        lambda f: f.tls is not None and f.tls.problem is not None,
        "{tls_problem}",
        "give a PEM certificate (its chain after it) and its unencrypted PEM key; `edgepack fleet "
        "certificate --config {source} --host NAME-OR-ADDRESS --out tls` makes both",
        waivable=False,
    ),
    Rule(
        "http.tls_certificate",
        lambda f: f.tls is not None and not f.tls.problem and f.tls.expires <= f.now,
        "the certificate expired on {expired}, so devices and browsers will refuse it",
        "renew it and put the new one at {tls_path}; one of the fleet's own authority is renewed "
        "by: edgepack fleet certificate --config {source} --host NAME-OR-ADDRESS --out FOLDER",
    ),
    Rule(
        "http.trusted_proxies",
        lambda f: f.listens and f.http.behind_proxy and not f.http.trusted_proxies,
        "behind_proxy does not say which machines are the proxies, so anybody could pose as one",
        'set http.trusted_proxies to their networks, such as ["10.0.0.7/32"]',
    ),
    Rule(
        "http.public_url",
        lambda f: f.http.public_url is not None and not is_safe_url(f.http.public_url),
        "{url} is neither https nor plain http on this machine, so bundles and logins would travel "
        "in the clear",
        "set http.public_url to the https address by which devices and browsers reach the service",
    ),
    Rule(
        "mqtt.tls_ca",
        lambda f: f.broker_elsewhere and f.mqtt.tls_ca is None,
        "the broker {broker} is another machine, and would be spoken to in the clear",
        "run: edgepack fleet mqtt-config --config {source} --host {broker} --out broker, which "
        'says what to set; or use a local bridge and mqtt.host = "127.0.0.1"',
    ),
    Rule(
        "mqtt.client_certificate",
        lambda f: f.broker_elsewhere and not _has_credentials(f.mqtt),
        "the broker {broker} is another machine, and cannot know this service without credentials, "
        "so it would have to obey anybody",
        "set mqtt.client_certificate and mqtt.client_key (edgepack fleet mqtt-config --config "
        "{source} makes them), or mqtt.username and mqtt.password_file",
    ),
    _secret("keys.fleet", "tell every device what to run"),
    _secret("keys.authority", "make certificates and pose as any device"),
    _secret("http.tls_key", "pose as this service"),
    _secret("mqtt.password_file", "pose as this service to the broker"),
    _secret("mqtt.client_key", "pose as this service to the broker"),
    Rule(
        "data_dir",
        lambda f: f.opened("data_dir", OTHERS) is not None and bool(leaving(f.config)),
        "{path} is open to others (mode {mode}), who could read what devices are known by",
        "run: chmod 700 {path}",
    ),
    Rule(
        "http.host",
        lambda f: f.is_reached and f.admins == 0,
        "others reach the service, and there is no token or person yet that may administer it",
        "run: edgepack fleet init --config {source} --name YOUR-NAME",
    ),
    Rule(
        "keys.authority",
        lambda f: bool(leaving(f.config)) and f.config.keys.authority is None,
        "without an authority, devices elsewhere (see {leaving}) cannot be given certificates; a "
        "broker that knows them by passwords needs these managed by hand",
        "run: edgepack keys rotate authority FOLDER (edgepack keys init makes one too), and set "
        'keys.authority = "authority.key" and keys.authority_certificate = "authority.pem"',
    ),
    Rule(
        "keys.keyring",
        lambda f: f.demo and bool(leaving(f.config)),
        "the keyring is a demo's, whose keys are no secret, and by {leaving} it would be used "
        "beyond this machine",
        "make keys with: edgepack keys init FOLDER; or stay on 127.0.0.1",
        waivable=False,
    ),
)


def _has_credentials(mqtt: MqttConfig) -> bool:
    certificate = mqtt.client_certificate is not None and mqtt.client_key is not None
    return certificate or (mqtt.username is not None and mqtt.password_file is not None)


def _told(facts: Facts, key: str) -> dict[str, str]:
    """What the templates of a rule may name."""
    file = facts.opened(key, OTHERS if key == "data_dir" else None) or FileFacts("")
    tls = facts.tls or TlsFacts()
    return {
        "source": facts.source,
        "host": facts.http.host,
        "url": facts.http.public_url or "",
        "broker": facts.mqtt.host,
        "leaving": " and ".join(leaving(facts.config)),
        "tls_path": facts.http.tls_certificate or "",
        "tls_problem": tls.problem or "",
        "expired": day(tls.expires),
        "path": file.path,
        "mode": f"{file.mode or 0:04o}",
    }

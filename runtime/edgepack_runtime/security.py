"""The gate that a daemon passes before it listens or connects: a table of what is insecure.

Pure: :mod:`edgepack_runtime.admission` looks at the files and the clock, this decides. Off loopback
means every address but loopback, also ``0.0.0.0`` inside a container.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgepack_contract.gate import (
    OTHERS,
    OTHERS_WRITE,
    FileFacts,
    Rule,
    TlsFacts,
    Violation,
    is_local_url,
    is_safe_url,
)
from edgepack_contract.loopback import is_loopback
from edgepack_runtime.config import FleetConfig, MqttConfig, OpsConfig, ServeConfig

TOKEN_CHARACTERS = 32
"""Fewer can be guessed over a network."""

FLAGS = {
    "serve.host": "--host",
    "serve.tls_certificate": "--tls-certificate",
    "serve.tls_key": "--tls-key",
    "serve.token_file": "--token-file",
    "ops.host": "--ops-host",
    "keyring": "--keyring",
    "identity.keyring": "--keyring",
}
"""What the settings are called by ``edgepack run --bundle``."""


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """The token that callers must bear: its length in characters, or why there is none."""

    characters: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the gate goes by.

    Attributes:
        serve: Where predictions are served.
        now: Seconds since 1970 UTC.
        ops: Where health and metrics are told.
        mqtt: The broker; None for one bundle without a fleet.
        fleet: The fleet service.
        certificate: What the device shows to the broker, None when it has none.
        files: What settings name, by setting: secrets and the state folder.
        tls: None without ``serve.tls_certificate`` and ``serve.tls_key``.
        token: None without ``serve.token_file``.
        demo: Whether the keyring is a demo's, whose keys are no secret.
        signed: Whether somebody vouches for what is served.
        by_flags: Whether the settings were options of the command, and are named as such.
    """

    serve: ServeConfig
    now: float
    ops: OpsConfig = field(default_factory=OpsConfig)
    mqtt: MqttConfig | None = None
    fleet: FleetConfig = field(default_factory=FleetConfig)
    certificate: str | None = None
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    tls: TlsFacts | None = None
    token: TokenFacts | None = None
    demo: bool = False
    signed: bool = True
    by_flags: bool = False

    @property
    def serves_others(self) -> bool:
        """Whether predictions are served off loopback."""
        return not is_loopback(self.serve.host)

    @property
    def broker_elsewhere(self) -> bool:
        """Whether the broker is another machine."""
        return self.mqtt is not None and not is_loopback(self.mqtt.host)

    @property
    def token_short(self) -> bool:
        """Whether there is a token, and it is too short."""
        token = self.token
        return token is not None and not token.problem and token.characters < TOKEN_CHARACTERS

    def leaving(self) -> list[str]:
        """The settings that reach beyond this machine."""
        found = {
            "serve.host": self.serves_others,
            "ops.host": self.ops.host is not None and not is_loopback(self.ops.host),
            "mqtt.host": self.broker_elsewhere,
            "fleet.url": self.fleet.url is not None and not is_local_url(self.fleet.url),
        }
        return [self.name(key) for key, leaves in found.items() if leaves]

    def exposed(self, key: str, forbidden: int = OTHERS) -> bool:
        """Whether the file of a setting has any of the forbidden permission bits."""
        file = self.files.get(key)
        return file is not None and file.is_open(forbidden)

    def secret_exposed(self, key: str) -> bool:
        """Whether others can read a secret; what root owns, its group may."""
        file = self.files.get(key)
        return file is not None and file.is_told()

    def name(self, key: str) -> str:
        """A setting as the user wrote it."""
        return FLAGS.get(key, key) if self.by_flags else key

    def setting(self, key: str, value: str) -> str:
        """How a setting is given a value."""
        return f"{self.name(key)} {value}" if self.by_flags else f'{key} = "{value}"'


def security_gate(facts: Facts) -> list[Violation]:
    """Everything that keeps a daemon from starting; empty when nothing does. Total."""
    return [
        rule.violation(_told(facts, rule.key), key=facts.name(rule.key))
        for rule in RULES
        if rule.broken(facts)
    ]


RULES: tuple[Rule[Facts], ...] = (
    Rule(
        "serve.tls_certificate",
        lambda f: f.serves_others and f.serve.tls_certificate is None,
        "predictions on {host} would travel in the clear, for everybody on the way to read",
        "set {certificate} and {key}, or {local}",
    ),
    Rule(
        "serve.token_file",
        lambda f: f.serves_others and f.serve.token_file is None,
        "everybody who reaches {host} could ask for predictions",
        "run: openssl rand -hex 32 > FILE && chmod 600 FILE, and set {token_file} to FILE; "
        "or set {local}",
    ),
    Rule(
        "serve.tls_key",
        lambda f: f.serve.tls_certificate is not None and f.serve.tls_key is None,
        "a certificate is of no use without its private key",
        "set {key} to the PEM file with the key of {certificate}",
        waivable=False,
    ),
    Rule(
        "serve.tls_certificate",
        lambda f: f.serve.tls_key is not None and f.serve.tls_certificate is None,
        "a private key is of no use without its certificate",
        "set {certificate} to the PEM file with the certificate of {key}",
        waivable=False,
    ),
    Rule(
        "serve.tls_certificate",
        lambda f: f.tls is not None and f.tls.problem is not None,
        "{tls_problem}",
        "give a PEM certificate (its chain after it), and its unencrypted PEM key as {key}",
        waivable=False,
    ),
    Rule(
        "serve.tls_key",
        lambda f: f.secret_exposed("serve.tls_key"),
        "{path} can be read or written by others (mode {mode}), who could pose as this device",
        "run: chmod 600 {path}",
    ),
    Rule(
        "serve.token_file",
        lambda f: f.token is not None and f.token.problem is not None,
        "{token_problem}",
        "run: openssl rand -hex 32 > {token_path} && chmod 600 {token_path}",
        waivable=False,
    ),
    Rule(
        "serve.token_file",
        lambda f: f.token_short,
        "the token has {characters} characters, and fewer than 32 can be guessed",
        "run: openssl rand -hex 32 > {token_path} && chmod 600 {token_path}",
    ),
    Rule(
        "serve.token_file",
        lambda f: f.secret_exposed("serve.token_file"),
        "{path} can be read or written by others (mode {mode}), who could ask for predictions",
        "run: chmod 600 {path}",
    ),
    Rule(
        "identity.key",
        lambda f: f.exposed("identity.key"),
        "{path} can be read or written by others (mode {mode}), who could pose as this device",
        "run: chmod 600 {path}",
        waivable=False,
    ),
    Rule(
        "identity.mac_key",
        lambda f: f.exposed("identity.mac_key"),
        "{path} can be read or written by others (mode {mode}), who could forge its reports",
        "run: chmod 600 {path}",
    ),
    Rule(
        "download.registries",
        lambda f: f.secret_exposed("download.registries"),
        "{path} can be read or written by others (mode {mode}), who could pull in this device's "
        "name",
        "run: chmod 600 {path}",
    ),
    Rule(
        "state_dir",
        lambda f: f.exposed("state_dir", OTHERS_WRITE),
        "{path} can be written by others (mode {mode}), who could put models there that nobody "
        "signed",
        "run: chmod go-w {path}",
    ),
    Rule(
        "mqtt.tls",
        lambda f: f.broker_elsewhere and f.mqtt is not None and not f.mqtt.tls,
        "the broker {broker} is another machine, and would be spoken to in the clear",
        "set mqtt.tls = true and mqtt.port to its TLS port (8883 as a rule), or use a local bridge "
        'and mqtt.host = "127.0.0.1"',
    ),
    Rule(
        "identity.certificate",
        lambda f: f.broker_elsewhere and f.certificate is None,
        "the broker {broker} is another machine, and cannot know this device without a certificate",
        "have the fleet issue one: edgepack enrol FOLDER; or use a local bridge and mqtt.host = "
        '"127.0.0.1"',
    ),
    Rule(
        "fleet.url",
        lambda f: f.fleet.url is not None and not is_safe_url(f.fleet.url),
        "{url} is neither https nor plain http on this machine",
        "set fleet.url to the fleet's https address",
    ),
    Rule(
        "keyring",
        lambda f: f.serves_others and not f.signed,
        "nobody vouches for this bundle, so it is served to this machine only",
        "give --keyring and --owner, or {local}",
    ),
    Rule(
        "identity.keyring",
        lambda f: f.demo and bool(f.leaving()),
        "the keyring is a demo's, whose keys are no secret, and {leaving} reaches beyond this "
        "machine",
        "make keys with: edgepack keys init FOLDER; or stay on 127.0.0.1",
        waivable=False,
    ),
)


def _told(facts: Facts, key: str) -> dict[str, str]:
    """What the templates of a rule may name."""
    file = facts.files.get(key, FileFacts(""))
    tls, token = facts.tls or TlsFacts(), facts.token or TokenFacts()
    return {
        "host": facts.serve.host,
        "broker": facts.mqtt.host if facts.mqtt else "",
        "url": facts.fleet.url or "",
        "leaving": " and ".join(facts.leaving()),
        "local": facts.setting("serve.host", "127.0.0.1"),
        "certificate": facts.name("serve.tls_certificate"),
        "key": facts.name("serve.tls_key"),
        "token_file": facts.name("serve.token_file"),
        "tls_problem": tls.problem or "",
        "token_path": facts.serve.token_file or "",
        "token_problem": token.problem or "",
        "characters": str(token.characters),
        "path": file.path,
        "mode": f"{file.mode or 0:04o}",
    }

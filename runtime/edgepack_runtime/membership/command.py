"""``python -m edgepack_runtime enrol``: arguments in, a device that is a member of a fleet out."""

from __future__ import annotations

import argparse
import os
import random
import re
import socket
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from edgepack_contract.certificates import certificate_key, read_certificate
from edgepack_contract.clock import TrustedClock
from edgepack_contract.enrolment import JoinString, parse_join_string
from edgepack_contract.errors import ConfigError, EdgepackError
from edgepack_contract.keyring import Keyring, open_keyring
from edgepack_contract.keys import read_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.names import check_id, is_id
from edgepack_contract.small_files import read_configured
from edgepack_runtime.config import RuntimeConfig, load_config
from edgepack_runtime.membership.enrolment import Waiting, Wish, join_fleet
from edgepack_runtime.membership.folder import (
    KEY_FILE,
    STAGED_FOLDER,
    EnrolFolder,
    membership_files,
)
from edgepack_runtime.membership.identity import load_identity
from edgepack_runtime.slot_runtime import now_ms
from edgepack_runtime.storage.fsio import DurableFS

_DURATION = re.compile(r"\A(\d{1,9})([smhd]?)\Z")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_NOT_ID = re.compile(r"[^a-z0-9-]+")
_OTHERS = 0o077


def enrol(arguments: Sequence[str]) -> int:
    """Do what the arguments say.

    Returns:
        0; or 1 when ``--check`` finds something wrong.

    Raises:
        EdgepackError: It cannot be done.
    """
    asked = _parser().parse_args(arguments)
    if asked.check:
        return _check(asked.folder)
    folder, wish = EnrolFolder(DurableFS(), asked.folder), _wish(asked)
    with folder.held(again=asked.again):
        if folder.is_ready:
            folder.finish()
        elif asked.make_key:
            _say(f"key {folder.publish_key().fingerprint}")
            _note(f"announce it with: edgepack device preauthorise {wish.device} --key KEY")
            return 0
        else:
            _join(folder, wish, asked)
    return _check(asked.folder) or _next_step(folder)


def _join(folder: EnrolFolder, wish: Wish, asked: argparse.Namespace) -> None:
    join = _join_string(asked)
    waiting = Waiting(
        seconds=asked.wait,
        monotonic=time.monotonic,
        sleep=time.sleep,
        rng=random.Random(os.urandom(8)),  # noqa: S311 - it spreads devices, it guards nothing
        tell=_note,
    )
    member = join_fleet(join, folder.key(), wish, clock=TrustedClock(now_ms), waiting=waiting)
    folder.keep(membership_files(member, join, port=asked.port))


def _next_step(folder: EnrolFolder) -> int:
    _note(f"start it with: edgepack run --config {folder.config}")
    return 0


def _check(folder: Path) -> int:
    """Say who the device of a folder is, and whether it can be."""
    try:
        config = load_config(folder / "device.toml" if folder.is_dir() else folder, {})
        certificate = _certificate(config)
        for line in membership_words(config, certificate):
            _say(line)
    except (EdgepackError, OSError) as error:
        _note(f"not a member of a fleet: {error}")
        _note_key(folder)
        return 1
    if certificate is not None and certificate.not_valid_after_utc <= _now():
        where = config.fleet.url or "a fleet, of which fleet.url is not set"
        _note(f"the certificate has ended; the daemon renews it when it reaches {where}")
        return 1
    return 0


def membership_words(config: RuntimeConfig, certificate: x509.Certificate | None) -> list[str]:
    """Who a device is, line by line.

    Raises:
        EdgepackError: A file is missing or malformed.
    """
    found, keyring = load_identity(config), _read_keyring(config)
    broker = config.mqtt
    return [
        f"device       {config.device} (tenant {config.tenant})",
        f"owner        {config.identity.owner}",
        f"key          {found.identity.enrolment}",
        f"certificate  {_certificate_words(certificate)}",
        f"keyring      version {keyring.version}, epoch {keyring.epoch}",
        f"broker       {broker.host}:{broker.port} {'with' if broker.tls else 'without'} TLS",
        f"fleet        {config.fleet.url or '-'}",
    ]


def _certificate(config: RuntimeConfig) -> x509.Certificate | None:
    """What the device shows to the broker; None when it needs nothing, on loopback.

    Raises:
        EdgepackError: It cannot be read, or is of another key.
    """
    if config.identity.certificate is None:
        return None
    path = Path(config.identity.certificate)
    raw = read_configured(path, LIMITS.key_file_bytes, code="no-identity")
    certificate = read_certificate(raw)
    key = read_private_key(Path(config.identity.key)).public
    if certificate_key(certificate).fingerprint != key.fingerprint:
        raise ConfigError(
            f"{path} is not for {config.identity.key}; enrol again with --again",
            code="wrong-certificate",
        )
    return certificate


def _certificate_words(certificate: x509.Certificate | None) -> str:
    if certificate is None:
        return "none"
    ends = certificate.not_valid_after_utc
    left = ends - _now()
    said = f"{left.days} days left" if left.days >= 0 else "over"
    return f"until {ends:%Y-%m-%dT%H:%M:%SZ} ({said})"


def _now() -> datetime:
    return datetime.fromtimestamp(TrustedClock(now_ms).now_ms() / 1000, UTC)


def _read_keyring(config: RuntimeConfig) -> Keyring:
    path = Path(config.identity.keyring)
    raw = read_configured(path, LIMITS.keyring_bytes, code="no-identity")
    return open_keyring(raw, owner_fingerprint=config.identity.owner)


def _note_key(folder: Path) -> None:
    for path in (folder / STAGED_FOLDER / KEY_FILE, folder / KEY_FILE):
        if path.is_file():
            _note(f"key {read_private_key(path).public.fingerprint} is there, in {path}")


def _join_string(asked: argparse.Namespace) -> JoinString:
    if asked.join is None:
        return parse_join_string(_read_join(asked.join_file))
    join = parse_join_string(asked.join)
    if not join.is_local:
        raise ConfigError(
            "--join is for fleets on this machine: everybody here can see it. Use --join-file, or "
            "the standard input",
            code="bad-join",
        )
    return join


def _read_join(source: str) -> str:
    most = LIMITS.join_string_bytes
    if source == "-":
        if sys.stdin.isatty():
            _note("paste the join string (`edgepack join-token create` printed it), then Enter:")
        raw = sys.stdin.buffer.readline(most + 1)
    else:
        raw = _read_private(Path(source), most)
    if len(raw) > most:
        raise ConfigError(f"a join string has at most {most} bytes", code="bad-join")
    return raw.decode(errors="replace")


def _read_private(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            raw = stream.read(most + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", code="no-join-file") from error
    if mode & _OTHERS:
        raise ConfigError(
            f"{path} can be read by others (mode {mode & 0o777:04o}), and whoever reads it can "
            f"join; run: chmod 600 {path}",
            code="join-file-mode",
        )
    return raw


def _wish(asked: argparse.Namespace) -> Wish:
    device = asked.device or id_of_host(socket.gethostname())
    return Wish(check_id(device, what="device"), dict(asked.labels))


def id_of_host(name: str) -> str:
    """An id from a host name.

    Raises:
        ConfigError: The name gives none, or one that every machine has.
    """
    device = _NOT_ID.sub("-", name.split(".", maxsplit=1)[0].lower())[:63].strip("-")
    if not is_id(device) or device == "localhost":
        raise ConfigError(
            f"the host name {name[:80]!r} is no name for a device; give one with --device ID",
            code="bad-id",
        )
    return device


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgepack enrol")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--make-key", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--device")
    parser.add_argument("--label", dest="labels", action="append", type=_label, default=[])
    parser.add_argument("--port", type=_port, default=8000)
    parser.add_argument("--join-file", default="-")
    parser.add_argument("--join", help=argparse.SUPPRESS)
    parser.add_argument("--wait", type=duration, default="1h")
    return parser


def duration(text: str) -> float:
    """Seconds, from a text such as ``90``, ``30m`` or ``2h``.

    Raises:
        ArgumentTypeError: It is of another form.
    """
    found = _DURATION.match(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 90, 90s, 30m, 2h or 1d")
    return float(int(found[1]) * _SECONDS[found[2]])


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals or max(len(key), len(value)) > 128:
        raise argparse.ArgumentTypeError(
            f"{text[:80]!r} is not of the form KEY=VALUE with at most 128 characters each"
        )
    return key, value


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, which is 0 to 65535")
    return int(text)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the result


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - for a person who watches

"""What the security gate is told of files and clocks, and how its answer is kept known."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from edgepack_contract.errors import ConfigError, EdgepackError
from edgepack_contract.gate import REMIND_SECONDS, FileFacts, Waiver, day
from edgepack_contract.gate_facts import file_facts, remind, tls_facts
from edgepack_contract.keyring import Keyring, open_keyring
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small
from edgepack_runtime.config import DownloadConfig, OpsConfig, RuntimeConfig, ServeConfig
from edgepack_runtime.security import Facts, TokenFacts
from edgepack_runtime.serving.access import read_token

logger = logging.getLogger(__name__)


def device_facts(config: RuntimeConfig) -> Facts:
    """What there is to know of a device daemon's configuration. Raises nothing."""
    identity = config.identity
    named = {
        "identity.key": identity.key,
        "identity.mac_key": identity.mac_key,
        "state_dir": config.state_dir,
    }
    facts = _listener_facts(config.serve, config.ops, named)
    passwords = _passwords(config.download)
    return dataclasses.replace(
        facts,
        mqtt=config.mqtt,
        fleet=config.fleet,
        files={**facts.files, **passwords},
        certificate=identity.certificate,
        demo=_is_demo(Path(identity.keyring), identity.owner),
    )


def bundle_facts(serve: ServeConfig, ops: OpsConfig, keyring: Keyring | None) -> Facts:
    """What there is to know when one bundle is served without a fleet. Raises nothing."""
    demo = keyring is not None and keyring.demo
    return dataclasses.replace(
        _listener_facts(serve, ops, {}), demo=demo, signed=keyring is not None, by_flags=True
    )


@contextlib.contextmanager
def reminding(waiver: Waiver | None) -> Iterator[None]:
    """Say what was waived, at once and every hour, until the block ends."""
    task = asyncio.create_task(_remind(waiver)) if waiver is not None else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()


def warn_of_expiry(facts: Facts) -> None:
    """Say that callers will refuse the listener's certificate.

    It is no reason not to start: a clock that is wrong, or a certificate that nobody renewed, must
    not end what is served to this machine.
    """
    if facts.tls is not None and facts.tls.expires <= facts.now:
        logger.warning(
            "the certificate %s expired on %s, so callers will refuse it: put a new one there, and "
            "send SIGHUP",
            facts.serve.tls_certificate, day(facts.tls.expires),
            extra={"event": "certificate_expired"},
        )  # fmt: skip


async def _remind(waiver: Waiver) -> None:
    while True:
        remind(waiver)
        await asyncio.sleep(REMIND_SECONDS)


def _listener_facts(serve: ServeConfig, ops: OpsConfig, named: dict[str, str]) -> Facts:
    secrets = {"serve.tls_key": serve.tls_key, "serve.token_file": serve.token_file}
    named = named | {key: path for key, path in secrets.items() if path is not None}
    return Facts(
        serve=serve,
        ops=ops,
        now=time.time(),
        files={key: file_facts(path) for key, path in named.items()},
        tls=tls_facts(serve.tls_certificate, serve.tls_key),
        token=_token(Path(serve.token_file)) if serve.token_file is not None else None,
    )


def _passwords(download: DownloadConfig) -> dict[str, FileFacts]:
    """The password file that others can read, or else any, for the one row of the table."""
    paths = [one.password_file for one in download.registries if one.password_file is not None]
    found = sorted((file_facts(path) for path in paths), key=FileFacts.is_told)
    return {"download.registries": found[-1]} if found else {}


def _token(path: Path) -> TokenFacts:
    try:
        return TokenFacts(characters=len(read_token(path)))
    except ConfigError as error:
        return TokenFacts(problem=str(error))


def _is_demo(path: Path, owner: str) -> bool:
    try:
        raw = read_small(path, LIMITS.keyring_bytes)
        return open_keyring(raw, owner_fingerprint=owner).demo
    except (OSError, EdgepackError):
        # a keyring that cannot be opened ends the start by itself, with its own words
        return False

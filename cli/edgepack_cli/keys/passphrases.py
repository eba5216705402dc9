"""Passphrases of key files: from a file that the environment names, or asked for; never in argv."""

from __future__ import annotations

import os
from pathlib import Path

import click

from edgepack_cli.errors import CommandError
from edgepack_contract.keys import PrivateKey, read_private_key
from edgepack_contract.limits import LIMITS

VARIABLE = "EDGEPACK_PASSPHRASE_FILE"


def read_key(path: Path) -> PrivateKey:
    """Read a signing key, with its passphrase when it has one."""
    return read_private_key(path, read_key_passphrase(path))


def read_key_passphrase(path: Path) -> bytes | None:
    """The passphrase of a key file; None when it has none."""
    with path.open("rb") as stream:
        encrypted = b"ENCRYPTED" in stream.read(LIMITS.key_file_bytes)
    if not encrypted:
        return None
    return _from_file() or _ask(f"Passphrase of {path}", twice=False)


def new_passphrase(what: str) -> bytes:
    """The passphrase that ``what`` shall get."""
    return _from_file() or ask_new_passphrase(what)


def ask_new_passphrase(what: str) -> bytes:
    """Ask for the passphrase that ``what`` shall get, twice."""
    return _ask(f"Passphrase for {what}", twice=True)


def _ask(question: str, *, twice: bool) -> bytes:
    text: str = click.prompt(question, hide_input=True, confirmation_prompt=twice, err=True)
    return text.encode()


def _from_file() -> bytes | None:
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    path = Path(name)
    with path.open("rb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
        passphrase = stream.read(LIMITS.key_file_bytes).rstrip(b"\r\n")
    if mode & 0o077:
        raise CommandError(
            f"{path}, which {VARIABLE} names, can be read by others (mode {mode & 0o777:04o}); "
            f"run: chmod 600 {path}",
            code="passphrase-mode",
        )
    if not passphrase:
        raise CommandError(
            f"{path}, which {VARIABLE} names, is empty; write the passphrase into it",
            code="passphrase",
        )
    return passphrase

"""The two options that say whom a command trusts: a keyring and the pinned owner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgepack_contract.keyring import Keyring, open_keyring
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
F = TypeVar("F", bound=Callable[..., Any])


def trust_options(*, required: bool) -> Callable[[F], F]:
    """Add ``--keyring`` and ``--owner`` to a command."""

    def add(function: F) -> F:
        words = "" if required else "; without it no signature is checked"
        function = click.option(
            "--owner", required=required, help="Pinned fingerprint of the owner key."
        )(function)
        return click.option(
            "--keyring", type=FILE, required=required, help=f"Who may sign{words}."
        )(function)

    return add


def read_keyring(keyring: Path | None, owner: str | None) -> Keyring | None:
    """The verified keyring, or None when neither option was given.

    Raises:
        click.UsageError: Only one of the two was given.
        DocumentError: The owner did not sign the keyring.
    """
    if (keyring is None) != (owner is None):
        raise click.UsageError("--keyring and --owner belong together")
    if keyring is None or owner is None:
        return None
    raw = read_small(keyring, LIMITS.keyring_bytes)
    return open_keyring(raw, owner_fingerprint=owner)

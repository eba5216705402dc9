"""``edgepack login`` and ``edgepack logout``: be known to a fleet until further notice."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from edgepack_cli.client import FleetClient, fetch_keyring
from edgepack_cli.contexts import (
    Contexts,
    Site,
    check_name,
    check_token,
    check_url,
    contexts_path,
    name_of,
    read_contexts,
    write_contexts,
)
from edgepack_cli.errors import CommandError, Exit
from edgepack_cli.main import CONTEXT_VARIABLE
from edgepack_cli.output import note, say
from edgepack_cli.trust import FILE
from edgepack_contract.tls import read_authorities

MAX_TOKEN = 2048


@click.command()
@click.argument("url")
@click.option("--context", "name", help="What to call this fleet.  [default: its host]")
@click.option("--owner", help="Fingerprint of the fleet's owner, from who runs the fleet.")
@click.option("--ca", type=FILE, help="Certificates of who vouches for the service, instead.")
def command(url: str, *, name: str | None, owner: str | None, ca: Path | None) -> None:
    """Log in to the fleet service at URL with a token, and send commands there from now on.

    The token is asked for, or read from standard input. With --owner the service is believed by
    the keyring that the owner has signed; a public certificate needs neither option.

    Example: edgepack login https://fleet.example --owner 3f9a...
    """
    if owner is not None and ca is not None:
        raise click.UsageError("give --owner or --ca, not both")
    address = check_url(url, what="URL")
    path = contexts_path(os.environ)
    contexts = read_contexts(path)
    name = check_name(name or name_of(address))
    site = _site(address, contexts.contexts.get(name), owner, ca)
    token = check_token(_token())
    me = FleetClient(site.url, token, site.authorities, site.owner).get("/me")
    write_contexts(path, contexts.having(name, msgspec.structs.replace(site, token=token)))
    say(f"logged in to {name} ({address}) as {me['name']}: {_rights(me)}")
    if os.environ.get("EDGEPACK_FLEET"):
        note("EDGEPACK_FLEET is set and goes before this; unset it to use this login")


@click.command()
@click.option("--context", "name", help="Which fleet.  [default: the current one]")
def logout(name: str | None) -> None:
    """Forget the token of a fleet; its address and owner are kept for the next login.

    The token itself stays valid until it ends: `edgepack token revoke` ends it now.

    Example: edgepack logout
    """
    path = contexts_path(os.environ)
    contexts = read_contexts(path)
    name = name or os.environ.get(CONTEXT_VARIABLE) or contexts.current
    if name is None:
        raise CommandError("you are not logged in anywhere", exit_code=Exit.USAGE)
    site = msgspec.structs.replace(contexts.find(name), token=None)
    kept = Contexts(current=contexts.current, contexts=contexts.contexts | {name: site})
    write_contexts(path, kept)
    say(f"logged out of {name}")


def _site(url: str, before: Site | None, owner: str | None, ca: Path | None) -> Site:
    """Whom to believe: as told, else as at the last login to this address."""
    known = before if before is not None and before.url == url else Site(url=url)
    if ca is not None:
        return Site(url=url, authorities=tuple(read_authorities(ca)))
    owner = owner or known.owner
    if owner is None:
        return Site(url=url, authorities=known.authorities)
    keyring = fetch_keyring(url, owner)
    return Site(url=url, owner=owner, authorities=tuple(keyring.authorities))


def _token() -> str:
    if sys.stdin.isatty():
        asked: str = click.prompt("Token", hide_input=True, err=True)
        return asked
    return sys.stdin.readline(MAX_TOKEN)


def _rights(me: dict[str, Any]) -> str:
    ends = me.get("expires_ms")
    limits = [
        f"{what} {', '.join(me[what])}" for what in ("bundles", "groups") if me[what] != ["*"]
    ]
    until = "" if ends is None else f", until {datetime.fromtimestamp(ends / 1000, UTC):%Y-%m-%d}"
    return f"{me['role']}{until}" + (f", limited to {' and '.join(limits)}" if limits else "")

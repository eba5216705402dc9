"""``edgepack oci``: bundles in any OCI registry."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgepack_cli.errors import CommandError
from edgepack_cli.output import bytes_text, emit_json, note, say
from edgepack_cli.trust import FILE, read_keyring, trust_options
from edgepack_packager.registry.carrying import pull_bundle, push_bundle
from edgepack_packager.registry.reference import Access, Reference
from edgepack_packager.registry.repository import RegistryRepository

F = TypeVar("F", bound=Callable[..., Any])
_PASSWORD_CHARACTERS = 64 * 1024


def access_options(function: F) -> F:
    """Add the options that say how a registry is reached."""
    for option in (
        click.option("--ca", "authority", type=FILE, help="The authority of its certificate, PEM."),
        click.option(
            "--plain-http/--tls", default=None, help="Without TLS; by default on loopback alone."
        ),
        click.option("--password-stdin", is_flag=True, help="Read the password from stdin."),
        click.option("--username", help="Log in; default: what docker or skopeo login stored."),
    ):
        function = option(function)
    return function


@click.group()
def command() -> None:
    """Push bundles to an OCI registry, and pull them, with signature and evidence."""


@command.command()
@click.argument("bundle", type=FILE)
@click.argument("reference", metavar="REGISTRY/REPOSITORY[:TAG]")
@click.option("--overwrite", is_flag=True, help="Take the tag from another bundle.")
@click.option("--mount-from", metavar="REPOSITORY", help="Of this registry, that may have blobs.")
@access_options
@trust_options(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def push(
    bundle: Path, reference: str, *, overwrite: bool, mount_from: str | None,
    username: str | None, password_stdin: bool, plain_http: bool | None, authority: Path | None,
    keyring: Path | None, owner: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Send BUNDLE; what is there is not sent again. Without TAG its version is the tag.

    Example: edgepack oci push churn-1.4.0.edgepack registry.example/models/churn
    """
    trusted = read_keyring(keyring, owner)
    access = _access(username, authority, plain_http=plain_http, password_stdin=password_stdin)
    with RegistryRepository(Reference.parse(reference), access) as repository:
        done = push_bundle(
            bundle, repository, keyring=trusted, overwrite=overwrite, mount=mount_from, tell=_tell
        )
    if as_json:
        emit_json(done)
        return
    say(done.reference)
    note(f"{bytes_text(done.uploaded)} sent, {bytes_text(done.skipped)} were there")


@command.command()
@click.argument("reference", metavar="REGISTRY/REPOSITORY:TAG|@DIGEST")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="The bundle file to write.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@access_options
@trust_options(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull(
    reference: str, *, output: Path, overwrite: bool,
    username: str | None, password_stdin: bool, plain_http: bool | None, authority: Path | None,
    keyring: Path | None, owner: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Fetch a bundle into a file; every byte is proven while it comes.

    Example: edgepack oci pull registry.example/models/churn:1.4.0 -o churn-1.4.0.edgepack
    """
    if output.exists() and not overwrite:
        raise CommandError(f"{output} is there already; give --overwrite", code="output-exists")
    trusted = read_keyring(keyring, owner)
    access = _access(username, authority, plain_http=plain_http, password_stdin=password_stdin)
    with RegistryRepository(Reference.parse(reference), access) as repository:
        digest = pull_bundle(repository, output, keyring=trusted)
    if as_json:
        emit_json({"path": output, "digest": digest})
    else:
        say(f"{output} {digest}")


def _access(
    username: str | None, authority: Path | None, *, plain_http: bool | None, password_stdin: bool
) -> Access:
    if password_stdin != (username is not None):
        raise click.UsageError("--username and --password-stdin belong together")
    if plain_http and authority is not None:
        raise click.UsageError("--ca is of no use without TLS")
    password = None
    if password_stdin:
        password = sys.stdin.read(_PASSWORD_CHARACTERS).rstrip("\r\n")
    plain = False if authority is not None else plain_http
    return Access(username, password, plain, authority)


def _tell(words: str) -> None:
    if sys.stderr.isatty():
        note(f"sending {words}")

"""``edgepack keys``: who may sign what."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from edgepack_cli.errors import CommandError
from edgepack_cli.output import emit_json, note, say
from edgepack_contract.keyring import Publisher, make_keyring, open_keyring
from edgepack_contract.keys import PrivateKey, read_private_key, read_public_key, write_private_key
from edgepack_contract.limits import LIMITS

ROLES = ("owner", "publisher", "fleet")
MADE = [*(f"{role}.{kind}" for role in ROLES for kind in ("key", "pub")), "keyring.json"]


@click.group()
def command() -> None:
    """Make and show the owner, publisher and fleet keys.

    The owner key says who may sign, a publisher key says that a bundle is genuine, a fleet key says
    what a device should run now.
    """


@command.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--names", "patterns", multiple=True, default=("*",), show_default=True,
    help="Bundle names that the publisher may sign; may be given more than once.",
)  # fmt: skip
@click.option(
    "--passphrase/--no-passphrase", default=True, show_default=True,
    help="Encrypt the owner and publisher keys with a passphrase that is asked for.",
)  # fmt: skip
def init(folder: Path, patterns: tuple[str, ...], *, passphrase: bool) -> None:
    """Make all three keys and the keyring in FOLDER.

    Example: edgepack keys init keys
    """
    check_new(folder / name for name in MADE)
    secret = _ask_passphrase() if passphrase else None
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = {role: PrivateKey.generate() for role in ROLES}
    for role, key in keys.items():
        # The fleet service must start without a person, so its key cannot have a passphrase.
        write_private_key(folder / f"{role}.key", key, None if role == "fleet" else secret)
        (folder / f"{role}.pub").write_bytes(key.public.pem)
    publisher = Publisher(key=keys["publisher"].public.pem.decode(), names=list(patterns))
    keyring = make_keyring(
        keys["owner"], version=1, epoch=1, publishers=[publisher], fleets=[keys["fleet"].public]
    )
    (folder / "keyring.json").write_bytes(keyring)
    say(f"owner {keys['owner'].public.fingerprint}")
    note(
        f"{folder}/owner.key: keep it offline, you need it only to change the keyring\n"
        f"{folder}/publisher.key: keep it where bundles are built\n"
        f"{folder}/fleet.key, keyring.json: give both to the fleet service\n"
        "devices pin the owner's fingerprint, which is printed above"
    )


@command.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(folder: Path, *, as_json: bool) -> None:
    """Show the keys of FOLDER and what its keyring allows.

    Example: edgepack keys show keys
    """
    owner = read_public_key(folder / "owner.pub")
    raw = (folder / "keyring.json").read_bytes()[: LIMITS.keyring_bytes + 1]
    keyring = open_keyring(raw, owner_fingerprint=owner.fingerprint)
    if as_json:
        emit_json({"owner": owner.fingerprint, "keyring": keyring})
        return
    say(f"owner      {owner.fingerprint}")
    for fingerprint, (_, publisher) in keyring.publisher_keys().items():
        say(f"publisher  {fingerprint}  {publisher.status}  signs {', '.join(publisher.names)}")
    for fingerprint in keyring.fleet_keys():
        say(f"fleet      {fingerprint}")
    say(f"keyring    version {keyring.version}, epoch {keyring.epoch}")


def check_new(paths: Iterable[Path]) -> None:
    """Refuse to begin when one of the files to be made is there already.

    Raises:
        CommandError: One is.
    """
    for path in paths:
        if path.exists():
            raise CommandError(
                f"{path} exists; a key is never overwritten: choose another folder",
                code="key-exists",
            )


def read_key(path: Path) -> PrivateKey:
    """Read a signing key, asking for its passphrase when it has one."""
    return read_private_key(path, read_key_passphrase(path))


def read_key_passphrase(path: Path) -> bytes | None:
    """Ask for the passphrase of a key file; None when it has none."""
    with path.open("rb") as stream:
        encrypted = b"ENCRYPTED" in stream.read(LIMITS.key_file_bytes)
    return _ask_existing(path) if encrypted else None


def _ask_passphrase() -> bytes:
    text: str = click.prompt(
        "Passphrase for the owner and publisher keys",
        hide_input=True, confirmation_prompt=True, err=True,
    )  # fmt: skip
    return text.encode()


def _ask_existing(path: Path) -> bytes:
    text: str = click.prompt(f"Passphrase of {path}", hide_input=True, err=True)
    return text.encode()

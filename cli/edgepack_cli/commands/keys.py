"""``edgepack keys``: who may sign what."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack_cli.keys.ceremony import command as keyring_command
from edgepack_cli.keys.changing import revoke, rotate
from edgepack_cli.keys.folder import (
    KEYRING,
    PIN,
    KeyFolder,
    NewKey,
    check_new,
    replace_file,
    write_file,
)
from edgepack_cli.keys.making import ROLES, make_key, now_ms, place_words
from edgepack_cli.keys.passphrases import ask_new_passphrase, new_passphrase, read_key
from edgepack_cli.keys.transitions import authorities_of
from edgepack_cli.keys.words import describe
from edgepack_cli.output import emit_json, note, say
from edgepack_cli.trust import FILE, read_keyring
from edgepack_contract.certificates import read_certificate
from edgepack_contract.keyring import (
    MAX_OWNERS,
    Keyring,
    Publisher,
    make_keyring,
    owner_fingerprint,
)
from edgepack_contract.keys import PrivateKey


@click.group()
def command() -> None:
    """Make, show and change the keys of a fleet.

    Owner keys say who may sign, a publisher key says that a bundle is genuine, a fleet key says
    what a device should run now, and the authority vouches for who connects. All of it is in the
    keyring, which the owners sign. docs/keys.md says what to do when a key is lost or stolen.

    Passphrases are asked for, or read from the file that EDGEPACK_PASSPHRASE_FILE names.
    """


@command.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--names", "patterns", multiple=True, default=("*",), show_default=True,
    help="Bundle names that the publisher may sign; may be given more than once.",
)  # fmt: skip
@click.option(
    "--owners", type=click.IntRange(1, MAX_OWNERS), default=1, show_default=True,
    help="How many owner keys to make.",
)  # fmt: skip
@click.option(
    "--threshold", type=click.IntRange(1, MAX_OWNERS), default=1, show_default=True,
    help="How many of the owner keys must sign a keyring.",
)  # fmt: skip
@click.option(
    "--passphrase/--no-passphrase", default=True, show_default=True,
    help="Encrypt the owner and publisher keys with a passphrase.",
)  # fmt: skip
@click.option("--demo", is_flag=True, help="For trying only: accepted on loopback, no passphrase.")
def init(
    folder: Path, patterns: tuple[str, ...], *, owners: int, threshold: int, passphrase: bool,
    demo: bool,
) -> None:  # fmt: skip
    """Make all keys and the keyring in FOLDER.

    Example: edgepack keys init keys --owners 3 --threshold 2
    """
    if threshold > owners:
        raise click.UsageError(f"--threshold {threshold} is more than --owners {owners}")
    numbers = [f"owner-{number}" for number in range(1, owners + 1)]
    names = {role: [role] for role in ROLES} | ({"owner": numbers} if owners > 1 else {})
    made = [f"{name}.{kind}" for role in ROLES for name in names[role] for kind in _kinds(role)]
    check_new(folder / name for name in [*made, KEYRING, PIN])
    secret = new_passphrase("the owner and publisher keys") if passphrase and not demo else None
    keys = {role: [make_key(role, name, secret) for name in names[role]] for role in ROLES}
    raw = _first_keyring(keys, list(patterns), threshold=threshold, demo=demo)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in (one for role in ROLES for one in keys[role]):
        one.write(folder)
    owner = owner_fingerprint([one.key.public for one in keys["owner"]], threshold)
    write_file(folder / PIN, f"{owner}\n".encode())
    write_file(folder / KEYRING, raw)
    say(f"owner {owner}")
    note("\n".join(place_words(folder, role, names[role]) for role in ROLES))
    note(_closing_words(folder, demo=demo, owners=owners, threshold=threshold))


@command.command()
@click.argument(
    "folder", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False
)
@click.option("--keyring", "file", type=FILE, help="A keyring file, instead of FOLDER.")
@click.option("--owner", help="With --keyring: the pinned fingerprint of the owner.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(folder: Path | None, *, file: Path | None, owner: str | None, as_json: bool) -> None:
    """Show what the keyring of FOLDER, or of a file, allows.

    Example: edgepack keys show keys
    """
    names: dict[str, str] = {}
    if (folder is None) == (file is None):
        raise click.UsageError("give either FOLDER, or --keyring and --owner")
    keyring = read_keyring(file, owner)
    if folder is not None:
        keyring, names = KeyFolder(folder).keyring(), KeyFolder(folder).names()
    assert keyring is not None  # noqa: S101 - one of the two was given
    if as_json:
        emit_json(_as_json(keyring, names))
        return
    for line in describe(keyring, names):
        say(line)


@command.command("new")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--passphrase/--no-passphrase", default=True, show_default=True,
    help="Encrypt the key with a passphrase.",
)  # fmt: skip
def new(file: Path, *, passphrase: bool) -> None:
    """Make one key, FILE.key, and its public half, FILE.pub.

    For an owner or a publisher on a machine of their own: only FILE.pub leaves it, and
    `edgepack keys keyring prepare` adds it to the keyring.

    Example: edgepack keys new owner-anna.key
    """
    if file.suffix != ".key":
        raise click.UsageError("the name of a key's file ends with .key")
    check_new([file, file.with_suffix(".pub")])
    secret = new_passphrase(str(file)) if passphrase else None
    one = NewKey(file.stem, PrivateKey.generate(), secret)
    one.write(file.parent)
    say(one.key.public.fingerprint)
    note(f"keep {file} here; give {file.with_suffix('.pub')} to who prepares the keyring")


@command.command()
@click.argument("file", type=FILE)
@click.option("--remove", is_flag=True, help="Leave the key without a passphrase.")
def passphrase(file: Path, *, remove: bool) -> None:
    """Change the passphrase of the private key in FILE.

    The new one is always asked for; EDGEPACK_PASSPHRASE_FILE holds the old one.

    Example: edgepack keys passphrase keys/owner.key
    """
    key = read_key(file)
    secret = None if remove else ask_new_passphrase(str(file))
    replace_file(file, key.pem(secret), mode=0o600)
    note(f"{file} has {'no' if remove else 'a new'} passphrase; copies of it have the old one")


command.add_command(rotate)
command.add_command(revoke)
command.add_command(keyring_command, "keyring")


def _kinds(role: str) -> tuple[str, str]:
    return ("key", "pem") if role == "authority" else ("key", "pub")


def _first_keyring(
    keys: dict[str, list[NewKey]], patterns: list[str], *, threshold: int, demo: bool
) -> bytes:
    (publisher,), (fleet,), (authority,) = keys["publisher"], keys["fleet"], keys["authority"]
    return make_keyring(
        *(one.key for one in keys["owner"]),
        version=1,
        epoch=1,
        publishers=[Publisher(key=publisher.key.public.pem.decode(), names=patterns)],
        fleets=[fleet.key.public],
        threshold=threshold,
        authorities=[(authority.certificate or b"").decode()],
        issued=now_ms(),
        demo=demo,
    )


def _closing_words(folder: Path, *, demo: bool, owners: int, threshold: int) -> str:
    words = [
        f"{folder / KEYRING}: give it to the fleet service; every device gets it too",
        "devices pin the owner's fingerprint, which is printed first: write it down",
    ]
    if owners > 1:
        words.append(
            f"{threshold} of the {owners} owner keys must sign: give each to another person, who "
            "chooses a passphrase with `edgepack keys passphrase`, and remove it here"
        )
    if demo:
        words.append("these keys are for a demo: nothing off loopback accepts them")
    words.append("docs/keys.md has what to do, command by command, when a key is lost or stolen")
    return "\n".join(words)


def _as_json(keyring: Keyring, names: dict[str, str]) -> dict[str, object]:
    authorities = {
        key: f"{read_certificate(pem.encode()).not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
        for key, pem in authorities_of(keyring).items()
    }
    return {
        "owner": keyring.owner_fingerprint,
        "keyring": keyring,
        "owners": list(keyring.owner_keys()),
        "publishers": {key: one.status for key, (_, one) in keyring.publisher_keys().items()},
        "fleets": list(keyring.fleet_keys()),
        "authorities": authorities,
        "names": names,
    }

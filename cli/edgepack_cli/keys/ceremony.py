"""``edgepack keys keyring``: a keyring that owners on several machines sign, step by step."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack_cli.errors import CommandError
from edgepack_cli.keys import transitions
from edgepack_cli.keys.folder import (
    KeyFolder,
    authority_in,
    public_key_of,
    replace_file,
)
from edgepack_cli.keys.making import now_ms
from edgepack_cli.keys.passphrases import read_key
from edgepack_cli.keys.pushing import push, status
from edgepack_cli.keys.settling import in_force, missing_words
from edgepack_cli.keys.words import changes, describe
from edgepack_cli.output import emit_json, note, say
from edgepack_cli.trust import FILE, read_keyring
from edgepack_contract.dsse import countersign_envelope
from edgepack_contract.keyring import (
    Keyring,
    claimed_keyring,
    keyring_lines,
    open_keyring,
    sign_keyring,
)
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.group()
def command() -> None:
    """Prepare, sign, finish, check and push a keyring.

    One person prepares a proposal, owners sign it on machines of their own, and it is finished
    where it was prepared. Until then the keyring in force stays in force.
    """


command.add_command(push)
command.add_command(status)


@command.command()
@click.argument("folder", type=FOLDER)
@click.option("--add-owner", "owners", type=FILE, multiple=True, help="A .pub file; repeatable.")
@click.option("--drop-owner", "dropped", multiple=True, help="Name or fingerprint; repeatable.")
@click.option("--threshold", type=int, help="How many owner keys must sign from then on.")
@click.option("--add-publisher", "publishers", type=FILE, multiple=True, help="A .pub file.")
@click.option(
    "--names", "patterns", multiple=True, default=("*",), show_default=True,
    help="Bundle names that added publishers may sign; repeatable.",
)  # fmt: skip
@click.option("--add-fleet", "fleets", type=FILE, multiple=True, help="A .pub file.")
@click.option("--add-authority", "authorities", type=FILE, multiple=True, help="A .pem file.")
@click.option("--new-epoch", is_flag=True, help="Undo what a stolen fleet key told devices.")
def prepare(
    folder: Path, *, owners: tuple[Path, ...], dropped: tuple[str, ...], threshold: int | None,
    publishers: tuple[Path, ...], patterns: tuple[str, ...], fleets: tuple[Path, ...],
    authorities: tuple[Path, ...], new_epoch: bool,
) -> None:  # fmt: skip
    """Write a proposal for the next keyring of FOLDER, for owners to sign.

    `edgepack keys rotate` and `revoke` do it by themselves when the owner keys are elsewhere; this
    is for everything else, such as keys that were made on other machines.

    Example: edgepack keys keyring prepare keys --drop-owner owner-2 --add-owner anna.pub
    """
    keys = KeyFolder(folder)
    keys.check_no_proposal()
    before = keys.keyring()
    gone = {keys.find(one, before.owner_keys(), what="owner key") for one in dropped}
    add = [public_key_of(path) for path in owners]
    after = transitions.change_owners(before, add=add, remove=gone, threshold=threshold)
    for path in publishers:
        after = transitions.add_publisher(after, public_key_of(path), patterns)
    for path in fleets:
        after = transitions.add_fleet(after, public_key_of(path))
    for path in authorities:
        after = transitions.add_authority(after, authority_in(path))
    if new_epoch:
        after = transitions.new_epoch(after)
    after = transitions.follow(before, after, now_ms=now_ms())
    keys.propose(sign_keyring(after, []))
    names = keys.names()
    for line in changes(before, after, names):
        note(line)
    say(f"proposed keyring version {after.version}")
    note(missing_words(folder, before, after, signed=set(), names=names))


@command.command()
@click.argument("proposal", type=FILE)
@click.option("--key", type=FILE, required=True, help="The owner's private key.")
@click.option("--owner", required=True, help="The pinned fingerprint of the owner until now.")
@click.option("--yes", is_flag=True, help="Do not ask whether to sign.")
def sign(proposal: Path, *, key: Path, owner: str, yes: bool) -> None:
    """Show what a PROPOSAL changes, and sign it with one owner key.

    Take --owner from your own notes, never from who sent the proposal: a keyring that is made up
    could hide what is really new.

    Example: edgepack keys keyring sign keyring.proposed --key owner-2.key --owner 3f9a...
    """
    lines, before, after = _open_proposal(proposal, owner)
    _check_date(after)
    for line in changes(before, after, {}):
        note(line)
    note("the whole keyring would then be:")
    for line in describe(after, {}):
        note(line)
    if not yes:
        click.confirm("Sign this?", abort=True, err=True)
    signer = read_key(key)
    if signer.public.fingerprint not in {*before.owner_keys(), *after.owner_keys()}:
        raise CommandError(
            f"{key} ({signer.public.fingerprint[:16]}) is an owner neither of the keyring in force "
            "nor of the proposal; its signature would not count",
            code="not-an-owner",
        )
    most = LIMITS.keyring_bytes
    lines[-1] = countersign_envelope(lines[-1], signer, what="proposal", max_bytes=most)
    replace_file(proposal, b"\n".join(lines) + b"\n")
    say(f"signed by {signer.public.fingerprint}")
    _, signed = claimed_keyring(lines[-1])
    words = missing_words(proposal.parent, before, after, signed=signed, names={})
    note(words or "enough owners have signed; take the proposal back, and there run: edgepack "
         "keys keyring finish FOLDER")  # fmt: skip


@command.command()
@click.argument("folder", type=FOLDER)
@click.argument("proposal", type=FILE, required=False)
def finish(folder: Path, *, proposal: Path | None) -> None:
    """Put a signed PROPOSAL (by default the one in FOLDER) in force.

    Example: edgepack keys keyring finish keys
    """
    keys = KeyFolder(folder)
    path = proposal or keys.proposal
    if not path.exists():
        raise CommandError(
            f"no proposal waits in {folder}; make one with `edgepack keys rotate`, `revoke` or "
            "`keyring prepare`",
            code="no-proposal",
        )
    lines, before, after = _open_proposal(path, keys.pin())
    if before != keys.keyring():
        raise CommandError(
            f"{path} was prepared for keyring version {before.version}, but version "
            f"{keys.keyring().version} is in force; remove it and begin anew",
            code="old-proposal",
        )
    _, signed = claimed_keyring(lines[-1])
    names = keys.names()
    if missing := missing_words(folder, before, after, signed=signed, names=names):
        raise CommandError(f"not enough owners have signed {path}\n{missing}", code="unsigned")
    for line in changes(before, after, names):
        note(line)
    in_force(keys, before, lines[-1])
    keys.proposal.unlink(missing_ok=True)


@command.command()
@click.argument("file", type=FILE)
@click.option("--owner", required=True, help="Pinned fingerprint of the owner.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(file: Path, *, owner: str, as_json: bool) -> None:
    """Say whether a device that pinned OWNER would accept the keyring in FILE; 6 when not.

    Example: edgepack keys keyring check keyring.json --owner 3f9a...
    """
    keyring = read_keyring(file, owner)
    assert keyring is not None  # noqa: S101 - both were given
    if as_json:
        emit_json({"version": keyring.version, "epoch": keyring.epoch, "issued": keyring.issued,
                   "owner": keyring.owner_fingerprint})  # fmt: skip
        return
    for line in describe(keyring, {}):
        say(line)


def _open_proposal(path: Path, owner: str) -> tuple[list[bytes], Keyring, Keyring]:
    """The lines of a proposal, the keyring in force, which is verified, and what is proposed."""
    lines = keyring_lines(read_small(path, LIMITS.keyring_bytes))
    if len(lines) < 2:
        raise CommandError(
            f"{path} is not a proposal: it has a keyring, but none that would follow it",
            code="no-proposal",
        )
    before = open_keyring(b"\n".join(lines[:-1]), owner_fingerprint=owner)
    after, _ = claimed_keyring(lines[-1])
    return lines, before, after


def _check_date(after: Keyring) -> None:
    if after.issued > now_ms() + transitions.CLOCKS_DIFFER_MS:
        raise CommandError(
            "the proposal is dated more than a day in the future; devices would take that date for "
            "the least that it can be: check both clocks, and prepare it anew",
            code="future-dated",
        )

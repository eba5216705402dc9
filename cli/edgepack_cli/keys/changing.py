"""``edgepack keys rotate`` and ``revoke``: one step from a keyring to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click

from edgepack_cli.errors import CommandError
from edgepack_cli.keys import transitions
from edgepack_cli.keys.folder import KeyFolder, NewKey
from edgepack_cli.keys.making import PROTECTED, ROLES, make_key, now_ms, place_words
from edgepack_cli.keys.passphrases import new_passphrase
from edgepack_cli.keys.settling import settle
from edgepack_cli.output import note
from edgepack_cli.trust import FILE
from edgepack_contract.bundle import BundleFile, verify_bundle_file
from edgepack_contract.keyring import Keyring, KeyStatus

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)

ROTATED = {
    "owner": "the former owner key is not needed any more, once the new keyring is in force",
    "publisher": "sign with the new key from now on; what the former key signed can no longer be "
    "newly installed, apart from the bundles it stays good for, until it is signed again "
    "(edgepack sign); what runs, runs on",
    "fleet": "both fleet keys count now: name the new file beside the former one at the service "
    "(`fleet` of [keys] takes a list), restart it, push the keyring, then take the right from the "
    "former one: edgepack keys revoke fleet",
    "authority": "both authorities count now: name the new files beside the former ones at the "
    "service (`authority` and `authority_certificate` of [keys] take lists), push the keyring, run "
    "edgepack fleet mqtt-config, reload the broker, restart the service, and revoke the former one "
    "when every device has a certificate of the new one: edgepack keys revoke authority",
}
REVOKED = {
    "owner": "this key cannot sign keyrings any more, for devices that have the new keyring",
    "publisher": "no device that has the new keyring installs anything that this key signed, nor "
    "returns to it; what runs, runs on; sign good bundles again with another key",
    "fleet": "devices that have the new keyring refuse what this key signs (revoked-key); the "
    "service must have another fleet key now, or nothing can be changed",
    "authority": "devices that have the new keyring end TLS with whatever this authority vouched "
    "for; the service and the broker must have certificates of another one now",
    "digest": "no device that has the new keyring installs this bundle or returns to it; where it "
    "runs, it runs on until a rollout replaces it",
}


@click.command()
@click.argument("role", type=click.Choice(ROLES))
@click.argument("folder", type=FOLDER)
@click.option("--replace", "which", help="Which key is replaced, when there are several.")
@click.option(
    "--names", "patterns", multiple=True,
    help="Publisher: what the new key may sign, by default what the former may; repeatable.",
)  # fmt: skip
@click.option(
    "--digest", "digests", multiple=True,
    help="Publisher: a bundle that the former key stays good for; repeatable.",
)  # fmt: skip
@click.option(
    "--retire-for", "bundles", type=FILE, multiple=True,
    help="Publisher: the same, by its file; repeatable.",
)  # fmt: skip
@click.option(
    "--passphrase/--no-passphrase", default=True, show_default=True,
    help="Owner, publisher: encrypt the new key with a passphrase.",
)  # fmt: skip
def rotate(
    role: str, folder: Path, *, which: str | None, patterns: tuple[str, ...],
    digests: tuple[str, ...], bundles: tuple[Path, ...], passphrase: bool,
) -> None:  # fmt: skip
    """Make a new key of ROLE beside the one in FOLDER, and the keyring that names it.

    An owner and a publisher replace the former one; a fleet key and an authority are added, and the
    former ones stay until `edgepack keys revoke`.

    Example: edgepack keys rotate publisher keys --retire-for digits-1.4.0.edgepack
    """
    if role != "publisher" and (patterns or digests or bundles):
        raise click.UsageError("--names, --digest and --retire-for are for a publisher")
    if role not in PROTECTED and which:
        raise click.UsageError("--replace is for an owner or a publisher; others are added")
    keys = KeyFolder(folder)
    keys.check_no_proposal()
    before = keys.keyring()
    if role == "publisher":
        former = _former_publisher(keys, before, which)
        good_for = {*digests, *(_digest_of(path, before, former) for path in bundles)}
        names = list(patterns) or before.publisher_keys()[former][1].names
        new = _make(keys, role, 1, encrypt=passphrase)
        after = transitions.retire_publisher(before, former, good_for)
        after = transitions.add_publisher(after, new[0].key.public, names)
    elif role == "owner":
        known = before.owner_keys()
        gone = list(known) if which is None else [keys.find(which, known, what="owner key")]
        new = _make(keys, role, len(gone), encrypt=passphrase)
        add = [one.key.public for one in new]
        after = transitions.change_owners(before, add=add, remove=gone)
    else:
        new = _make(keys, role, 1, encrypt=False)
        after = _added(before, new[0])
    settle(keys, before, transitions.follow(before, after, now_ms=now_ms()), new)
    note(place_words(folder, role, [one.name for one in new]))
    note(ROTATED[role])


@click.command()
@click.argument("what", type=click.Choice([*ROLES, "digest"]))
@click.argument("which")
@click.argument("folder", type=FOLDER)
@click.option("--new-epoch", is_flag=True, help="Also undo what a stolen fleet key told devices.")
@click.option("--leave-none", is_flag=True, help="Even if nobody is left who can do its work.")
def revoke(what: str, which: str, folder: Path, *, new_epoch: bool, leave_none: bool) -> None:
    """Take every right from a key, or from one bundle.

    WHICH is the name of a file in FOLDER, the beginning of a fingerprint, or the digest of a
    bundle. With --new-epoch devices forget the generations, floors and dates that they were told
    before: the way out after a stolen fleet key.

    Example: edgepack keys revoke fleet fleet keys --new-epoch
    """
    keys = KeyFolder(folder)
    keys.check_no_proposal()
    before = keys.keyring()
    after = _without(keys, before, what, which)
    if new_epoch:
        after = transitions.new_epoch(after)
    after = transitions.follow(before, after, now_ms=now_ms(), leave_none=leave_none)
    settle(keys, before, after)
    note(REVOKED[what])
    if what == "fleet" and not new_epoch:
        note(
            "if somebody else may have signed with it, devices may remember what he said: run "
            f"edgepack keys keyring prepare {folder} --new-epoch"
        )


def _without(keys: KeyFolder, before: Keyring, what: str, which: str) -> Keyring:
    if what == "digest":
        return transitions.revoke_digest(before, which)
    if what == "owner":
        return transitions.change_owners(
            before, remove={keys.find(which, before.owner_keys(), what="owner key")}
        )
    takes: dict[str, tuple[Callable[[Keyring, str], Keyring], Iterable[str]]] = {
        "publisher": (transitions.revoke_publisher, before.publisher_keys()),
        "fleet": (transitions.revoke_fleet, before.fleet_keys()),
        "authority": (transitions.revoke_authority, transitions.authorities_of(before)),
    }
    take, known = takes[what]
    return take(before, keys.find(which, known, what=f"{what} key"))


def _added(before: Keyring, one: NewKey) -> Keyring:
    if one.certificate is not None:
        return transitions.add_authority(before, one.certificate.decode())
    return transitions.add_fleet(before, one.key.public)


def _make(keys: KeyFolder, role: str, many: int, *, encrypt: bool) -> list[NewKey]:
    secret = new_passphrase(f"the new {role} key") if encrypt else None
    made: list[NewKey] = []
    for _ in range(many):
        name = keys.next_name(role, taken=[one.name for one in made])
        made.append(make_key(role, name, secret))
    return made


def _former_publisher(keys: KeyFolder, before: Keyring, which: str | None) -> str:
    active = [
        key for key, (_, one) in before.publisher_keys().items() if one.status == KeyStatus.ACTIVE
    ]
    if which is not None:
        return keys.find(which, active, what="active publisher key")
    if len(active) != 1:
        names = keys.names()
        there = ", ".join(names.get(key, key[:16]) for key in active) or "none"
        raise CommandError(
            f"the keyring has {len(active)} active publisher keys ({there}); say which one is "
            "replaced with --replace",
            code="which-key",
        )
    return active[0]


def _digest_of(path: Path, keyring: Keyring, publisher: str) -> str:
    """The digest of a bundle that a publisher key really signed."""
    with BundleFile.open(path) as opened:
        bundle = verify_bundle_file(opened, keyring=keyring)
    if bundle.signed_by != publisher:
        raise CommandError(
            f"{path} is signed by publisher key {str(bundle.signed_by)[:16]}, not by the one that "
            "is retired; leave it out",
            code="other-publisher",
        )
    return bundle.digest

"""Put a successor in force, or leave it as a proposal when too few owner keys are here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgepack_cli.keys.folder import KEYRING, PROPOSAL, KeyFolder, NewKey
from edgepack_cli.keys.passphrases import read_key
from edgepack_cli.keys.transitions import choose_signers, lacks
from edgepack_cli.keys.words import changes
from edgepack_cli.output import note, say
from edgepack_contract.keyring import Keyring, sign_keyring
from edgepack_contract.keys import PrivateKey


def settle(folder: KeyFolder, before: Keyring, after: Keyring, new: Sequence[NewKey] = ()) -> bool:
    """Sign ``after`` and put it in force, or leave it as a proposal; say which, and what changes.

    The signers are asked for before anything is written, so that giving up leaves nothing behind;
    new keys are written before the keyring that names them.

    Returns:
        Whether it is in force.
    """
    names = folder.names() | {one.key.public.fingerprint: one.name for one in new}
    for line in changes(before, after, names):
        note(line)
    signers = _signers(folder, before, after, new)
    for one in new:
        one.write(folder.path)
    if signers is None:
        folder.propose(sign_keyring(after, []))
        say(f"proposed keyring version {after.version}")
        note(missing_words(folder.path, before, after, signed=set(), names=names))
        return False
    in_force(folder, before, sign_keyring(after, signers))
    return True


def in_force(folder: KeyFolder, before: Keyring, line: bytes) -> None:
    """Put a signed successor in force and say what comes next.

    Raises:
        DocumentError: Not enough owners have signed it.
    """
    keyring = folder.take_up(line)
    say(f"keyring version {keyring.version}")
    note(
        f"{folder.path / KEYRING} is new; it counts once the service has it: "
        f"edgepack keys keyring push {folder.path / KEYRING}"
    )
    if keyring.owner_fingerprint != before.owner_fingerprint:
        note(
            "devices that pinned the former owner follow by themselves; give new devices, and the "
            f"service as `owner` of [keys], the new one: {keyring.owner_fingerprint}"
        )


def missing_words(
    folder: Path, before: Keyring, after: Keyring, *, signed: set[str], names: Mapping[str, str]
) -> str:
    """Who must still sign a proposal, and how; empty when enough have."""
    lines = []
    for words, one in (("of the owners until now", before), ("of the owners to come", after)):
        owners = one.owner_keys()
        if many := lacks(owners, signed, one.threshold):
            left = ", ".join(names.get(key, key[:16]) for key in owners if key not in signed)
            lines.append(f"{many} more must sign {words}: {left}")
    if lines:
        lines += [
            (
                "each, on the machine with the key: edgepack keys keyring sign "
                f"{folder / PROPOSAL} --key OWNER.key --owner {before.owner_fingerprint}"
            ),
            f"then here: edgepack keys keyring finish {folder}",
        ]
    return "\n".join(lines)


def _signers(
    folder: KeyFolder, before: Keyring, after: Keyring, new: Sequence[NewKey]
) -> list[PrivateKey] | None:
    paths = folder.private_keys({*before.owner_keys(), *after.owner_keys()})
    made = {one.key.public.fingerprint: one.key for one in new}
    chosen = choose_signers(before, after, {*paths, *made})
    if chosen is None:
        return None
    return [made[key] if key in made else read_key(paths[key]) for key in chosen]

"""Make keys of each role, and say in plain words where they belong."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

from edgepack_cli.keys.folder import NewKey, checksum
from edgepack_contract.certificates import Authority
from edgepack_contract.keys import PrivateKey

ROLES = ("owner", "publisher", "fleet", "authority")
PROTECTED = frozenset({"owner", "publisher"})
"""The service starts without a person, so that its two keys cannot have a passphrase."""

PLACES = {
    "owner": """\
keep it offline, in two places; you need it only to change the keyring
lost: the keyring can never change again and every device must be enrolled anew, unless other
  owners are enough to sign: edgepack keys rotate owner --replace
stolen: the thief can give himself every right: edgepack keys rotate owner, at once""",
    "publisher": """\
keep it where bundles are built, and nowhere else
lost: nothing new can be signed: edgepack keys rotate publisher
stolen: the thief can make bundles that look genuine: edgepack keys rotate publisher, then
  edgepack keys revoke publisher""",
    "fleet": """\
give it to the fleet service
lost: devices run on, but nothing can be changed: edgepack keys rotate fleet
stolen: the thief can choose among genuine bundles what devices run: edgepack keys rotate fleet,
  then edgepack keys revoke fleet --new-epoch""",
    "authority": """\
give the .key and the .pem to the fleet service
lost: no certificate can be issued or renewed: edgepack keys rotate authority
stolen: the thief can pose as the service, the broker or a device, but install nothing:
  edgepack keys rotate authority, then edgepack keys revoke authority""",
}


def now_ms() -> int:
    """The clock of this machine, milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def make_key(role: str, name: str, passphrase: bytes | None) -> NewKey:
    """Make a key of a role; only those that can have a passphrase get it."""
    key = PrivateKey.generate()
    if role == "authority":
        # Authorities of one fleet must differ in name: programs look their issuer up by it.
        called = f"edgepack authority {key.public.fingerprint[:16]}"
        certificate = Authority.create(key, name=called, now_ms=now_ms()).pem
        return NewKey(name, key, certificate=certificate)
    return NewKey(name, key, passphrase if role in PROTECTED else None)


def place_words(folder: Path, role: str, names: list[str]) -> str:
    """Where the keys of a role belong, what it means to lose one, and what to write down."""
    files = ", ".join(str(folder / f"{name}.key") for name in names)
    sums = ", ".join(checksum(folder / f"{name}.key") for name in names)
    words = textwrap.indent(PLACES[role], "  ")
    return f"{files}\n{words}\n  sha256 begins with {sums}"

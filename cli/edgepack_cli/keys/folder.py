"""A folder of keys: which files are in it, and how they change so that an interruption harms none.

Private keys are ``NAME.key``, public ones ``NAME.pub``, authorities' certificates ``NAME.pem``;
``NAME`` is a role, with a number when there are several. ``owner.fingerprint`` holds the pinned
owner, ``keyring.json`` the keyring file, ``keyring.proposed`` the same with a successor that waits
for signatures.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgepack_cli.errors import CommandError
from edgepack_contract.atomic import replacing
from edgepack_contract.certificates import certificate_key, read_authority, read_certificate
from edgepack_contract.errors import SigningKeyError
from edgepack_contract.keyring import Keyring, advance_keyring, open_keyring, succeed_keyring
from edgepack_contract.keys import PrivateKey, PublicKey, read_public_key, write_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small

KEYRING, PROPOSAL, PIN = "keyring.json", "keyring.proposed", "owner.fingerprint"
SHORTEST_FINGERPRINT = 8


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that is not in a file yet; an authority's public half is a certificate, in PEM form."""

    name: str
    key: PrivateKey
    passphrase: bytes | None = None
    certificate: bytes | None = None

    @property
    def files(self) -> list[str]:
        """The names of its files."""
        return [f"{self.name}.key", f"{self.name}.{'pem' if self.certificate else 'pub'}"]

    def write(self, folder: Path) -> None:
        """Make its files."""
        write_private_key(folder / f"{self.name}.key", self.key, self.passphrase)
        write_file(folder / self.files[1], self.certificate or self.key.public.pem)


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """The keys and the keyring of a fleet's owner."""

    path: Path

    @property
    def proposal(self) -> Path:
        """Where a successor waits for signatures."""
        return self.path / PROPOSAL

    def pin(self) -> str:
        """The fingerprint of the owner that this folder goes by."""
        raw = read_small(self.path / PIN, LIMITS.key_file_bytes)
        return raw.decode("ascii", errors="replace").strip()

    def raw(self) -> bytes:
        """The bytes of the keyring file."""
        return read_small(self.path / KEYRING, LIMITS.keyring_bytes)

    def keyring(self) -> Keyring:
        """The keyring in force.

        Raises:
            DocumentError: The owner that the folder goes by did not sign it.
        """
        return open_keyring(self.raw(), owner_fingerprint=self.pin())

    def names(self) -> dict[str, str]:
        """What the files call the keys, by fingerprint; unreadable files are passed over."""
        found = {}
        for path in sorted([*self.path.glob("*.pub"), *self.path.glob("*.pem")]):
            try:
                found[public_key_of(path).fingerprint] = path.stem
            except SigningKeyError:
                continue
        return found

    def next_name(self, role: str, *, taken: Iterable[str] = ()) -> str:
        """A name for one more key of a role, which no file here has or had a number above."""
        stems = {path.stem for path in self.path.glob(f"{role}*.*")} | set(taken)
        numbers = [int(found[1] or 1) for one in stems if (found := _number(role, one))]
        return f"{role}-{max(numbers, default=0) + 1}"

    def private_keys(self, fingerprints: Iterable[str]) -> dict[str, Path]:
        """The private key files that are here for some keys, by fingerprint."""
        wanted = set(fingerprints)
        paths = {
            fingerprint: self.path / f"{name}.key"
            for fingerprint, name in self.names().items()
            if fingerprint in wanted
        }
        return {fingerprint: path for fingerprint, path in paths.items() if path.exists()}

    def find(self, which: str, known: Iterable[str], *, what: str) -> str:
        """The fingerprint of a key by the name of its file or the beginning of its fingerprint.

        Raises:
            CommandError: No key of ``known``, or several, are meant.
        """
        names, known = self.names(), list(known)
        found = [one for one in known if names.get(one) == which]
        if not found and len(which) >= SHORTEST_FINGERPRINT:
            found = [one for one in known if one.startswith(which.lower())]
        if len(found) != 1:
            there = ", ".join(names.get(one, one[:16]) for one in known) or "none"
            raise CommandError(
                f"{which!r} is not one {what} of the keyring; expected the name of its file in "
                f"{self.path} or the first {SHORTEST_FINGERPRINT} or more digits of its "
                f"fingerprint; there are: {there}",
                code="unknown-key",
            )
        return found[0]

    def check_no_proposal(self) -> None:
        """Refuse to begin another change while one waits.

        Raises:
            CommandError: One does.
        """
        if self.proposal.exists():
            raise CommandError(
                f"{self.proposal} waits for signatures; sign and finish it (edgepack keys keyring "
                "sign, edgepack keys keyring finish) or remove the file, then begin anew",
                code="proposal-waits",
            )

    def propose(self, line: bytes) -> None:
        """Leave a successor to be signed elsewhere."""
        replace_file(self.proposal, b"\n".join([self.raw(), line]) + b"\n")

    def take_up(self, line: bytes) -> Keyring:
        """Put a signed successor in force.

        Raises:
            DocumentError: It is not one of the keyring in force.
        """
        raw = self.raw()
        keyring = advance_keyring(
            open_keyring(raw, owner_fingerprint=self.pin()), b"\n".join([raw, line])
        )
        # The old pin leads to the new keyring, the new one would not to the old: keyring first.
        replace_file(self.path / KEYRING, succeed_keyring(raw, line))
        replace_file(self.path / PIN, f"{keyring.owner_fingerprint}\n".encode())
        return keyring


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


def public_key_of(path: Path) -> PublicKey:
    """The public key in a ``.pub`` file or in the certificate of a ``.pem`` file.

    Raises:
        SigningKeyError: There is none.
    """
    if path.suffix == ".pem":
        return certificate_key(read_certificate(read_small(path, LIMITS.key_file_bytes)))
    return read_public_key(path)


def authority_in(path: Path) -> str:
    """The certificate of an authority, in PEM form.

    Raises:
        SigningKeyError: The file has none.
    """
    raw = read_small(path, LIMITS.key_file_bytes)
    try:
        read_authority(raw)
    except SigningKeyError as error:
        raise SigningKeyError(f"{path}: {error}", code=error.code) from error
    return raw.decode("ascii", errors="replace")


def write_file(path: Path, data: bytes) -> None:
    """Make a file that is not secret; an existing one is never replaced."""
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put ``data`` in the place of a file, whole or not at all."""
    with replacing(path) as part:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(handle)


def checksum(path: Path) -> str:
    """What is written down beside a backup: ``sha256sum FILE`` begins with these 16 digits."""
    return hashlib.sha256(read_small(path, LIMITS.key_file_bytes)).hexdigest()[:16]


def _number(role: str, stem: str) -> re.Match[str] | None:
    return re.fullmatch(rf"{role}(?:-(\d{{1,6}}))?", stem)

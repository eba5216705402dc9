"""The keyring: who may sign what, signed by the owner key that devices pin.

Three keys answer three questions. The *owner* key (offline) says who may sign; a *publisher* key
(offline) says that a bundle is genuine; a *fleet* key (online) says what a device should run now.
"""

from __future__ import annotations

import fnmatch
from enum import StrEnum

import msgspec

from edgepack_contract.canonical import canonical_json, decode
from edgepack_contract.dsse import (
    PayloadType,
    claimed_payload,
    open_envelope,
    seal_envelope,
)
from edgepack_contract.errors import MalformedDocumentError, SigningKeyError, UntrustedBundleError
from edgepack_contract.keys import PrivateKey, PublicKey
from edgepack_contract.limits import LIMITS

SCHEMA = "edgepack-keyring/1"


class KeyStatus(StrEnum):
    """What a publisher key may still vouch for."""

    ACTIVE = "active"
    RETIRED = "retired"
    REVOKED = "revoked"


class Publisher(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A publisher key and the bundle names (shell patterns) it may sign.

    A retired key stays valid for the index digests in ``digests`` only, a revoked one for none.
    """

    key: str
    names: list[str]
    status: KeyStatus = KeyStatus.ACTIVE
    digests: list[str] = []


class Keyring(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The payload that the owner key signs.

    A larger ``version`` replaces a smaller one. A larger ``epoch`` also resets generations and
    floors on devices: the way out after a stolen fleet key. ``owner`` and ``fleets`` are public
    keys in PEM form.
    """

    schema: str
    version: int
    epoch: int
    owner: str
    publishers: list[Publisher]
    fleets: list[str]
    revoked_digests: list[str] = []

    def fleet_keys(self) -> dict[str, PublicKey]:
        """The keys that may sign desired state, by fingerprint."""
        keys = [PublicKey.from_pem(pem.encode()) for pem in self.fleets]
        return {key.fingerprint: key for key in keys}

    def publisher_keys(self) -> dict[str, tuple[PublicKey, Publisher]]:
        """Every publisher key that is not revoked, by fingerprint."""
        pairs = [(PublicKey.from_pem(one.key.encode()), one) for one in self.publishers]
        return {
            key.fingerprint: (key, one) for key, one in pairs if one.status != KeyStatus.REVOKED
        }

    def publisher_for(self, *, name: str, digest: str, fingerprint: str) -> PublicKey:
        """The publisher key that vouches for a bundle.

        Args:
            name: The bundle's name.
            digest: Its index digest, ``sha256:<hex>``.
            fingerprint: The key that signed it.

        Raises:
            UntrustedBundleError: The key is unknown, revoked, retired without listing this digest,
                or may not sign this name; or the digest itself is revoked.
        """
        if digest in self.revoked_digests:
            raise UntrustedBundleError(
                f"bundle {digest} is revoked by keyring version {self.version}",
                code="revoked-digest",
            )
        found = self.publisher_keys().get(fingerprint)
        if found is None:
            raise UntrustedBundleError(
                f"the bundle is signed by key {fingerprint[:16]}, which is not a publisher key of "
                f"keyring version {self.version}; sign it with one of its keys, or have the owner "
                "add this key",
                code="unknown-publisher",
            )
        key, publisher = found
        if publisher.status == KeyStatus.RETIRED and digest not in publisher.digests:
            raise UntrustedBundleError(
                f"publisher key {fingerprint[:16]} is retired and does not list bundle {digest}",
                code="retired-publisher",
            )
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in publisher.names):
            raise UntrustedBundleError(
                f"publisher key {fingerprint[:16]} may sign {', '.join(publisher.names)}, "
                f"not {name!r}",
                code="wrong-name",
            )
        return key


def make_keyring(
    owner: PrivateKey,
    *,
    version: int,
    epoch: int,
    publishers: list[Publisher],
    fleets: list[PublicKey],
    revoked_digests: list[str] | None = None,
) -> bytes:
    """Build and sign a keyring file."""
    keyring = Keyring(
        schema=SCHEMA,
        version=version,
        epoch=epoch,
        owner=owner.public.pem.decode(),
        publishers=publishers,
        fleets=[key.pem.decode() for key in fleets],
        revoked_digests=revoked_digests or [],
    )
    return seal_envelope(PayloadType.KEYRING, canonical_json(keyring), owner)


def open_keyring(raw: bytes, *, owner_fingerprint: str, minimum_version: int = 0) -> Keyring:
    """Verify a keyring file against the pinned fingerprint of the owner key.

    The owner's public key travels inside the keyring; it counts only when its fingerprint is the
    pinned one.

    Args:
        raw: The file's bytes.
        owner_fingerprint: 64 hex digits, pinned at enrolment.
        minimum_version: The newest version seen so far; an older one is a replay.

    Raises:
        MalformedDocumentError: It does not decode, or is older than ``minimum_version``.
        UntrustedDocumentError: The owner did not sign it.
    """
    claimed = _parse(claimed_payload(raw, what="keyring", max_bytes=LIMITS.keyring_bytes))
    owner = _owner_key(claimed)
    keys = {owner.fingerprint: owner} if owner.fingerprint == owner_fingerprint else {}
    keyring = _parse(
        open_envelope(
            raw, PayloadType.KEYRING, keys, what="keyring", max_bytes=LIMITS.keyring_bytes
        )
    )
    if keyring.version < minimum_version:
        raise MalformedDocumentError(
            f"keyring has version {keyring.version}, but {minimum_version} was seen before",
            code="old-keyring",
        )
    return keyring


def _parse(body: bytes) -> Keyring:
    keyring = decode(body, Keyring, what="keyring", max_bytes=LIMITS.keyring_bytes)
    if keyring.schema != SCHEMA:
        raise MalformedDocumentError(
            f"keyring has schema {keyring.schema[:40]!r}, expected {SCHEMA!r}", code="bad-schema"
        )
    return keyring


def _owner_key(keyring: Keyring) -> PublicKey:
    try:
        return PublicKey.from_pem(keyring.owner.encode())
    except SigningKeyError as error:
        raise MalformedDocumentError(f"the owner key of the keyring is {error}") from error

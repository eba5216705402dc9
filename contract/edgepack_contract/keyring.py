"""The keyring: who may sign what, signed by the owner keys that devices pin.

Three keys answer three questions. The *owner* keys (offline) say who may sign; a *publisher* key
(offline) says that a bundle is genuine; a *fleet* key (online) says what a device should run now.

A keyring file holds one envelope a line, the newest last. Earlier lines are there only where the
owners changed: a keyring with other owners is signed by the old ones too, so that a device which
pinned the old ones finds its way to the new ones (as roots are rotated in The Update Framework,
specification 5.3).
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import msgspec

from edgepack_contract.canonical import canonical_json, decode
from edgepack_contract.dsse import (
    PayloadType,
    claimed_payload,
    claimed_signers,
    open_envelope,
    seal_envelope,
)
from edgepack_contract.errors import (
    MalformedDocumentError,
    SigningKeyError,
    UntrustedBundleError,
    UntrustedDocumentError,
)
from edgepack_contract.keys import PrivateKey, PublicKey
from edgepack_contract.limits import LIMITS

SCHEMA = "edgepack-keyring/1"
MAX_OWNERS = 16


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
    """The payload that the owner keys sign.

    A larger ``version`` replaces a smaller one. A larger ``epoch`` also resets generations and
    floors on devices: the way out after a stolen fleet key. ``threshold`` of the ``owners`` must
    sign. ``owners`` and ``fleets`` are public keys in PEM form, ``revoked_fleets`` fingerprints of
    keys that were fleet keys. ``authorities`` are the certificates, in PEM form, of who vouches for
    the fleet service and the broker in TLS; without any, the system's own do. ``issued`` is
    milliseconds since 1970 UTC. A ``demo`` keyring is accepted on loopback only.
    """

    schema: str
    version: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    epoch: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    issued: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    owners: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_OWNERS)]
    threshold: Annotated[int, msgspec.Meta(ge=1, le=MAX_OWNERS)] = 1
    publishers: list[Publisher]
    fleets: list[str]
    revoked_fleets: list[str] = []
    revoked_digests: list[str] = []
    authorities: list[str] = []
    demo: bool = False

    def owner_keys(self) -> dict[str, PublicKey]:
        """The owner keys, by fingerprint."""
        return _by_fingerprint(self.owners)

    @property
    def owner_fingerprint(self) -> str:
        """What devices pin: see :func:`owner_fingerprint`."""
        return owner_fingerprint(list(self.owner_keys().values()), self.threshold)

    def fleet_keys(self) -> dict[str, PublicKey]:
        """The keys that may sign desired state, by fingerprint."""
        return _by_fingerprint(self.fleets)

    def publisher_keys(self) -> dict[str, tuple[PublicKey, Publisher]]:
        """Every publisher key, revoked ones too, by fingerprint."""
        pairs = [(PublicKey.from_pem(one.key.encode()), one) for one in self.publishers]
        return {key.fingerprint: (key, one) for key, one in pairs}

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
        if publisher.status == KeyStatus.REVOKED:
            raise UntrustedBundleError(
                f"publisher key {fingerprint[:16]} is revoked by keyring version {self.version}; "
                "sign the bundle again with a key that is active",
                code="revoked-publisher",
            )
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


def owner_fingerprint(owners: Sequence[PublicKey], threshold: int) -> str:
    """What a device pins: 64 hex digits.

    A single owner's is the fingerprint of its key; of several owners it is the SHA-256 of the
    canonical JSON of their sorted fingerprints and the threshold.
    """
    fingerprints = sorted(key.fingerprint for key in owners)
    if len(fingerprints) == 1:
        return fingerprints[0]
    body = canonical_json({"owners": fingerprints, "threshold": threshold})
    return hashlib.sha256(body).hexdigest()


def make_keyring(  # noqa: PLR0913 - the fields of a keyring
    *owners: PrivateKey,
    version: int,
    epoch: int,
    publishers: list[Publisher],
    fleets: list[PublicKey],
    threshold: int = 1,
    revoked_digests: list[str] | None = None,
    authorities: list[str] | None = None,
    issued: int = 0,
    demo: bool = False,
) -> bytes:
    """Build a keyring and sign it with all its owners: a keyring file of one line.

    For the arguments see :class:`Keyring`.
    """
    keyring = Keyring(
        schema=SCHEMA,
        version=version,
        epoch=epoch,
        issued=issued,
        owners=[owner.public.pem.decode() for owner in owners],
        threshold=threshold,
        publishers=publishers,
        fleets=[key.pem.decode() for key in fleets],
        revoked_digests=revoked_digests or [],
        authorities=authorities or [],
        demo=demo,
    )
    return sign_keyring(keyring, owners)


def sign_keyring(keyring: Keyring, signers: Sequence[PrivateKey]) -> bytes:
    """Sign a keyring with owner keys: one line of a keyring file, without the line feed."""
    return seal_envelope(PayloadType.KEYRING, canonical_json(keyring), *signers)


def succeed_keyring(file: bytes, line: bytes) -> bytes:
    """The keyring file that has ``line`` as its newest keyring.

    Both must have been verified: see :func:`advance_keyring`. Lines are kept as long as a device
    that pinned their owners may need them.

    Raises:
        MalformedDocumentError: It is too large by now, or ``line`` is not newer.
    """
    both = _read(b"\n".join([file, line]))
    lines, owners = [one for one, _ in both], [one.owner_fingerprint for _, one in both]
    kept = [
        one
        for place, one in enumerate(lines)
        if place == len(lines) - 1
        or owners[place] != owners[place + 1]
        or (place > 0 and owners[place] != owners[place - 1])
    ]
    return b"\n".join(kept)


def open_keyring(raw: bytes, *, owner_fingerprint: str, minimum_version: int = 0) -> Keyring:
    """Verify a keyring file against the pinned fingerprint of the owners.

    The owners' public keys travel inside the keyring; they count only when their fingerprint is the
    pinned one, or when owners that count have signed for them.

    Args:
        raw: The file's bytes.
        owner_fingerprint: 64 hex digits, pinned at enrolment.
        minimum_version: The newest version seen so far; an older one is a replay.

    Raises:
        MalformedDocumentError: It does not decode, or is older than ``minimum_version``.
        UntrustedDocumentError: The owners did not sign it.
    """
    lines = _read(raw)
    places = [
        place for place, (_, one) in enumerate(lines) if one.owner_fingerprint == owner_fingerprint
    ]
    if not places:
        raise UntrustedDocumentError(
            f"the keyring is of owner {lines[-1][1].owner_fingerprint[:16]}, not of the pinned "
            f"owner {owner_fingerprint[:16]}",
            code="unknown-key",
        )
    line, claimed = lines[places[0]]
    keyring = _verified(line, claimed, [claimed])
    for line, claimed in lines[places[0] + 1 :]:
        keyring = _successor(keyring, line, claimed)
    if keyring.version < minimum_version:
        raise MalformedDocumentError(
            f"keyring has version {keyring.version}, but {minimum_version} was seen before",
            code="old-keyring",
        )
    return keyring


def advance_keyring(current: Keyring, raw: bytes) -> Keyring:
    """The keyring that a keyring file leads to, for somebody who trusts ``current`` already.

    Returns:
        The newest keyring of the file; ``current`` itself when the file has nothing newer.

    Raises:
        MalformedDocumentError: It does not decode (or ``old-keyring``: all of it is older).
        UntrustedDocumentError: The owners of the keyring before did not sign one; or with code
            ``keyring-equivocation``: it has another keyring of the version that is trusted; or with
            ``old-epoch``: a newer version goes back to an earlier epoch.
    """
    keyring = current
    lines = _read(raw)
    for line, claimed in lines:
        if claimed.version > keyring.version:
            keyring = _successor(keyring, line, claimed)
        elif claimed.version == current.version and claimed != current:
            # A stranger cannot say that the owners contradict themselves.
            _verified(line, claimed, [current])
            raise UntrustedDocumentError(
                f"there are two different keyrings of version {current.version}; the one that was "
                "seen first is kept",
                code="keyring-equivocation",
            )
    newest = lines[-1][1].version
    if newest < current.version:
        raise MalformedDocumentError(
            f"keyring has version {newest}, but {current.version} was seen before",
            code="old-keyring",
        )
    return keyring


def claimed_keyring(line: bytes) -> tuple[Keyring, set[str]]:
    """What one line of a keyring file says, which nobody has verified, and who says to have signed.

    For people who are asked to sign it, and for finding out whose signatures are missing.

    Raises:
        MalformedDocumentError: It does not decode.
    """
    what, most = "keyring", LIMITS.keyring_bytes
    return _claimed(line), claimed_signers(line, what=what, max_bytes=most)


def keyring_lines(raw: bytes) -> list[bytes]:
    """The envelopes of a keyring file, the newest last.

    Raises:
        MalformedDocumentError: It is empty or too large.
    """
    if len(raw) > LIMITS.keyring_bytes:
        raise MalformedDocumentError(
            f"keyring has more than {LIMITS.keyring_bytes} bytes", code="too-large"
        )
    lines = [line for line in raw.splitlines() if line.strip()]
    if not lines:
        raise MalformedDocumentError("keyring is empty")
    return lines


def _successor(before: Keyring, line: bytes, claimed: Keyring) -> Keyring:
    keyring = _verified(line, claimed, [before, claimed])
    if keyring.epoch < before.epoch:
        raise UntrustedDocumentError(
            f"keyring version {keyring.version} goes back from epoch {before.epoch} to "
            f"{keyring.epoch}",
            code="old-epoch",
        )
    return keyring


def _verified(line: bytes, claimed: Keyring, deciders: Sequence[Keyring]) -> Keyring:
    """What a line claims, once enough owners of every one of ``deciders`` have signed it."""
    for one in deciders:
        open_envelope(
            line,
            PayloadType.KEYRING,
            one.owner_keys(),
            what="keyring",
            max_bytes=LIMITS.keyring_bytes,
            threshold=one.threshold,
        )
    return claimed


def _read(raw: bytes) -> list[tuple[bytes, Keyring]]:
    """Every line of a keyring file with what it claims; versions grow from line to line."""
    lines = [(line, _claimed(line)) for line in keyring_lines(raw)]
    for (_, before), (_, after) in itertools.pairwise(lines):
        if after.version <= before.version:
            raise MalformedDocumentError(
                f"keyring version {after.version} follows {before.version}; versions must grow",
                code="old-keyring",
            )
    return lines


def _claimed(line: bytes) -> Keyring:
    """What a line says of itself, which nobody has verified."""
    return _parse(claimed_payload(line, what="keyring", max_bytes=LIMITS.keyring_bytes))


def _parse(body: bytes) -> Keyring:
    keyring = decode(body, Keyring, what="keyring", max_bytes=LIMITS.keyring_bytes)
    if keyring.schema != SCHEMA:
        raise MalformedDocumentError(
            f"keyring has schema {keyring.schema[:40]!r}, expected {SCHEMA!r}", code="bad-schema"
        )
    try:
        owners, fleets = keyring.owner_keys(), keyring.fleet_keys()
        publishers = keyring.publisher_keys()
        _check_authorities(keyring.authorities)
    except SigningKeyError as error:
        raise MalformedDocumentError(f"a key of the keyring is unusable: {error}") from error
    if len(publishers) != len(keyring.publishers) or set(fleets) & set(keyring.revoked_fleets):
        raise MalformedDocumentError(
            "the keyring contradicts itself: it has a publisher key twice, or names and revokes "
            "the same fleet key",
            code="contradictory-keyring",
        )
    if keyring.threshold > len(owners):
        raise MalformedDocumentError(
            f"the keyring asks for {keyring.threshold} signatures of {len(owners)} owners",
            code="bad-threshold",
        )
    return keyring


def _check_authorities(pems: Sequence[str]) -> None:
    if not pems:
        return
    # 3 MB, which a device does without when the system's authorities are its own
    from edgepack_contract.certificates import read_authority  # noqa: PLC0415

    for pem in pems:
        read_authority(pem.encode())


def _by_fingerprint(pems: Sequence[str]) -> dict[str, PublicKey]:
    keys = [PublicKey.from_pem(pem.encode()) for pem in pems]
    return {key.fingerprint: key for key in keys}

"""What may become of a keyring: pure functions from one keyring to the next.

Each changes one thing; :func:`follow` then makes the result a successor, which must go on to be of
use. Who may sign it is checked by the contract, when devices and the service take it up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec

from edgepack_cli.errors import CommandError
from edgepack_contract.certificates import certificate_key, read_authority
from edgepack_contract.digest import check_digest
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.keyring import MAX_OWNERS, Keyring, KeyStatus, Publisher
from edgepack_contract.keys import PublicKey

CLOCKS_DIFFER_MS = 24 * 3600 * 1000
"""A keyring that is dated further ahead was made on a machine whose clock is wrong."""


def add_publisher(keyring: Keyring, key: PublicKey, names: Sequence[str]) -> Keyring:
    """Let a new key sign the bundles of some names."""
    _check_new(key.fingerprint, keyring.publisher_keys(), "publisher")
    one = Publisher(key=key.pem.decode(), names=list(names))
    return _replace(keyring, publishers=[*keyring.publishers, one])


def retire_publisher(keyring: Keyring, fingerprint: str, digests: Collection[str]) -> Keyring:
    """Let a publisher key vouch for the given bundles only."""
    if keyring.publisher_keys()[fingerprint][1].status != KeyStatus.ACTIVE:
        raise CommandError(
            f"publisher key {fingerprint[:16]} is not active, so there is nothing to retire",
            code="not-active",
        )
    for digest in digests:
        _check_digest(digest)
    return _with_publisher(
        keyring, fingerprint, status=KeyStatus.RETIRED, digests=sorted(set(digests))
    )


def revoke_publisher(keyring: Keyring, fingerprint: str) -> Keyring:
    """Let a publisher key vouch for nothing any more."""
    return _with_publisher(keyring, fingerprint, status=KeyStatus.REVOKED, digests=[])


def add_fleet(keyring: Keyring, key: PublicKey) -> Keyring:
    """Let a new key sign what devices should run."""
    _check_new(key.fingerprint, {*keyring.fleet_keys(), *keyring.revoked_fleets}, "fleet")
    return _replace(keyring, fleets=[*keyring.fleets, key.pem.decode()])


def revoke_fleet(keyring: Keyring, fingerprint: str) -> Keyring:
    """Let a fleet key instruct nobody any more."""
    left = {key: one for key, one in keyring.fleet_keys().items() if key != fingerprint}
    return _replace(
        keyring,
        fleets=[one.pem.decode() for one in left.values()],
        revoked_fleets=sorted({*keyring.revoked_fleets, fingerprint}),
    )


def add_authority(keyring: Keyring, pem: str) -> Keyring:
    """Let a new authority vouch for the service and the broker in TLS."""
    fingerprint = certificate_key(read_authority(pem.encode())).fingerprint
    _check_new(fingerprint, authorities_of(keyring), "authority")
    return _replace(keyring, authorities=[*keyring.authorities, pem])


def revoke_authority(keyring: Keyring, fingerprint: str) -> Keyring:
    """Let an authority vouch for nobody any more."""
    left = {key: pem for key, pem in authorities_of(keyring).items() if key != fingerprint}
    return _replace(keyring, authorities=list(left.values()))


def authorities_of(keyring: Keyring) -> dict[str, str]:
    """The certificates of the authorities in PEM form, by the fingerprint of their keys."""
    return {
        certificate_key(read_authority(pem.encode())).fingerprint: pem
        for pem in keyring.authorities
    }


def change_owners(
    keyring: Keyring,
    *,
    add: Sequence[PublicKey] = (),
    remove: Collection[str] = (),
    threshold: int | None = None,
) -> Keyring:
    """Let other owner keys say who may sign.

    Args:
        keyring: The keyring before.
        add: New owner keys.
        remove: Fingerprints of those that go.
        threshold: How many of them must sign from then on; None leaves it.
    """
    for key in add:
        _check_new(key.fingerprint, keyring.owner_keys(), "owner")
    left = {key: one for key, one in keyring.owner_keys().items() if key not in remove}
    owners = [*left.values(), *add]
    needed = keyring.threshold if threshold is None else threshold
    if not 1 <= needed <= len(owners) <= MAX_OWNERS:
        raise CommandError(
            f"{needed} of {len(owners)} owner keys would have to sign, which cannot be; replace an "
            f"owner (edgepack keys rotate owner), or add one (at most {MAX_OWNERS}) or choose "
            "another threshold (edgepack keys keyring prepare)",
            code="bad-threshold",
        )
    return _replace(keyring, owners=[one.pem.decode() for one in owners], threshold=needed)


def revoke_digest(keyring: Keyring, digest: str) -> Keyring:
    """Let nobody vouch for one bundle any more."""
    _check_digest(digest)
    return _replace(keyring, revoked_digests=sorted({*keyring.revoked_digests, digest}))


def new_epoch(keyring: Keyring) -> Keyring:
    """Let devices forget what generations, floors and dates a fleet key has made them remember."""
    return _replace(keyring, epoch=keyring.epoch + 1)


def follow(before: Keyring, after: Keyring, *, now_ms: int, leave_none: bool = False) -> Keyring:
    """The successor of ``before`` that says what ``after`` says.

    Args:
        before: The keyring in force.
        after: The same with changes.
        now_ms: The date of the successor, milliseconds since 1970 UTC.
        leave_none: Whether nobody at all may be left who signs bundles, instructs devices, or
            vouches in TLS.

    Raises:
        CommandError: ``clock``: it would be older than ``before`` in the same epoch; or
            ``leave-none``.
    """
    if now_ms < before.issued and after.epoch == before.epoch:
        raise CommandError(
            "the clock of this machine is behind the date of the keyring in force; set the clock, "
            "or, if that date is wrong, begin a new epoch (--new-epoch)",
            code="clock",
        )
    if not leave_none:
        _check_somebody_is_left(before, after)
    return _replace(after, version=before.version + 1, issued=now_ms)


def choose_signers(before: Keyring, after: Keyring, available: Collection[str]) -> list[str] | None:
    """Which owner keys shall sign a successor: few, and enough of the old and of the new owners.

    Args:
        before: The keyring in force.
        after: Its successor.
        available: Fingerprints of the keys that can sign.

    Returns:
        Fingerprints, or None when ``available`` are not enough.
    """
    old, new = before.owner_keys(), after.owner_keys()
    chosen: list[str] = []
    # Those that count twice come first.
    for key in sorted(available, key=lambda one: (not (one in old and one in new), one)):
        wanted_by = [(old, before.threshold), (new, after.threshold)]
        if any(key in owners and lacks(owners, chosen, many) for owners, many in wanted_by):
            chosen.append(key)
    if lacks(old, chosen, before.threshold) or lacks(new, chosen, after.threshold):
        return None
    return chosen


def lacks(owners: Collection[str], signed: Collection[str], threshold: int) -> int:
    """How many signatures of ``owners`` are missing."""
    return max(0, threshold - len(set(owners) & set(signed)))


def _check_somebody_is_left(before: Keyring, after: Keyring) -> None:
    rows: list[tuple[str, str, Callable[[Keyring], bool]]] = [
        ("fleet", "fleet key", lambda one: bool(one.fleets)),
        ("publisher", "active publisher key", _has_active_publisher),
        ("authority", "authority", lambda one: bool(one.authorities)),
    ]
    for role, what, has in rows:
        if has(before) and not has(after):
            raise CommandError(
                f"this would leave no {what}; make a new one first (edgepack keys rotate {role} "
                "FOLDER), or say --leave-none if that is what you want",
                code="leave-none",
            )


def _has_active_publisher(keyring: Keyring) -> bool:
    return any(one.status == KeyStatus.ACTIVE for one in keyring.publishers)


def _with_publisher(
    keyring: Keyring, fingerprint: str, *, status: KeyStatus, digests: list[str]
) -> Keyring:
    publishers = [
        msgspec.structs.replace(one, status=status, digests=digests) if key == fingerprint else one
        for key, (_, one) in keyring.publisher_keys().items()
    ]
    return _replace(keyring, publishers=publishers)


def _check_new(fingerprint: str, known: Collection[str], role: str) -> None:
    if fingerprint in known:
        raise CommandError(
            f"the keyring has {role} key {fingerprint[:16]} already (or had it, and revoked it); "
            "a new one is needed",
            code="known-key",
        )


def _check_digest(digest: str) -> None:
    try:
        check_digest(digest, what="bundle")
    except MalformedBundleError as error:
        raise CommandError(
            f"{error}; `edgepack inspect` prints a bundle's", code="bad-digest"
        ) from error


def _replace(keyring: Keyring, **changes: object) -> Keyring:
    return msgspec.structs.replace(keyring, **changes)

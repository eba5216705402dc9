"""Which desired document a device obeys: pure rules over one signed document and what was before.

Replays, documents for other devices or former enrolments, stale and contradictory generations,
expired and future-dated ones are each refused with a code of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgepack_contract.canonical import canonical_json, decode
from edgepack_contract.digest import sha256_digest
from edgepack_contract.dsse import (
    PayloadType,
    claimed_signers,
    open_envelope,
    seal_envelope,
)
from edgepack_contract.errors import UntrustedDocumentError
from edgepack_contract.keyring import Keyring
from edgepack_contract.keys import PrivateKey
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Desired

CLOCK_SKEW_MS = 10 * 60 * 1000
"""How far in the future a document may be issued before it is refused."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this device is: the enrolment is the fingerprint of its key."""

    tenant: str
    device: str
    enrolment: str


@dataclass(frozen=True, slots=True)
class Obeyed:
    """What is remembered of the last document that was obeyed."""

    epoch: int = 0
    generation: int = 0
    slots_digest: str = ""
    issued: int = 0


def sign_desired(desired: Desired, fleet_key: PrivateKey) -> bytes:
    """The envelope that is published on the ``desired`` topic."""
    return seal_envelope(PayloadType.DESIRED, canonical_json(desired), fleet_key)


def slots_digest(desired: Desired) -> str:
    """Digest of what the document asks for, apart from its dates."""
    return sha256_digest(canonical_json(desired.slots))


def accept_desired(
    raw: bytes,
    *,
    keyring: Keyring,
    identity: Identity,
    obeyed: Obeyed,
    now_ms: int,
    clock_is_behind: bool = False,
) -> Desired:
    """Verify a desired document and decide whether it is to be obeyed.

    Args:
        raw: The retained message as it came.
        keyring: The verified keyring.
        identity: Who this device is.
        obeyed: The last document that was obeyed.
        now_ms: The trusted time, milliseconds since 1970 UTC.
        clock_is_behind: ``now_ms`` is only a lower bound (see :mod:`.clock`), so that nothing can
            be dated in the future of it.

    Raises:
        MalformedDocumentError: It does not decode.
        UntrustedDocumentError: With code ``unknown-key``, ``revoked-key``, ``bad-signature``,
            ``wrong-device``, ``wrong-enrolment``, ``wrong-epoch``, ``old-generation``,
            ``equivocation``, ``replay``, ``expired`` or ``future-dated``.
    """
    body = _open(raw, keyring)
    desired = decode(body, Desired, what="desired document", max_bytes=LIMITS.desired_bytes)
    _check_recipient(desired, identity)
    _check_order(desired, keyring.epoch, obeyed)
    _check_dates(desired, now_ms, clock_is_behind=clock_is_behind)
    return desired


def _open(raw: bytes, keyring: Keyring) -> bytes:
    what, most = "desired document", LIMITS.desired_bytes
    try:
        return open_envelope(
            raw, PayloadType.DESIRED, keyring.fleet_keys(), what=what, max_bytes=most
        )
    except UntrustedDocumentError as error:
        revoked = claimed_signers(raw, what=what, max_bytes=most) & set(keyring.revoked_fleets)
        if error.code != "unknown-key" or not revoked:
            raise
        raise UntrustedDocumentError(
            f"the desired document is signed by fleet key {min(revoked)[:16]}, which keyring "
            f"version {keyring.version} revokes",
            code="revoked-key",
        ) from error


def _check_recipient(desired: Desired, identity: Identity) -> None:
    if (desired.tenant, desired.device) != (identity.tenant, identity.device):
        raise UntrustedDocumentError(
            f"the desired document is for {desired.tenant}/{desired.device}, "
            f"this is {identity.tenant}/{identity.device}",
            code="wrong-device",
        )
    if desired.enrolment != identity.enrolment:
        raise UntrustedDocumentError(
            f"the desired document is for enrolment {desired.enrolment[:16]}, "
            f"this device was enrolled as {identity.enrolment[:16]}",
            code="wrong-enrolment",
        )


def _check_order(desired: Desired, epoch: int, obeyed: Obeyed) -> None:
    if desired.epoch != epoch:
        raise UntrustedDocumentError(
            f"the desired document has epoch {desired.epoch}, the keyring {epoch}",
            code="wrong-epoch",
        )
    if desired.epoch > obeyed.epoch:
        return
    if desired.generation < obeyed.generation:
        raise UntrustedDocumentError(
            f"the desired document has generation {desired.generation}, "
            f"but {obeyed.generation} was obeyed before",
            code="old-generation",
        )
    if desired.generation > obeyed.generation:
        return
    if slots_digest(desired) != obeyed.slots_digest:
        raise UntrustedDocumentError(
            f"two desired documents of generation {desired.generation} ask for different things",
            code="equivocation",
        )
    if desired.issued < obeyed.issued:
        raise UntrustedDocumentError(
            "an older copy of the desired document that is obeyed already", code="replay"
        )


def _check_dates(desired: Desired, now_ms: int, *, clock_is_behind: bool) -> None:
    if desired.issued > now_ms + CLOCK_SKEW_MS and not clock_is_behind:
        raise UntrustedDocumentError(
            f"the desired document is dated {(desired.issued - now_ms) // 1000} s in the future; "
            "check the clocks of the fleet service and of this device",
            code="future-dated",
        )
    if desired.expires < now_ms:
        raise UntrustedDocumentError(
            f"the desired document expired {(now_ms - desired.expires) // 1000} s ago by the clock "
            "of this device, which may be wrong; what is running goes on running",
            code="expired",
        )

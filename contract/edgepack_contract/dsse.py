"""Dead Simple Signing Envelopes (DSSE v1.0.2): signatures that bind the type of what they sign.

Every document of edgepack has its own payload type, so that a signature over one can never be
presented as a signature over another.
"""

from __future__ import annotations

import base64
import binascii
from enum import StrEnum

import msgspec

from edgepack_contract.canonical import canonical_json, decode
from edgepack_contract.errors import MalformedDocumentError, UntrustedDocumentError
from edgepack_contract.keys import PrivateKey, PublicKey

MAX_SIGNATURES = 32
"""How many are looked at: those of the largest set of owners and of the one that follows it."""


class PayloadType(StrEnum):
    """What an envelope may contain."""

    DESIRED = "application/vnd.edgepack.desired.v1+json"
    KEYRING = "application/vnd.edgepack.keyring.v1+json"
    RENEWAL = "application/vnd.edgepack.renewal.v1+json"
    IN_TOTO = "application/vnd.in-toto+json"


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signature: ``keyid`` is the fingerprint of the key, ``sig`` base64 of DER."""

    keyid: str
    sig: str


class Envelope(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """A DSSE envelope; ``payload`` is base64 of the exact signed bytes."""

    payload_type: str
    payload: str
    signatures: list[Signature]


def pae(payload_type: str, body: bytes) -> bytes:
    """The pre-authentication encoding: what is really signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)


def seal_envelope(payload_type: PayloadType, body: bytes, *signers: PrivateKey) -> bytes:
    """Sign ``body`` with every signer and return the envelope's bytes."""
    signed = pae(payload_type, body)
    envelope = Envelope(
        payload_type=payload_type,
        payload=base64.b64encode(body).decode(),
        signatures=[_signature(signer, signed) for signer in signers],
    )
    return canonical_json(envelope)


def countersign_envelope(raw: bytes, signer: PrivateKey, *, what: str, max_bytes: int) -> bytes:
    """The envelope with one more signature, over its bytes as they are; others' are not checked.

    Raises:
        MalformedDocumentError: The envelope does not decode.
    """
    envelope = decode(raw, Envelope, what=what, max_bytes=max_bytes)
    body = _unbase64(envelope.payload, what)
    one = _signature(signer, pae(envelope.payload_type, body))
    others = [other for other in envelope.signatures if other.keyid != one.keyid]
    return canonical_json(msgspec.structs.replace(envelope, signatures=[*others, one]))


def open_envelope(
    raw: bytes,
    payload_type: PayloadType,
    keys: dict[str, PublicKey],
    *,
    what: str,
    max_bytes: int,
    threshold: int = 1,
) -> bytes:
    """Return the payload when ``threshold`` distinct keys of ``keys`` signed it.

    Args:
        raw: The envelope's bytes.
        payload_type: The only type that is accepted.
        keys: Trusted keys by fingerprint.
        what: The name of the document, for errors.
        max_bytes: The largest envelope that is looked at.
        threshold: How many different keys must have signed.

    Raises:
        MalformedDocumentError: The envelope does not decode or has another type.
        UntrustedDocumentError: Too few of the signatures are good signatures of trusted keys.
    """
    envelope = decode(raw, Envelope, what=what, max_bytes=max_bytes)
    if envelope.payload_type != payload_type:
        raise MalformedDocumentError(
            f"{what} is of type {envelope.payload_type[:80]!r}, expected {payload_type.value!r}",
            code="wrong-type",
        )
    body = _unbase64(envelope.payload, what)
    good = {
        signature.keyid
        for signature in envelope.signatures[:MAX_SIGNATURES]
        if signature.keyid in keys and _holds(keys[signature.keyid], signature, envelope, body)
    }
    if len(good) < threshold:
        raise _too_few(envelope, keys, what=what, good=len(good), threshold=threshold)
    return body


def claimed_payload(raw: bytes, *, what: str, max_bytes: int) -> bytes:
    """The payload of an envelope that nobody has verified: for finding out which keys to check.

    Raises:
        MalformedDocumentError: The envelope does not decode.
    """
    return _unbase64(decode(raw, Envelope, what=what, max_bytes=max_bytes).payload, what)


def claimed_signers(raw: bytes, *, what: str, max_bytes: int) -> set[str]:
    """The fingerprints of the keys that an envelope says it is signed by.

    Raises:
        MalformedDocumentError: The envelope does not decode.
    """
    envelope = decode(raw, Envelope, what=what, max_bytes=max_bytes)
    return {signature.keyid for signature in envelope.signatures[:MAX_SIGNATURES]}


def _signature(signer: PrivateKey, signed: bytes) -> Signature:
    return Signature(
        keyid=signer.public.fingerprint, sig=base64.b64encode(signer.sign(signed)).decode()
    )


def _holds(key: PublicKey, signature: Signature, envelope: Envelope, body: bytes) -> bool:
    try:
        key.verify(_unbase64(signature.sig, "signature"), pae(envelope.payload_type, body))
    except (UntrustedDocumentError, MalformedDocumentError):
        return False
    return True


def _too_few(
    envelope: Envelope, keys: dict[str, PublicKey], *, what: str, good: int, threshold: int
) -> UntrustedDocumentError:
    named = [signature.keyid[:16] for signature in envelope.signatures[:MAX_SIGNATURES]]
    if not any(signature.keyid in keys for signature in envelope.signatures[:MAX_SIGNATURES]):
        return UntrustedDocumentError(
            f"{what} is signed by {', '.join(named) or 'nobody'}, not by a trusted key "
            f"({', '.join(sorted(key[:16] for key in keys)) or 'none is trusted'})",
            code="unknown-key",
        )
    return UntrustedDocumentError(
        f"{what} has {good} good signatures of trusted keys, {threshold} are needed: "
        "its bytes were altered, or signed by someone else",
        code="bad-signature",
    )


def _unbase64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedDocumentError(f"{what} is not base64", code="bad-base64") from error

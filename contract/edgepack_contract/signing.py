"""Signatures of bundles: OpenSSF Model Signing v1.0, made and checked with ``cryptography`` alone.

A signature is a Sigstore bundle v0.3 that holds a DSSE envelope around an in-toto statement. The
statement lists every file of the unpacked tree with its SHA-256, and its subject is the SHA-256 of
those digests in that order. Sources: the model-signing specification v1.0 and DSSE v1.0.2.

The check is stricter than the specification where that leaves room for bytes nobody vouched for:
only whole files and SHA-256, no symbolic links, no ignored paths beyond those of git and of the
signature itself, exactly one signature, sorted resources, no unknown fields, and none of the
pre-1.0 forms. The key is chosen among trusted keys by the hint, never taken from the file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import msgspec

from edgepack_contract.bundle_json import decode_bundle_json
from edgepack_contract.canonical import canonical_json
from edgepack_contract.dsse import PayloadType, pae
from edgepack_contract.errors import (
    MalformedBundleError,
    UntrustedBundleError,
    UntrustedDocumentError,
)
from edgepack_contract.keys import PrivateKey, PublicKey
from edgepack_contract.limits import LIMITS

SIGNATURE_FILE = "bundle.sig"
SIGNATURE_NAMES = frozenset({SIGNATURE_FILE, "model.sig"})
"""The name ``unpack`` gives a signature, and the name model_signing gives it."""

GIT_PATHS = frozenset({".git", ".gitattributes", ".github", ".gitignore"})
"""What model_signing ignores in a tree unless it is told otherwise."""

_MAX_RESOURCES = LIMITS.variants * (LIMITS.files_per_variant + 1) + 2

HexDigest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
ResourceName = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class SubjectDigest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The digest of the whole tree."""

    sha256: HexDigest


class Subject(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed; the name is the signer's folder and means nothing."""

    name: str
    digest: SubjectDigest


class Resource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of the tree."""

    name: ResourceName
    algorithm: Literal["sha256"]
    digest: HexDigest


class Serialization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the tree was hashed: only whole files are accepted."""

    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: bool
    ignore_paths: Annotated[list[str], msgspec.Meta(max_length=16)] = []


class Predicate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The predicate of model signing v1.0."""

    serialization: Serialization
    resources: Annotated[list[Resource], msgspec.Meta(min_length=1, max_length=_MAX_RESOURCES)]


class Statement(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """The in-toto statement."""

    type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: Annotated[list[Subject], msgspec.Meta(min_length=1, max_length=1)]
    predicate_type: Literal["https://model_signing/signature/v1.0"]
    predicate: Predicate


class EnvelopeSignature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signature; model signing leaves ``keyid`` empty and names the key by the hint."""

    sig: str
    keyid: Literal[""] = ""


class SignedEnvelope(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """The DSSE envelope as Sigstore writes it."""

    payload: str
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: Annotated[list[EnvelopeSignature], msgspec.Meta(min_length=1, max_length=1)]


class KeyHint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names the key: the SHA-256 of its PEM."""

    hint: HexDigest


class VerificationMaterial(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """A key's hint; certificates and transparency logs are another way to sign, not this one."""

    public_key: KeyHint
    tlog_entries: Annotated[list[str], msgspec.Meta(max_length=0)] = []


class SigstoreBundle(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """The signature file."""

    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: VerificationMaterial
    dsse_envelope: SignedEnvelope


def key_hint(key: PublicKey) -> str:
    """The name of a key inside a signature: SHA-256 of its PEM, in hex."""
    return hashlib.sha256(key.pem).hexdigest()


def sign_tree(digests: Mapping[str, str], signer: PrivateKey, *, name: str) -> bytes:
    """Sign a tree of files; the same key and tree give the same bytes.

    Args:
        digests: ``sha256:<hex>`` by the file's path in the tree.
        signer: The publisher's key.
        name: The subject's name, for people.

    Returns:
        The signature file.
    """
    payload = canonical_json(_statement(digests, name))
    signature = signer.sign(pae(PayloadType.IN_TOTO, payload))
    return canonical_json(
        SigstoreBundle(
            media_type="application/vnd.dev.sigstore.bundle.v0.3+json",
            verification_material=VerificationMaterial(
                public_key=KeyHint(hint=key_hint(signer.public))
            ),
            dsse_envelope=SignedEnvelope(
                payload=base64.b64encode(payload).decode(),
                payload_type="application/vnd.in-toto+json",
                signatures=[EnvelopeSignature(sig=base64.b64encode(signature).decode())],
            ),
        )
    )


def verify_statement(raw: bytes, keys: Iterable[PublicKey]) -> tuple[PublicKey, dict[str, str]]:
    """Check a signature file against trusted keys.

    Args:
        raw: The signature file.
        keys: The keys that are trusted.

    Returns:
        The key that signed, and ``sha256:<hex>`` by path for each file that it vouches for.

    Raises:
        MalformedBundleError: It does not decode, or says something that is not accepted.
        UntrustedBundleError: It was not made by one of ``keys``, or over other bytes.
    """
    bundle = decode_bundle_json(
        raw, SigstoreBundle, what="signature", max_bytes=LIMITS.signature_bytes
    )
    key = _named_key(bundle.verification_material.public_key.hint, keys)
    envelope = bundle.dsse_envelope
    payload = _unbase64(envelope.payload)
    try:
        key.verify(_unbase64(envelope.signatures[0].sig), pae(PayloadType.IN_TOTO, payload))
    except UntrustedDocumentError as error:
        raise UntrustedBundleError(
            f"the bundle's signature names key {key.fingerprint[:16]}, but does not hold: it was "
            "altered, or made by someone else",
            code="bad-signature",
        ) from error
    return key, _signed_files(payload)


def _statement(digests: Mapping[str, str], name: str) -> Statement:
    # model_signing sorts by path parts, where "a/x" is before "a-b/x", not by characters
    resources = [
        Resource(name=path, algorithm="sha256", digest=digests[path].removeprefix("sha256:"))
        for path in sorted(digests, key=_path_order)
    ]
    return Statement(
        type="https://in-toto.io/Statement/v1",
        subject=[Subject(name=name, digest=SubjectDigest(sha256=_root_digest(resources)))],
        predicate_type="https://model_signing/signature/v1.0",
        predicate=Predicate(
            serialization=Serialization(
                method="files",
                hash_type="sha256",
                allow_symlinks=False,
                ignore_paths=sorted(GIT_PATHS),
            ),
            resources=resources,
        ),
    )


def _path_order(path: str) -> list[str]:
    return path.split("/")


def _root_digest(resources: list[Resource]) -> str:
    digests = b"".join(bytes.fromhex(resource.digest) for resource in resources)
    return hashlib.sha256(digests).hexdigest()


def _named_key(hint: str, keys: Iterable[PublicKey]) -> PublicKey:
    by_hint = {key_hint(key): key for key in keys}
    key = by_hint.get(hint)
    if key is None:
        known = ", ".join(sorted(one.fingerprint[:16] for one in by_hint.values())) or "none"
        raise UntrustedBundleError(
            f"the bundle is signed by an unknown key (SHA-256 of its PEM {hint[:16]}), trusted are "
            f"the keys {known}; sign it with a trusted key, or have the owner add this key to the "
            "keyring",
            code="unknown-publisher",
        )
    return key


def _signed_files(payload: bytes) -> dict[str, str]:
    statement = decode_bundle_json(
        payload, Statement, what="signed statement", max_bytes=LIMITS.signature_bytes
    )
    resources = statement.predicate.resources
    names = [resource.name for resource in resources]
    if names != sorted(set(names), key=_path_order):
        raise _refused("its resources are not sorted, or one is there twice")
    if statement.subject[0].digest.sha256 != _root_digest(resources):
        raise _refused("its subject is not the digest of its resources")
    _check_serialization(statement.predicate.serialization, names)
    return {resource.name: f"sha256:{resource.digest}" for resource in resources}


def _check_serialization(serialization: Serialization, names: list[str]) -> None:
    if serialization.allow_symlinks:
        raise _refused("it allows symbolic links")
    ignored = serialization.ignore_paths
    beyond_git = set(ignored) - GIT_PATHS
    if len(set(ignored)) != len(ignored) or (ignored and not set(ignored) >= GIT_PATHS):
        raise _refused("its ignored paths are not those of git")
    if len(beyond_git) > 1 or not beyond_git <= SIGNATURE_NAMES:
        raise _refused(f"it leaves {', '.join(sorted(beyond_git))[:200]} out, so nobody signed it")
    for name in names:
        if name.split("/")[0] in ignored:
            raise _refused(f"it both lists and ignores {name[:120]!r}")


def _refused(why: str) -> MalformedBundleError:
    return MalformedBundleError(f"signed statement: {why}", code="bad-statement")


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedBundleError("signature: not base64", code="bad-base64") from error

"""The pure core of reading a bundle: bytes go in, and come out proven or refused.

:class:`TrustedBundle` starts from the bytes of the bundle index, whose digest is the bundle's
identity. Each later step takes bytes and proves them through what is already trusted: index ->
variant manifest -> layers. It does no IO and decides alone what is genuine.

The signature lists every file of the unpacked tree: ``bundle-index.json``, each
``<variant>/<path>``, and ``evidence-manifest.json`` where there is evidence, which is how the
evidence's digest is signed without being part of the identity. So one variant can be downloaded and
proven alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from edgepack_contract.description import DESCRIPTION_PATH, Description, parse_description
from edgepack_contract.digest import sha256_digest
from edgepack_contract.errors import MalformedBundleError, UntrustedBundleError
from edgepack_contract.keyring import Keyring
from edgepack_contract.oci import (
    EVIDENCE_TYPE,
    MODEL_CONFIG_TYPE,
    MODEL_TYPE,
    SIGNATURE_TYPE,
    Descriptor,
    ImageIndex,
    Key,
    Manifest,
    index_annotations,
    layer_paths,
    parse_index,
    parse_manifest,
    variant_descriptor,
)
from edgepack_contract.signing import verify_statement
from edgepack_contract.variants import Variant, read_variants

INDEX_FILE = "bundle-index.json"
EVIDENCE_FILE = "evidence-manifest.json"


@dataclass(frozen=True, slots=True)
class TrustedVariant:
    """One variant whose manifest and description are proven; its layers are by their digests."""

    variant: Variant
    raw_manifest: bytes
    manifest: Manifest
    layers: Mapping[str, Descriptor]
    description: Description


@dataclass(frozen=True, slots=True)
class TrustedBundle:
    """A bundle index that is what it should be, and what is proven through it.

    ``digest`` is the identity. ``signed_by`` is the fingerprint of the publisher key, None as long
    as no signature was checked; ``signed_files`` are then the digests it vouches for, by path.
    """

    digest: str
    raw_index: bytes
    index: ImageIndex
    signed_by: str | None = None
    signed_files: Mapping[str, str] | None = None

    @classmethod
    def from_index(
        cls, raw: bytes, *, expected: str | None = None, name: str | None = None
    ) -> TrustedBundle:
        """Start from the bytes of a bundle index.

        Args:
            raw: The bytes.
            expected: The digest that they must have; None accepts any.
            name: The bundle's name, where it is known beforehand.

        Raises:
            MalformedBundleError: Another digest or name, or not a bundle index.
        """
        digest = sha256_digest(raw)
        if expected is not None and digest != expected:
            raise MalformedBundleError(
                f"the bundle index has digest {digest}, expected {expected}", code="wrong-digest"
            )
        bundle = cls(digest=digest, raw_index=raw, index=parse_index(raw))
        if name is not None and bundle.name != name:
            raise MalformedBundleError(
                f"this is bundle {bundle.name!r}, expected {name!r}", code="wrong-bundle"
            )
        return bundle

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.index.annotations[Key.NAME]

    @property
    def version(self) -> str:
        """The bundle's semantic version."""
        return self.index.annotations[Key.VERSION]

    @property
    def security_version(self) -> int:
        """The publisher's floor: devices refuse bundles of a lower one."""
        return int(self.index.annotations[Key.SECURITY_VERSION])

    @property
    def variants(self) -> list[Variant]:
        """The variants in the order of the index, most generic first."""
        return read_variants(self.index)

    @property
    def evidence_digest(self) -> str | None:
        """The signed digest of the evidence manifest; None without."""
        return None if self.signed_files is None else self.signed_files.get(EVIDENCE_FILE)

    def signature_manifest(self, raw: bytes) -> Manifest:
        """The manifest of this bundle's signature; its one layer is the signature file.

        Raises:
            MalformedBundleError: It is not the manifest of this bundle's signature.
        """
        what = "signature manifest"
        manifest = parse_manifest(raw, what=what, artifact_type=SIGNATURE_TYPE)
        self._check_subject(manifest, what=what)
        if len(manifest.layers) != 1 or manifest.layers[0].media_type != SIGNATURE_TYPE:
            raise MalformedBundleError(
                f"{what} must have one layer, a Sigstore bundle", code="bad-manifest"
            )
        return manifest

    def with_signature(self, raw_signature: bytes, keyring: Keyring) -> TrustedBundle:
        """This bundle, vouched for by a publisher of ``keyring``.

        Raises:
            MalformedBundleError: The signature does not decode, or does not list this bundle's
                tree.
            UntrustedBundleError: No publisher that may sign this bundle made it, or it was made for
                another bundle.
        """
        trusted = [key for key, _ in keyring.publisher_keys().values()]
        key, files = verify_statement(raw_signature, trusted)
        if files.get(INDEX_FILE) != self.digest:
            raise UntrustedBundleError(
                f"the signature vouches for bundle {files.get(INDEX_FILE)}, this is {self.digest}",
                code="wrong-bundle",
            )
        keyring.publisher_for(name=self.name, digest=self.digest, fingerprint=key.fingerprint)
        self._check_tree(files)
        return dataclasses.replace(self, signed_by=key.fingerprint, signed_files=files)

    def variant_manifest(self, variant: Variant, raw: bytes) -> Manifest:
        """The manifest of one of this bundle's variants.

        Raises:
            MalformedBundleError: Not the bytes that the index names, or not a variant manifest.
            UntrustedBundleError: The signature vouches for other files.
        """
        what = f"manifest of variant {variant.name}"
        check_bytes(raw, variant.manifest, what=what)
        manifest = parse_manifest(raw, what=what, artifact_type=MODEL_TYPE)
        if manifest.config.media_type != MODEL_CONFIG_TYPE or manifest.subject is not None:
            raise MalformedBundleError(
                f"{what} must have a ModelPack config and no subject", code="bad-manifest"
            )
        layers = layer_paths(manifest, what=what)
        if DESCRIPTION_PATH not in layers:
            raise MalformedBundleError(f"{what} has no {DESCRIPTION_PATH}", code="bad-manifest")
        if self.signed_files is not None:
            _check_equal_files(what, layers, self._signed_part(variant.name))
        return manifest

    def describe_variant(
        self, variant: Variant, raw_manifest: bytes, raw_description: bytes
    ) -> TrustedVariant:
        """A variant whose ``edgepack.json`` says what index and manifest say.

        Raises:
            MalformedBundleError: Not the bytes that index and manifest name, not a description, or
                one that contradicts them.
            UntrustedBundleError: The signature vouches for other files.
        """
        manifest = self.variant_manifest(variant, raw_manifest)
        what = f"variant {variant.name}"
        layers = layer_paths(manifest, what=what)
        check_bytes(raw_description, layers[DESCRIPTION_PATH], what=f"{what}: {DESCRIPTION_PATH}")
        description = parse_description(raw_description)
        self._check_agreement(variant, description, what)
        listed = {entry.path: (entry.size, entry.digest) for entry in description.files}
        carried = {path: (layer.size, layer.digest) for path, layer in layers.items()}
        del carried[DESCRIPTION_PATH]
        if listed != carried:
            odd = min(set(listed.items()) ^ set(carried.items()))[0]
            raise MalformedBundleError(
                f"{what}: {odd} is not the same in {DESCRIPTION_PATH} and in the manifest",
                code="wrong-files",
            )
        return TrustedVariant(variant, raw_manifest, manifest, layers, description)

    def evidence_manifest(self, raw: bytes) -> Manifest:
        """The evidence manifest: the signed one, when a signature was checked.

        Raises:
            MalformedBundleError: It does not decode, or is the evidence of another bundle.
            UntrustedBundleError: The signature does not vouch for it.
        """
        if self.signed_files is not None and sha256_digest(raw) != self.evidence_digest:
            raise UntrustedBundleError(
                f"the evidence manifest has digest {sha256_digest(raw)}, signed is "
                f"{self.evidence_digest or 'none'}",
                code="wrong-evidence",
            )
        manifest = parse_manifest(raw, what="evidence manifest", artifact_type=EVIDENCE_TYPE)
        self._check_subject(manifest, what="evidence manifest")
        layer_paths(manifest, what="evidence manifest")
        return manifest

    def _check_subject(self, manifest: Manifest, *, what: str) -> None:
        subject = manifest.subject
        if subject is None or subject.digest != self.digest or subject.size != len(self.raw_index):
            raise MalformedBundleError(f"{what} is not about this bundle", code="wrong-bundle")

    def _check_tree(self, files: Mapping[str, str]) -> None:
        folders = {path.split("/")[0] for path in files if "/" in path}
        loose = {path for path in files if "/" not in path} - {INDEX_FILE, EVIDENCE_FILE}
        names = {variant.name for variant in self.variants}
        if loose or folders != names:
            odd = ", ".join(sorted(loose | (folders ^ names)))
            raise MalformedBundleError(
                f"signed statement: it and the bundle index disagree on {odd[:200]}",
                code="bad-statement",
            )

    def _signed_part(self, variant: str) -> dict[str, str]:
        prefix = f"{variant}/"
        files = self.signed_files or {}
        return {
            path.removeprefix(prefix): digest
            for path, digest in files.items()
            if path.startswith(prefix)
        }

    def _check_agreement(self, variant: Variant, description: Description, what: str) -> None:
        entry = variant.manifest
        claimed = variant_descriptor(description, digest=entry.digest, size=entry.size)
        here: dict[str, object] = {**index_annotations(description), **claimed.annotations}
        there: dict[str, object] = {**self.index.annotations, **entry.annotations}
        here["platform"], there["platform"] = claimed.platform, entry.platform
        for field in sorted(set(here) | set(there)):
            if here.get(field) != there.get(field):
                raise MalformedBundleError(
                    f"{what}: {field} is {here.get(field)!r} in {DESCRIPTION_PATH} and "
                    f"{there.get(field)!r} in the bundle index",
                    code="wrong-description",
                )


def check_bytes(raw: bytes, descriptor: Descriptor, *, what: str) -> None:
    """Check that ``raw`` is what ``descriptor`` describes.

    Raises:
        MalformedBundleError: It is not.
    """
    if len(raw) != descriptor.size or sha256_digest(raw) != descriptor.digest:
        raise other_bytes(what, sha256_digest(raw), descriptor)


def _check_equal_files(
    what: str, layers: Mapping[str, Descriptor], signed: Mapping[str, str]
) -> None:
    carried = {path: layer.digest for path, layer in layers.items()}
    if carried != signed:
        odd = min(set(carried.items()) ^ set(signed.items()))[0]
        raise UntrustedBundleError(
            f"{what}: the signature vouches for another {odd} than the manifest names",
            code="wrong-files",
        )


def other_bytes(what: str, found: str, descriptor: Descriptor) -> MalformedBundleError:
    """The error for bytes that are not those of ``descriptor``."""
    return MalformedBundleError(
        f"{what}: its bytes have digest {found}, expected {descriptor.size} bytes with "
        f"{descriptor.digest}",
        code="wrong-digest",
    )

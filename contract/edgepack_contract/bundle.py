"""Open a bundle that is somewhere: an archive on disk or a registry.

This is the shell around :mod:`edgepack_contract.trusted`: it fetches bytes from a
:class:`BlobSource`, which is never trusted, and hands them to the core that proves them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, Self

from edgepack_contract.description import DESCRIPTION_PATH
from edgepack_contract.digest import CHUNK_BYTES
from edgepack_contract.errors import MalformedBundleError, SourceError, UntrustedBundleError
from edgepack_contract.keyring import Keyring
from edgepack_contract.limits import LIMITS
from edgepack_contract.oci import Descriptor, evidence_tag, layer_paths, signature_tag
from edgepack_contract.oci_layout import (
    BLOB_FOLDER,
    INDEX_ENTRY,
    LAYOUT_ENTRY,
    LAYOUT_JSON,
    blob_entry,
    bundle_entry,
    is_blob_entry,
    read_layout_index,
)
from edgepack_contract.trusted import TrustedBundle, TrustedVariant, check_bytes, other_bytes
from edgepack_contract.ustar import UstarReader
from edgepack_contract.variants import Variant


class BlobSource(Protocol):
    """A place that has bundles: an archive, a registry. It is not trusted."""

    def resolve(self, reference: str) -> bytes | None:
        """The index or manifest under a tag or a digest; None when there is no such reference.

        At most ``LIMITS.manifest_bytes`` are read.
        """
        ...

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """A stream of a blob's bytes; the caller checks them."""
        ...


class BundleFile:
    """A bundle in one file; a :class:`BlobSource`. Use it as a context manager."""

    def __init__(self, archive: UstarReader, tags: dict[str, Descriptor]) -> None:
        self._archive = archive
        self.tags = tags

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a ``.edgepack`` file and check everything outside its blobs.

        Raises:
            MalformedBundleError: Not an archive of an OCI layout that holds one bundle.
            OSError: The file cannot be read.
        """
        archive = UstarReader.open(path)
        try:
            _check_names(archive)
            if archive.read(LAYOUT_ENTRY, max_bytes=len(LAYOUT_JSON)) != LAYOUT_JSON:
                raise MalformedBundleError("not an OCI layout of version 1.0.0", code="bad-layout")
            raw = archive.read(INDEX_ENTRY, max_bytes=LIMITS.oci_index_bytes)
            tags = read_layout_index(raw)
            _check_tagged(archive, tags)
            return cls(archive, tags)
        except BaseException:
            archive.close()
            raise

    @property
    def digest(self) -> str:
        """The digest that the file claims for its bundle; :func:`open_bundle` proves it."""
        return bundle_entry(self.tags)[1].digest

    def blobs(self) -> dict[str, int]:
        """The size of every blob in the file, by digest."""
        return {
            f"sha256:{name.removeprefix(BLOB_FOLDER)}": entry.size
            for name, entry in self._archive.entries.items()
            if name.startswith(BLOB_FOLDER)
        }

    def resolve(self, reference: str) -> bytes | None:
        """See :class:`BlobSource`."""
        tagged = self.tags.get(reference)
        digest = reference if tagged is None else tagged.digest
        name = blob_entry(digest) if digest.startswith("sha256:") else ""
        if name not in self._archive.entries:
            return None
        raw = self._archive.read(name, max_bytes=LIMITS.manifest_bytes)
        if tagged is not None:
            check_bytes(raw, tagged, what=f"manifest under tag {reference}")
        return raw

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """See :class:`BlobSource`."""
        return self._archive.stream(blob_entry(descriptor.digest))

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_bundle(
    source: BlobSource, reference: str, *, keyring: Keyring | None, name: str | None = None
) -> TrustedBundle:
    """Fetch a bundle's index and its signature and prove them.

    Args:
        source: Where from.
        reference: The digest of the bundle, which is then required, or its version.
        keyring: Who may sign; None accepts an unsigned bundle and checks no signature, for looking
            at a bundle and for serving it to this machine alone.
        name: The bundle's name, where it is known beforehand.

    Raises:
        SourceError: The source does not have it.
        MalformedBundleError: The bytes do not follow the format.
        UntrustedBundleError: It is unsigned, or the keyring does not vouch for it.
    """
    raw = _resolve(source, reference, what="bundle")
    by_digest = reference.startswith("sha256:")
    bundle = TrustedBundle.from_index(raw, expected=reference if by_digest else None, name=name)
    if not by_digest and bundle.version != reference:
        raise MalformedBundleError(
            f"under tag {reference!r} is version {bundle.version}", code="wrong-bundle"
        )
    if keyring is None:
        return bundle
    raw_manifest = source.resolve(signature_tag(bundle.digest))
    if raw_manifest is None:
        raise UntrustedBundleError(
            f"bundle {bundle.name} {bundle.version} is not signed; sign it with a publisher key of "
            "the keyring: edgepack sign",
            code="unsigned",
        )
    (layer,) = bundle.signature_manifest(raw_manifest).layers
    raw_signature = read_blob(source, layer, what="signature", max_bytes=LIMITS.signature_bytes)
    return bundle.with_signature(raw_signature, keyring)


def open_variant(bundle: TrustedBundle, source: BlobSource, variant: Variant) -> TrustedVariant:
    """Fetch a variant's manifest and description and prove them.

    Raises:
        SourceError: The source does not have them.
        MalformedBundleError: The bytes are not those that the index names.
    """
    raw = _resolve(source, variant.manifest.digest, what=f"manifest of variant {variant.name}")
    manifest = bundle.variant_manifest(variant, raw)
    layer = layer_paths(manifest, what=variant.name)[DESCRIPTION_PATH]
    raw_description = read_blob(
        source, layer, what=DESCRIPTION_PATH, max_bytes=LIMITS.description_bytes
    )
    return bundle.describe_variant(variant, raw, raw_description)


def open_evidence(bundle: TrustedBundle, source: BlobSource) -> dict[str, Descriptor]:
    """Fetch the evidence manifest and prove it; the evidence's files by path, none without.

    Raises:
        MalformedBundleError: It does not decode, or is the evidence of another bundle.
        UntrustedBundleError: The signature does not vouch for it.
    """
    raw = source.resolve(evidence_tag(bundle.digest))
    if raw is None:
        return {}
    return layer_paths(bundle.evidence_manifest(raw), what="evidence manifest")


def read_blob(source: BlobSource, descriptor: Descriptor, *, what: str, max_bytes: int) -> bytes:
    """All bytes of a blob, proven.

    Raises:
        MalformedBundleError: Larger than ``max_bytes``, or not the bytes that are described.
    """
    if descriptor.size > max_bytes:
        raise MalformedBundleError(
            f"{what} has {descriptor.size} bytes, at most {max_bytes} are accepted",
            code="too-large",
        )
    return b"".join(proven_chunks(source, descriptor, what=what))


def copy_blob(descriptor: Descriptor, source: BlobSource, target: BinaryIO, *, what: str) -> None:
    """Copy a blob, hashing what is written; after an error ``target`` holds unproven bytes.

    Raises:
        MalformedBundleError: It is shorter, longer or other than described.
    """
    target.writelines(proven_chunks(source, descriptor, what=what))


def verify_layers(variant: TrustedVariant, source: BlobSource) -> None:
    """Hash every layer and the config of a variant, in a stream.

    Raises:
        MalformedBundleError: One has other bytes than the manifest names.
    """
    verify_blob(variant.manifest.config, source, what=f"{variant.variant.name}: config")
    for path, layer in variant.layers.items():
        verify_blob(layer, source, what=f"{variant.variant.name}/{path}")


def verify_blob(descriptor: Descriptor, source: BlobSource, *, what: str) -> None:
    """Hash one blob in a stream.

    Raises:
        MalformedBundleError: It is shorter, longer or other than described.
    """
    for _ in proven_chunks(source, descriptor, what=what):
        pass


def proven_chunks(source: BlobSource, descriptor: Descriptor, *, what: str) -> Iterator[bytes]:
    """The bytes of a blob, piece by piece; they are proven once the iteration ends without error.

    Raises:
        MalformedBundleError: It is shorter, longer or other than described.
    """
    hasher = hashlib.sha256()
    left = descriptor.size
    with source.open_blob(descriptor) as stream:
        while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
            hasher.update(chunk)
            left -= len(chunk)
            yield chunk
        if left or stream.read(1) or f"sha256:{hasher.hexdigest()}" != descriptor.digest:
            raise other_bytes(what, f"sha256:{hasher.hexdigest()}", descriptor)


def verify_bundle_file(
    file: BundleFile, *, keyring: Keyring | None, name: str | None = None
) -> TrustedBundle:
    """Prove everything in a file: each variant, each layer, the evidence, and nothing beside them.

    Raises:
        MalformedBundleError: The bytes do not follow the format, or a blob belongs to nothing.
        UntrustedBundleError: It is unsigned, or the keyring does not vouch for it.
    """
    bundle = open_bundle(file, file.digest, keyring=keyring, name=name)
    tagged = bundle_entry(file.tags)[0]
    if tagged != bundle.version:
        raise MalformedBundleError(
            f"index.json: tag {tagged!r} is on version {bundle.version}", code="wrong-bundle"
        )
    known = {bundle.digest} | _verify_attached(bundle, file)
    for variant in bundle.variants:
        found = open_variant(bundle, file, variant)
        verify_layers(found, file)
        known |= {variant.manifest.digest, found.manifest.config.digest}
        known |= {layer.digest for layer in found.layers.values()}
    strays = sorted(set(file.blobs()) - known)
    if strays:
        raise MalformedBundleError(
            f"bundle archive: nothing refers to {', '.join(strays)[:400]}", code="stray-blob"
        )
    return bundle


def _verify_attached(bundle: TrustedBundle, file: BundleFile) -> set[str]:
    """Check signature and evidence and return the digests of all their blobs."""
    known: set[str] = set()
    for tag in (signature_tag(bundle.digest), evidence_tag(bundle.digest)):
        raw = file.resolve(tag)
        if raw is None:
            continue
        manifest = (
            bundle.signature_manifest(raw)
            if tag.endswith(".sig")
            else bundle.evidence_manifest(raw)
        )
        for layer in (manifest.config, *manifest.layers):
            verify_blob(layer, file, what=f"{tag}: {layer.digest}")
            known.add(layer.digest)
        known.add(file.tags[tag].digest)
    return known


def _check_names(archive: UstarReader) -> None:
    for name in archive.entries:
        if name not in (LAYOUT_ENTRY, INDEX_ENTRY) and not is_blob_entry(name):
            raise MalformedBundleError(
                f"bundle archive: {name}: not a part of an OCI layout", code="bad-layout"
            )


def _check_tagged(archive: UstarReader, tags: dict[str, Descriptor]) -> None:
    for tag, descriptor in tags.items():
        size = archive.entry(blob_entry(descriptor.digest)).size
        if size != descriptor.size:
            raise MalformedBundleError(
                f"{INDEX_ENTRY}: {tag} has {descriptor.size} bytes, its blob has {size}",
                code="bad-layout",
            )


def _resolve(source: BlobSource, reference: str, *, what: str) -> bytes:
    raw = source.resolve(reference)
    if raw is None:
        raise SourceError(f"{what}: there is no {reference[:120]!r} here", code="not-found")
    return raw

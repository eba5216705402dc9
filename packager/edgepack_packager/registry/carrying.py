"""Carry a bundle into a registry and out of one, with its signature and its evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgepack_contract.bundle import BundleFile, open_variant, verify_bundle_file
from edgepack_contract.digest import sha256_digest
from edgepack_contract.errors import SourceError
from edgepack_contract.keyring import Keyring
from edgepack_contract.layout import copy_bundle
from edgepack_contract.oci import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    Manifest,
    evidence_tag,
    signature_tag,
)
from edgepack_contract.trusted import TrustedBundle
from edgepack_packager.errors import RecipeError
from edgepack_packager.registry.reference import Reference
from edgepack_packager.registry.repository import RegistryRepository

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did.

    Attributes:
        reference: Where the bundle is now, with its digest.
        digest: The bundle's digest.
        uploaded: Bytes of blobs that were sent.
        skipped: Bytes of blobs that were there, or came from another repository.
    """

    reference: str
    digest: str
    uploaded: int
    skipped: int


def push_bundle(
    path: Path,
    repository: RegistryRepository,
    *,
    keyring: Keyring | None = None,
    overwrite: bool = False,
    mount: str | None = None,
    tell: Tell,
) -> Pushed:
    """Send a bundle, its signature and its evidence; blobs that are there are not sent again.

    The index comes last, so that whoever sees the tag finds everything behind it.

    Args:
        path: The bundle file, which is proven first.
        repository: Where to; without a tag the bundle's version is the tag.
        keyring: Who may have signed it; None sends it unsigned too.
        overwrite: Whether the tag may be taken from another bundle.
        mount: Another repository of the registry that may have some blobs.
        tell: Told about each blob that is sent.

    Raises:
        BundleError: The file is not intact, or not vouched for.
        RecipeError: The tag is on another bundle.
        SourceError: The registry does not answer, or refuses.
    """
    with BundleFile.open(path) as file:
        bundle = verify_bundle_file(file, keyring=keyring)
        tag = repository.reference.tag or bundle.version
        known = repository.tagged(tag)
        if known not in (None, bundle.digest) and not overwrite:
            raise RecipeError(
                f"{repository.reference.host}/{repository.reference.repository}:{tag} is "
                f"{known}; a version is of one thing: choose another, or give --overwrite",
                code="output-exists",
            )
        manifests = _manifests(bundle, file)
        uploaded = skipped = 0
        for descriptor in _blobs(bundle, file):
            if _send(repository, file, descriptor, mount=mount, tell=tell):
                uploaded += descriptor.size
            else:
                skipped += descriptor.size
        for name, raw in manifests.items():
            repository.push_manifest(name, MANIFEST_TYPE, raw)
        repository.push_manifest(tag, INDEX_TYPE, bundle.raw_index)
    place = Reference(repository.reference.host, repository.reference.repository, tag)
    return Pushed(f"{place}@{bundle.digest}", bundle.digest, uploaded, skipped)


def pull_bundle(
    repository: RegistryRepository, path: Path, *, keyring: Keyring | None = None
) -> str:
    """Fetch a bundle, its signature and its evidence into a file.

    The file is the one that was pushed, byte for byte, when SOURCE_DATE_EPOCH was the same.

    Args:
        repository: Where from, with a tag or a digest.
        path: The file, which is replaced when it exists.
        keyring: Who may have signed it; None accepts anything that is intact.

    Returns:
        The digest of the bundle.

    Raises:
        RecipeError: Neither a tag nor a digest was given.
        SourceError: The registry does not answer, refuses, or has not got it.
        BundleError: Something else came than what was asked for, or nobody vouches for it.
        OSError: The file cannot be written.
    """
    reference = repository.reference
    if reference.digest is not None:
        return copy_bundle(repository, reference.digest, path, keyring=keyring)
    if reference.tag is None:
        raise RecipeError(
            f"say which bundle of {reference}: give :TAG or @sha256:DIGEST", code="bad-reference"
        )
    raw = repository.resolve(reference.tag)
    if raw is None:
        raise SourceError(f"there is no {reference}", code="not-found")
    # the tag may move while its parts come; the digest does not
    return copy_bundle(repository, sha256_digest(raw), path, keyring=keyring)


def _send(
    repository: RegistryRepository,
    file: BundleFile,
    descriptor: Descriptor,
    *,
    mount: str | None,
    tell: Tell,
) -> bool:
    if repository.has_blob(descriptor):
        return False
    tell(f"{descriptor.digest} ({descriptor.size} bytes)")
    with file.open_blob(descriptor) as stream:
        return repository.push_blob(descriptor, stream, mount=mount)


def _blobs(bundle: TrustedBundle, file: BundleFile) -> list[Descriptor]:
    """Everything that is no manifest, each once."""
    found: dict[str, Descriptor] = {}
    for variant in bundle.variants:
        proven = open_variant(bundle, file, variant)
        for one in (proven.manifest.config, *proven.layers.values()):
            found[one.digest] = one
    for tag, read in _attached(bundle):
        raw = file.resolve(tag)
        if raw is not None:
            manifest = read(raw)
            found |= {one.digest: one for one in (manifest.config, *manifest.layers)}
    return list(found.values())


def _manifests(bundle: TrustedBundle, file: BundleFile) -> dict[str, bytes]:
    """Every manifest by the name that it is pushed under: a digest, or a tag of its own."""
    named = [variant.manifest.digest for variant in bundle.variants]
    tags = [tag for tag, _ in _attached(bundle)]
    found = {name: file.resolve(name) for name in [*named, *tags]}
    return {name: raw for name, raw in found.items() if raw is not None}


def _attached(bundle: TrustedBundle) -> list[tuple[str, Callable[[bytes], Manifest]]]:
    return [
        (evidence_tag(bundle.digest), bundle.evidence_manifest),
        (signature_tag(bundle.digest), bundle.signature_manifest),
    ]

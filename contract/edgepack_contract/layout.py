"""Write bundles: from a build, from another place, with a signature; and unpack them into a tree.

Everything is written beside its place and renamed into it, so that a failure leaves nothing. What
was written is read back and proven before it gets its name.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgepack_contract.atomic import replacing
from edgepack_contract.bundle import (
    BlobSource,
    BundleFile,
    copy_blob,
    open_bundle,
    open_variant,
    read_blob,
    verify_bundle_file,
)
from edgepack_contract.canonical import canonical_json
from edgepack_contract.description import (
    DESCRIPTION_PATH,
    Description,
    FileEntry,
    is_file_path,
    parse_description,
)
from edgepack_contract.digest import digest_stream, sha256_digest
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.keyring import Keyring
from edgepack_contract.keys import PrivateKey
from edgepack_contract.limits import LIMITS
from edgepack_contract.oci import (
    EMPTY_JSON,
    EMPTY_TYPE,
    EVIDENCE_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    MODEL_CONFIG_TYPE,
    SIGNATURE_TYPE,
    Descriptor,
    ImageIndex,
    attached_manifest,
    describe,
    describe_bytes,
    evidence_tag,
    index_annotations,
    layer_type,
    model_config,
    signature_tag,
    variant_descriptor,
    variant_manifest,
)
from edgepack_contract.oci_layout import (
    INDEX_ENTRY,
    LAYOUT_ENTRY,
    LAYOUT_JSON,
    blob_entry,
    write_layout_index,
)
from edgepack_contract.signing import SIGNATURE_FILE, sign_tree
from edgepack_contract.trusted import EVIDENCE_FILE, INDEX_FILE, TrustedBundle
from edgepack_contract.ustar import NewEntry, source_date, write_ustar

Content = bytes | Path
"""The bytes of a file, or where they are."""


@dataclass(frozen=True, slots=True)
class VariantContent:
    """One variant: its description, whose ``files`` are filled in, and its files by path."""

    description: Description
    files: Mapping[str, Content]


@dataclass(frozen=True, slots=True)
class BundleContent:
    """What a bundle is made of; variants most generic first."""

    variants: Sequence[VariantContent]


class _Blobs:
    """The blobs of a bundle in the making, each once."""

    def __init__(self) -> None:
        self.entries: dict[str, NewEntry] = {}

    def add(self, descriptor: Descriptor, opener: Callable[[], BinaryIO]) -> Descriptor:
        name = blob_entry(descriptor.digest)
        self.entries[name] = NewEntry(name=name, size=descriptor.size, open=opener)
        return descriptor

    def add_bytes(self, media_type: str, data: bytes, *, path: str | None = None) -> Descriptor:
        return self.add(describe_bytes(media_type, data, path=path), partial(io.BytesIO, data))

    def add_file(self, path: str, content: Content) -> Descriptor:
        """Add a layer; its bytes are streamed when they are on disk."""
        if isinstance(content, bytes):
            return self.add_bytes(layer_type(path), content, path=path)
        with content.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest = digest_stream(stream, size=size, what=path)
        return self.add(
            describe(layer_type(path), digest, size, path=path), partial(_open, content)
        )

    def copy(self, descriptor: Descriptor, source: BlobSource) -> Descriptor:
        return self.add(descriptor, partial(source.open_blob, descriptor))


@dataclass(frozen=True, slots=True)
class _Draft:
    """Everything that goes into a file, with the tree that a signature is about."""

    name: str
    version: str
    raw_index: bytes
    tree: Mapping[str, str]
    blobs: _Blobs
    evidence: bytes | None = None
    signature: bytes | None = None

    @property
    def digest(self) -> str:
        return sha256_digest(self.raw_index)

    def signed(self, signer: PrivateKey | None) -> _Draft:
        if signer is None:
            return self
        raw = sign_tree(self.tree, signer, name=f"{self.name}-{self.version}")
        return replace(self, signature=raw)


def write_bundle(
    path: Path,
    content: BundleContent,
    *,
    signer: PrivateKey | None = None,
    evidence: Mapping[str, Content] | None = None,
) -> str:
    """Write a bundle; the same content gives the same bytes.

    Args:
        path: The file, which is replaced when it exists.
        content: The variants.
        signer: A publisher key; without it the bundle is unsigned.
        evidence: Measurements and reports by path, outside the identity.

    Returns:
        The digest of the bundle index, which is the bundle's identity.

    Raises:
        MalformedBundleError: The content contradicts itself or breaks a rule of the format; nothing
            is written.
        ConfigError: SOURCE_DATE_EPOCH is not a number of seconds.
        OSError: A file cannot be read or written.
    """
    draft = _draft_content(content)
    if evidence:
        draft = _attach_evidence(draft, evidence)
    return _publish(path, draft.signed(signer))


def outline(content: BundleContent) -> tuple[str, list[Description]]:
    """The identity that content will have, and its descriptions with their files; writes nothing.

    Raises:
        MalformedBundleError: The content contradicts itself or breaks a rule of the format.
        OSError: A file cannot be read.
    """
    draft = _draft_content(content)
    names = (variant.description.variant for variant in content.variants)
    return draft.digest, [_drafted(draft, f"{name}/{DESCRIPTION_PATH}") for name in names]


def _drafted(draft: _Draft, path: str) -> Description:
    with draft.blobs.entries[blob_entry(draft.tree[path])].open() as stream:
        return parse_description(stream.read(LIMITS.description_bytes + 1))


def sign_bundle(path_in: Path, path_out: Path, key: PrivateKey) -> str:
    """Write a signed copy of a bundle; an earlier signature is replaced, the identity stays.

    Returns:
        The digest of the bundle index.

    Raises:
        MalformedBundleError: The bundle is not intact; nothing is written.
        OSError: A file cannot be read or written.
    """
    with BundleFile.open(path_in) as file:
        verify_bundle_file(file, keyring=None)
        return _publish(path_out, _draft_copy(file, file.digest, keyring=None).signed(key))


def copy_bundle(source: BlobSource, reference: str, path: Path, *, keyring: Keyring | None) -> str:
    """Write a bundle that is elsewhere into a file, with its signature and its evidence.

    Args:
        source: Where from, a registry for example.
        reference: The version or the digest.
        path: The file, which is replaced when it exists.
        keyring: Who may sign; None accepts anything that is intact.

    Returns:
        The digest of the bundle index.

    Raises:
        SourceError: The source does not have it.
        MalformedBundleError: The bytes do not follow the format.
        UntrustedBundleError: It is unsigned, or the keyring does not vouch for it.
        OSError: The file cannot be written.
    """
    draft = _draft_copy(source, reference, keyring=keyring)
    raw_manifest = source.resolve(signature_tag(draft.digest))
    if raw_manifest is not None:
        bundle = TrustedBundle.from_index(draft.raw_index)
        (layer,) = bundle.signature_manifest(raw_manifest).layers
        raw = read_blob(source, layer, what="signature", max_bytes=LIMITS.signature_bytes)
        draft = replace(draft, signature=raw)
    return _publish(path, draft)


def unpack(file: BundleFile, folder: Path, *, keyring: Keyring | None = None) -> TrustedBundle:
    """Write the tree that a bundle's signature is about.

    The tree has ``bundle-index.json``, ``<variant>/<path>``, ``evidence-manifest.json`` where there
    is evidence, and ``bundle.sig`` where there is a signature. The reference tool accepts it:
    ``model_signing verify key FOLDER --signature FOLDER/bundle.sig --public_key KEY``.

    Raises:
        FileExistsError: The folder exists.
        MalformedBundleError: The bundle is not intact; nothing is left behind.
        UntrustedBundleError: ``keyring`` is given and does not vouch for it.
        OSError: A file cannot be written.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; unpack into a new folder")
    bundle = verify_bundle_file(file, keyring=keyring)
    with replacing(folder) as part:
        part.mkdir()
        _write_new(part / INDEX_FILE, bundle.raw_index)
        for variant in bundle.variants:
            for path, layer in open_variant(bundle, file, variant).layers.items():
                _copy_new(part / variant.name / path, layer, file)
        _unpack_attached(file, bundle, part)
    return bundle


def _unpack_attached(file: BundleFile, bundle: TrustedBundle, folder: Path) -> None:
    evidence = file.resolve(evidence_tag(bundle.digest))
    if evidence is not None:
        _write_new(folder / EVIDENCE_FILE, evidence)
    signature = file.resolve(signature_tag(bundle.digest))
    if signature is not None:
        (layer,) = bundle.signature_manifest(signature).layers
        _copy_new(folder / SIGNATURE_FILE, layer, file)


def _draft_content(content: BundleContent) -> _Draft:
    if not content.variants:
        raise MalformedBundleError("a bundle has at least one variant", code="bad-manifest")
    blobs = _Blobs()
    entries: list[Descriptor] = []
    tree: dict[str, str] = {}
    first = content.variants[0].description
    for variant in content.variants:
        if index_annotations(variant.description) != index_annotations(first):
            raise MalformedBundleError(
                f"variants {first.variant} and {variant.description.variant} must have the same "
                "name, version and security_version",
                code="wrong-description",
            )
        entry, layers = _add_variant(blobs, variant)
        entries.append(entry)
        tree |= {f"{variant.description.variant}/{path}": layers[path] for path in layers}
    raw_index = canonical_json(
        ImageIndex(
            schema_version=2,
            media_type=INDEX_TYPE,
            manifests=entries,
            annotations=index_annotations(first),
        )
    )
    tree[INDEX_FILE] = blobs.add_bytes(INDEX_TYPE, raw_index).digest
    return _Draft(first.name, first.version, raw_index, tree, blobs)


def _add_variant(blobs: _Blobs, variant: VariantContent) -> tuple[Descriptor, dict[str, str]]:
    """Add a variant's blobs; returns its entry in the index, and digests of its files by path."""
    files = {
        path: blobs.add_file(_checked(path), variant.files[path]) for path in sorted(variant.files)
    }
    description = msgspec.structs.replace(
        variant.description,
        files=[
            FileEntry(path=path, size=layer.size, digest=layer.digest)
            for path, layer in files.items()
        ],
    )
    raw = description.to_bytes()
    parse_description(raw)
    files[DESCRIPTION_PATH] = blobs.add_bytes(
        layer_type(DESCRIPTION_PATH), raw, path=DESCRIPTION_PATH
    )
    layers = [files[path] for path in sorted(files)]
    config = blobs.add_bytes(MODEL_CONFIG_TYPE, model_config(description, layers))
    manifest = variant_manifest(config, layers)
    entry = blobs.add_bytes(MANIFEST_TYPE, manifest)
    digests = {path: layer.digest for path, layer in files.items()}
    return variant_descriptor(description, digest=entry.digest, size=entry.size), digests


def _checked(path: str) -> str:
    if not is_file_path(path) or path == DESCRIPTION_PATH:
        raise MalformedBundleError(
            f"{path[:120]!r} is not a path that a file may have", code="bad-path"
        )
    return path


def _attach_evidence(draft: _Draft, evidence: Mapping[str, Content]) -> _Draft:
    layers = [draft.blobs.add_file(_checked(path), evidence[path]) for path in sorted(evidence)]
    raw = _attached_manifest(draft, EVIDENCE_TYPE, layers)
    return replace(draft, evidence=raw, tree={**draft.tree, EVIDENCE_FILE: sha256_digest(raw)})


def _attached_manifest(draft: _Draft, artifact_type: str, layers: list[Descriptor]) -> bytes:
    draft.blobs.add_bytes(EMPTY_TYPE, EMPTY_JSON)
    return attached_manifest(draft.raw_index, artifact_type, layers)


def _draft_copy(source: BlobSource, reference: str, *, keyring: Keyring | None) -> _Draft:
    """A draft of a bundle that is elsewhere, without its signature; its bytes stay there."""
    bundle = open_bundle(source, reference, keyring=keyring)
    blobs = _Blobs()
    tree = {INDEX_FILE: blobs.add_bytes(INDEX_TYPE, bundle.raw_index).digest}
    for variant in bundle.variants:
        found = open_variant(bundle, source, variant)
        blobs.add_bytes(MANIFEST_TYPE, found.raw_manifest)
        blobs.copy(found.manifest.config, source)
        for path, layer in found.layers.items():
            tree[f"{variant.name}/{path}"] = blobs.copy(layer, source).digest
    evidence = source.resolve(evidence_tag(bundle.digest))
    if evidence is not None:
        manifest = bundle.evidence_manifest(evidence)
        for descriptor in (manifest.config, *manifest.layers):
            blobs.copy(descriptor, source)
        tree[EVIDENCE_FILE] = sha256_digest(evidence)
    return _Draft(bundle.name, bundle.version, bundle.raw_index, tree, blobs, evidence)


def _publish(path: Path, draft: _Draft) -> str:
    tags = {draft.version: describe_bytes(INDEX_TYPE, draft.raw_index)}
    if draft.signature is not None:
        layer = draft.blobs.add_bytes(SIGNATURE_TYPE, draft.signature)
        manifest = _attached_manifest(draft, SIGNATURE_TYPE, [layer])
        tags[signature_tag(draft.digest)] = draft.blobs.add_bytes(MANIFEST_TYPE, manifest)
    if draft.evidence is not None:
        tags[evidence_tag(draft.digest)] = draft.blobs.add_bytes(MANIFEST_TYPE, draft.evidence)
    raw_tags = write_layout_index(tags)
    head = [_entry(LAYOUT_ENTRY, LAYOUT_JSON), _entry(INDEX_ENTRY, raw_tags)]
    blobs = [draft.blobs.entries[name] for name in sorted(draft.blobs.entries)]
    with replacing(path) as part:
        with part.open("xb") as stream:
            write_ustar(stream, [*head, *blobs], mtime=source_date())
            stream.flush()
            os.fsync(stream.fileno())
        with BundleFile.open(part) as written:
            verify_bundle_file(written, keyring=None)
    return draft.digest


def _entry(name: str, data: bytes) -> NewEntry:
    return NewEntry(name=name, size=len(data), open=partial(io.BytesIO, data))


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _write_new(path: Path, data: bytes) -> None:
    with path.open("xb") as target:
        target.write(data)


def _copy_new(path: Path, descriptor: Descriptor, source: BlobSource) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as target:
        copy_blob(descriptor, source, target, what=path.name)

"""The outermost files of a bundle: ``oci-layout``, ``index.json`` and the names of blobs.

Source: OCI image specification 1.1, image layout. ``index.json`` is not under the identity, so it
may say no more than which digest is the bundle, its signature and its evidence.
"""

from __future__ import annotations

import re

from edgepack_contract.bundle_json import decode_bundle_json
from edgepack_contract.canonical import canonical_json
from edgepack_contract.digest import hex_of
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.limits import LIMITS
from edgepack_contract.names import is_version
from edgepack_contract.oci import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    REF_NAME,
    Descriptor,
    ImageIndex,
    evidence_tag,
    signature_tag,
)

LAYOUT_ENTRY = "oci-layout"
INDEX_ENTRY = "index.json"
BLOB_FOLDER = "blobs/sha256/"
LAYOUT_JSON = canonical_json({"imageLayoutVersion": "1.0.0"})

_BLOB = re.compile(r"\Ablobs/sha256/[0-9a-f]{64}\Z")


def is_blob_entry(name: str) -> bool:
    """Whether an entry of the archive is a blob."""
    return _BLOB.match(name) is not None


def blob_entry(digest: str) -> str:
    """The name of a blob in the archive."""
    return BLOB_FOLDER + hex_of(digest)


def write_layout_index(tags: dict[str, Descriptor]) -> bytes:
    """``index.json`` with one entry for each tag, in that order."""
    entries = [
        Descriptor(
            media_type=entry.media_type,
            digest=entry.digest,
            size=entry.size,
            annotations={REF_NAME: tag},
        )
        for tag, entry in tags.items()
    ]
    return canonical_json(ImageIndex(schema_version=2, media_type=INDEX_TYPE, manifests=entries))


def read_layout_index(raw: bytes) -> dict[str, Descriptor]:
    """The entries of ``index.json`` by tag.

    Raises:
        MalformedBundleError: Not exactly one bundle, with at most its signature and its evidence.
    """
    index = decode_bundle_json(raw, ImageIndex, what=INDEX_ENTRY, max_bytes=LIMITS.oci_index_bytes)
    tags: dict[str, Descriptor] = {}
    for entry in index.manifests:
        tag = entry.annotations.get(REF_NAME)
        if tag is None or tag in tags or len(entry.annotations) != 1:
            raise _bad(f"entry {entry.digest} must have one annotation, a tag of its own")
        if entry.platform is not None or entry.artifact_type is not None:
            raise _bad(f"{tag[:80]!r} has a platform or an artifact type")
        tags[tag] = entry
    _check_tags(tags)
    if index.annotations:
        raise _bad("has annotations of its own")
    return tags


def bundle_entry(tags: dict[str, Descriptor]) -> tuple[str, Descriptor]:
    """The version and the descriptor of the bundle among the tags of ``index.json``.

    Raises:
        MalformedBundleError: There is not exactly one bundle.
    """
    bundles = [(tag, entry) for tag, entry in tags.items() if entry.media_type == INDEX_TYPE]
    if len(bundles) != 1 or not is_version(bundles[0][0]):
        raise _bad("must hold exactly one bundle, tagged with its version")
    return bundles[0]


def _check_tags(tags: dict[str, Descriptor]) -> None:
    version, bundle = bundle_entry(tags)
    attached = {signature_tag(bundle.digest), evidence_tag(bundle.digest)}
    for tag, entry in tags.items():
        if tag != version and (tag not in attached or entry.media_type != MANIFEST_TYPE):
            raise _bad(f"{tag[:120]!r} is neither this bundle's signature nor its evidence")


def _bad(why: str) -> MalformedBundleError:
    return MalformedBundleError(f"{INDEX_ENTRY}: {why}", code="bad-layout")

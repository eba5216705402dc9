"""The OCI documents of a bundle: index, manifests, ModelPack config, and edgepack's annotations.

Sources: OCI image specification 1.1 (image index, manifest, descriptor, layout) and the CNCF
ModelPack specification (media types, config). Documents are read strictly: an unknown field or an
unknown annotation of ours is refused, because a reader that skips what it does not know agrees to
things nobody checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from edgepack_contract.bundle_json import decode_bundle_json
from edgepack_contract.canonical import canonical_json
from edgepack_contract.description import Description, is_file_path
from edgepack_contract.digest import sha256_digest
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.limits import LIMITS
from edgepack_contract.names import is_id, is_version

IndexType = Literal["application/vnd.oci.image.index.v1+json"]
ManifestType = Literal["application/vnd.oci.image.manifest.v1+json"]

INDEX_TYPE: IndexType = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: ManifestType = "application/vnd.oci.image.manifest.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
MODEL_TYPE = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
DOC_TYPE = "application/vnd.cncf.model.doc.v1.raw"
DATASET_TYPE = "application/vnd.cncf.model.dataset.v1.raw"
SIGNATURE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
EVIDENCE_TYPE = "application/vnd.edgepack.evidence.v1+json"

REF_NAME = "org.opencontainers.image.ref.name"
FILEPATH = "org.cncf.model.filepath"
BUNDLE_FORMAT = "edgepack-bundle/1"

EMPTY_JSON = b"{}"

_COUNT = re.compile(r"\A(?:0|[1-9][0-9]{0,15})\Z")
_RELEASE = re.compile(r"\A(?:0|[1-9][0-9]{0,5})(?:\.(?:0|[1-9][0-9]{0,5})){2}\Z")
_FEATURE = re.compile(r"\A[a-z0-9][a-z0-9_-]{0,31}\Z")

Size = Annotated[int, msgspec.Meta(ge=0, le=LIMITS.layer_bytes)]
DigestText = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
Annotations = dict[str, Annotated[str, msgspec.Meta(max_length=4096)]]


class Key(StrEnum):
    """Annotation keys of edgepack."""

    FORMAT = "dev.edgepack.format"
    NAME = "dev.edgepack.name"
    VERSION = "dev.edgepack.version"
    SECURITY_VERSION = "dev.edgepack.security-version"
    VARIANT = "dev.edgepack.variant"
    FEATURES = "dev.edgepack.features"
    MIN_RUNTIME = "dev.edgepack.min-runtime"
    MEMORY = "dev.edgepack.memory-bytes"


_INDEX_KEYS = frozenset({Key.FORMAT, Key.NAME, Key.VERSION, Key.SECURITY_VERSION})
_VARIANT_KEYS = frozenset({Key.VARIANT, Key.FEATURES, Key.MIN_RUNTIME, Key.MEMORY})
_OPTIONAL_KEYS = frozenset({Key.MEMORY})


class OciPlatform(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The platform of a manifest in an index."""

    os: str
    architecture: str
    variant: str | None = None


class Descriptor(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename="camel",
):
    """A typed reference to bytes: nothing is trusted that no trusted descriptor points at."""

    media_type: str
    digest: DigestText
    size: Size
    annotations: Annotations = {}
    artifact_type: str | None = None
    platform: OciPlatform | None = None


class ImageIndex(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename="camel",
):
    """An OCI image index: the bundle index, or ``index.json`` of a layout."""

    schema_version: Literal[2]
    media_type: IndexType
    manifests: Annotated[list[Descriptor], msgspec.Meta(min_length=1, max_length=LIMITS.variants)]
    annotations: Annotations = {}


class Manifest(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename="camel",
):
    """An OCI image manifest: of a variant, a signature or the evidence."""

    schema_version: Literal[2]
    media_type: ManifestType
    artifact_type: str
    config: Descriptor
    layers: Annotated[
        list[Descriptor], msgspec.Meta(min_length=1, max_length=LIMITS.files_per_variant + 1)
    ]
    subject: Descriptor | None = None
    annotations: Annotations = {}


def describe_bytes(media_type: str, data: bytes, *, path: str | None = None) -> Descriptor:
    """The descriptor of ``data``, which is a layer with a path or has none."""
    return describe(media_type, sha256_digest(data), len(data), path=path)


def describe(media_type: str, digest: str, size: int, *, path: str | None = None) -> Descriptor:
    """The descriptor of bytes whose digest and size are known."""
    annotations = {} if path is None else {FILEPATH: path}
    return Descriptor(media_type=media_type, digest=digest, size=size, annotations=annotations)


def layer_type(path: str) -> str:
    """The ModelPack media type for a file of a variant or of the evidence."""
    if path.endswith((".onnx", ".onnx.data")):
        return WEIGHT_TYPE
    if path.endswith((".safetensors", ".parquet", ".npz")):
        return DATASET_TYPE
    if path.endswith((".html", ".md", ".txt")):
        return DOC_TYPE
    return WEIGHT_CONFIG_TYPE


def signature_tag(digest: str) -> str:
    """The tag under which a bundle's signature manifest is found."""
    return f"{digest.replace(':', '-')}.sig"


def evidence_tag(digest: str) -> str:
    """The tag under which a bundle's evidence manifest is found."""
    return f"{digest.replace(':', '-')}.evidence"


def model_config(description: Description, layers: list[Descriptor]) -> bytes:
    """The ModelPack config of a variant; raw layers are their own diff ids."""
    return canonical_json(
        {
            "descriptor": {"name": description.name, "version": description.version},
            "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
            "config": {"format": "onnx", "precision": description.precision},
        }
    )


def variant_manifest(config: Descriptor, layers: list[Descriptor]) -> bytes:
    """The manifest of a variant; layers sorted by path."""
    return canonical_json(
        Manifest(
            schema_version=2,
            media_type=MANIFEST_TYPE,
            artifact_type=MODEL_TYPE,
            config=config,
            layers=layers,
        )
    )


def attached_manifest(raw_index: bytes, artifact_type: str, layers: list[Descriptor]) -> bytes:
    """The manifest of something that is about a bundle without being part of it.

    Its config is :data:`EMPTY_JSON`.
    """
    return canonical_json(
        Manifest(
            schema_version=2,
            media_type=MANIFEST_TYPE,
            artifact_type=artifact_type,
            config=describe_bytes(EMPTY_TYPE, EMPTY_JSON),
            layers=layers,
            subject=describe_bytes(INDEX_TYPE, raw_index),
        )
    )


def variant_descriptor(description: Description, *, digest: str, size: int) -> Descriptor:
    """The entry of a variant in the bundle index.

    It has no artifact type, which its manifest has: skopeo 1.9 drops that field from an
    index and so changes the bundle's digest.
    """
    annotations: Annotations = {
        Key.VARIANT: description.variant,
        Key.FEATURES: ",".join(description.features),
        Key.MIN_RUNTIME: description.min_runtime,
    }
    if description.budgets.memory_bytes is not None:
        annotations[Key.MEMORY] = str(description.budgets.memory_bytes)
    return Descriptor(
        media_type=MANIFEST_TYPE,
        digest=digest,
        size=size,
        annotations=annotations,
        platform=OciPlatform(
            os=description.platform.os,
            architecture=description.platform.architecture,
            variant=description.platform.variant,
        ),
    )


def index_annotations(description: Description) -> Annotations:
    """The annotations of the bundle index, equal for all its variants."""
    return {
        Key.FORMAT: BUNDLE_FORMAT,
        Key.NAME: description.name,
        Key.VERSION: description.version,
        Key.SECURITY_VERSION: str(description.security_version),
    }


def parse_index(raw: bytes) -> ImageIndex:
    """Decode a bundle index and check that its annotations are complete and ours alone.

    Raises:
        MalformedBundleError: It is not a bundle index of a format that this version reads.
    """
    index = decode_bundle_json(
        raw, ImageIndex, what="bundle index", max_bytes=LIMITS.oci_index_bytes
    )
    if index.annotations.get(Key.FORMAT) != BUNDLE_FORMAT:
        raise MalformedBundleError(
            f"bundle index has format {index.annotations.get(Key.FORMAT)!r}, this version of "
            f"edgepack reads {BUNDLE_FORMAT!r}",
            code="bad-format",
        )
    _check_keys("bundle index", index.annotations, _INDEX_KEYS)
    _check_values(
        "bundle index",
        index.annotations,
        {Key.NAME: is_id, Key.VERSION: is_version, Key.SECURITY_VERSION: is_count},
    )
    for number, entry in enumerate(index.manifests):
        what = f"variant {number} of the bundle index"
        _check_type(what, entry.media_type, MANIFEST_TYPE)
        _check_keys(what, entry.annotations, _VARIANT_KEYS)
        _check_values(
            what,
            entry.annotations,
            {
                Key.VARIANT: is_id,
                Key.FEATURES: _is_feature_list,
                Key.MIN_RUNTIME: _is_release,
                Key.MEMORY: is_count,
            },
        )
        if entry.platform is None or entry.artifact_type is not None:
            raise MalformedBundleError(
                f"{what} must have a platform and no artifact type", code="bad-manifest"
            )
    names = [entry.annotations[Key.VARIANT] for entry in index.manifests]
    if len(set(names)) != len(names):
        raise MalformedBundleError(
            f"bundle index: two variants have the same name: {', '.join(names)[:200]}",
            code="bad-annotations",
        )
    return index


def parse_manifest(raw: bytes, *, what: str, artifact_type: str) -> Manifest:
    """Decode a manifest of one artifact type.

    Raises:
        MalformedBundleError: It does not decode, or is the manifest of something else.
    """
    manifest = decode_bundle_json(raw, Manifest, what=what, max_bytes=LIMITS.manifest_bytes)
    _check_type(what, manifest.artifact_type, artifact_type)
    return manifest


def layer_paths(manifest: Manifest, *, what: str) -> dict[str, Descriptor]:
    """The layers of a manifest by their file path.

    Raises:
        MalformedBundleError: A layer has no path, a path twice, one that a file may not have, or a
            media type that does not go with it.
    """
    by_path: dict[str, Descriptor] = {}
    for layer in manifest.layers:
        path = layer.annotations.get(FILEPATH)
        if path is None or set(layer.annotations) != {FILEPATH} or not is_file_path(path):
            raise MalformedBundleError(
                f"{what}: layer {layer.digest} has the path {str(path)[:120]!r}, which no file "
                "may have",
                code="bad-path",
            )
        if path in by_path:
            raise MalformedBundleError(f"{what}: {path} is there twice", code="bad-path")
        _check_type(f"{what}: {path}", layer.media_type, layer_type(path))
        by_path[path] = layer
    return by_path


def is_count(text: str) -> bool:
    """Whether ``text`` is a number from 0 to 2**53 in its one decimal form."""
    return _COUNT.match(text) is not None and int(text) <= 2**53


def _is_release(text: str) -> bool:
    return _RELEASE.match(text) is not None


def _is_feature_list(text: str) -> bool:
    features = text.split(",") if text else []
    return features == sorted(set(features)) and all(map(_FEATURE.match, features))


def _check_values(
    what: str, annotations: Annotations, rules: Mapping[Key, Callable[[str], bool]]
) -> None:
    for key, rule in rules.items():
        value = annotations.get(key)
        if value is not None and not rule(value):
            raise MalformedBundleError(
                f"{what}: {key} is {value[:80]!r}, which it may not be", code="bad-annotations"
            )


def _check_type(what: str, found: str | None, expected: str) -> None:
    if found != expected:
        raise MalformedBundleError(
            f"{what} is of type {str(found)[:120]!r}, expected {expected!r}", code="wrong-type"
        )


def _check_keys(what: str, annotations: Annotations, known: frozenset[str]) -> None:
    missing = sorted(known - _OPTIONAL_KEYS - set(annotations))
    unknown = sorted(set(annotations) - known)
    if missing or unknown:
        raise MalformedBundleError(
            f"{what}: annotations missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(unknown)[:200] or 'none'}",
            code="bad-annotations",
        )

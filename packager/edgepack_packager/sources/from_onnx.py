"""ONNX files: read without following their weights anywhere outside their own folder."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import (
    ExternalDataInfo,
    load_external_data_for_model,
    uses_external_data,
)

from edgepack_contract.digest import sha256_digest
from edgepack_contract.limits import GIB
from edgepack_packager.errors import ModelSourceError
from edgepack_packager.sources.model import LoadContext, SourceModel

MAX_MODEL_BYTES = 2 * GIB - 1
"""A protobuf message cannot be larger."""


def load_onnx(path: Path, context: LoadContext) -> SourceModel:  # noqa: ARG001 - a Loader
    """Read an ONNX file and its external weights.

    Raises:
        ModelSourceError: Unreadable, not ONNX, too large, or with weights outside its folder.
    """
    raw = _read(path)
    try:
        graph = onnx.load_model_from_string(raw)
    except DecodeError as error:
        raise ModelSourceError(f"{path.name} is not an ONNX file: {error}") from error
    if not graph.graph.node:
        raise ModelSourceError(f"{path.name} has no operators: not an ONNX model, or an empty one")
    digest = _load_weights(graph, path, raw)
    producer = graph.producer_name.strip()[:100]
    version = graph.producer_version.strip()[:40]
    return SourceModel(
        graph=graph,
        digest=digest,
        framework=f"onnx ({producer} {version})".replace(" )", ")") if producer else "onnx",
        task=None,
        features=None,
        classes=_zipmap_classes(graph),
        answer=None,
        tools={"onnx": importlib.metadata.version("onnx")},
        passes=("load-onnx",),
    )


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise ModelSourceError(
                f"{path.name} has {size} bytes; graphs go up to 2 GiB", code="too-large"
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelSourceError(f"cannot read {path}: {error.strerror}") from error


def _load_weights(graph: onnx.ModelProto, path: Path, raw: bytes) -> str:
    """Load external weights into ``graph``; the digest covers them too."""
    external = [tensor for tensor in graph.graph.initializer if uses_external_data(tensor)]
    locations = sorted({ExternalDataInfo(tensor).location for tensor in external})
    total = len(raw)
    digests = [sha256_digest(raw)]
    for location in locations:
        weights = _weights_path(path, location)
        total += weights.stat().st_size
        if total > MAX_MODEL_BYTES:
            raise ModelSourceError(
                f"{path.name} has {total} bytes with its weights; models go up to 2 GiB",
                code="too-large",
            )
        digests.append(sha256_digest(weights.read_bytes()))
    if not locations:
        return digests[0]
    try:
        load_external_data_for_model(graph, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelSourceError(f"{path.name}: its weights cannot be read: {error}") from error
    return sha256_digest("\n".join(digests).encode())


def _weights_path(path: Path, location: str) -> Path:
    # a location is somebody else's text: "../../etc/shadow" or a link would pull any file into a
    # bundle (CVE-2022-25882, CVE-2024-27318, CVE-2025-51480)
    weights = path.parent / location
    plain = PurePosixPath(location)
    if len(plain.parts) != 1 or plain.name in {"", ".."} or weights.is_symlink():
        raise ModelSourceError(
            f"{path.name} keeps weights in {location!r}; they must be a plain file beside it",
            code="unsafe-weights",
        )
    if not weights.is_file():
        raise ModelSourceError(f"{path.name} keeps weights in {location!r}, which is missing")
    return weights


def _zipmap_classes(graph: onnx.ModelProto) -> tuple[str, ...] | None:
    """The names of the classes, which a ZipMap holds and which go when it is removed."""
    for node in graph.graph.node:
        if node.op_type != "ZipMap":
            continue
        for attribute in node.attribute:
            if attribute.name == "classlabels_int64s":
                return tuple(str(label) for label in attribute.ints)
            if attribute.name == "classlabels_strings":
                return tuple(label.decode() for label in attribute.strings)
    return None

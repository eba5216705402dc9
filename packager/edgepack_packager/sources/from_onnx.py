"""ONNX files of any origin: read, checked, and refused in words where they cannot be served."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from edgepack_contract.digest import sha256_digest
from edgepack_contract.limits import GIB
from edgepack_packager.errors import ConversionError, ModelSourceError
from edgepack_packager.graphs.first_run import check_first_run
from edgepack_packager.graphs.structure import check_structure, is_quantized, sort_nodes
from edgepack_packager.graphs.tensors import check_claims
from edgepack_packager.sources.external import embed_weights
from edgepack_packager.sources.files import read_bounded
from edgepack_packager.sources.model import LoadContext, SourceModel

MAX_MODEL_BYTES = 2 * GIB - 1
"""A protobuf message cannot be larger."""


def load_onnx(path: Path, context: LoadContext) -> SourceModel:
    """Read an ONNX file and its external weights.

    Raises:
        ModelSourceError: Unreadable, not ONNX, inconsistent, too large, or with weights outside
            its folder.
        ConversionError: The runtime has no operator for a part of it, or it is for training.
    """
    graph, digest, passes = read_onnx(path)
    check_first_run(graph, context.folder)
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
        passes=("load-onnx", *passes),
        warnings=_warnings(graph),
    )


def read_onnx(path: Path) -> tuple[onnx.ModelProto, str, tuple[str, ...]]:
    """Read an ONNX file: the graph, the digest of it and its weights, and what was done to it.

    Raises:
        ModelSourceError: See :func:`load_onnx`.
        ConversionError: Likewise.
    """
    raw = read_bounded(path, MAX_MODEL_BYTES)
    if not raw:
        raise ModelSourceError(f"{path.name} is not an ONNX file: it is empty", code="not-onnx")
    try:
        graph = onnx.load_model_from_string(raw)
        digests = embed_weights(graph, path, budget=MAX_MODEL_BYTES - len(raw))
        graph, passes = _checked(graph)
    except DecodeError as error:
        raise ModelSourceError(
            f"{path.name} is not an ONNX file{_likely(raw)}", code="not-onnx"
        ) from error
    except UnicodeDecodeError as error:
        raise ModelSourceError(
            f"{path.name} is damaged: a name in it is no text", code="not-onnx"
        ) from error
    except (ModelSourceError, ConversionError) as error:
        if str(error).startswith(path.name):
            raise
        raise type(error)(f"{path.name}: {error}", code=error.code) from error
    return graph, _digest(sha256_digest(raw), digests), passes


def _checked(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    if not graph.graph.node:
        raise ModelSourceError(
            "it has no operators: not an ONNX model, or an empty one", code="empty-model"
        )
    check_claims(graph)
    check_structure(graph)
    passes = []
    if graph.functions:
        # quantization and the list of operators look at nodes, not at what they stand for
        graph = onnx.inliner.inline_local_functions(graph)
        passes.append("inline-functions")
    if sort_nodes(graph):
        passes.append("sort-nodes")
    return graph, tuple(passes)


def _digest(own: str, weights: tuple[str, ...]) -> str:
    return sha256_digest("\n".join((own, *weights)).encode()) if weights else own


def _likely(raw: bytes) -> str:
    """What a file that is no ONNX may be instead."""
    if raw.startswith(b"PK\x03\x04"):
        return ": it is a zip archive; unpack it first"
    if raw.startswith(b"version https://git-lfs"):
        return ": it is a pointer of Git LFS; fetch the file with git lfs pull"
    if raw[:256].isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in raw[:256]):
        return ": it is text"
    return ", or it is damaged or cut off"


def _warnings(graph: onnx.ModelProto) -> tuple[str, ...]:
    if not is_quantized(graph):
        return ()
    return ("the model is quantized already: it is packed as it is, and its precision said fp32",)


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

"""Digests of what a model came from: a file, a folder, or a graph that code made."""

from __future__ import annotations

from pathlib import Path

import onnx

from edgepack_contract.digest import digest_stream, sha256_digest
from edgepack_contract.limits import LIMITS
from edgepack_packager.errors import ModelSourceError
from edgepack_packager.graphs.clean import serialise, strip_metadata

MAX_FILES = 10_000


def path_digest(path: Path) -> str:
    """The digest of a file, or of the names and digests of a folder's files.

    Raises:
        ModelSourceError: Unreadable, too large, or a folder with links, which lead anywhere.
    """
    try:
        if path.is_file():
            return _file_digest(path)
        lines = [f"{file.relative_to(path)} {_file_digest(file)}" for file in _files(path)]
    except OSError as error:
        raise ModelSourceError(f"cannot read {path}: {error.strerror}") from error
    return sha256_digest("\n".join(lines).encode())


def graph_digest(graph: onnx.ModelProto) -> str:
    """The digest of what a graph computes, without what says who made it, where and when."""
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    strip_metadata(bare)
    return sha256_digest(serialise(bare))


def _files(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ModelSourceError(
                f"{path} is a link; a model's folder must hold its files itself", code="linked-file"
            )
        if path.is_file():
            found.append(path)
        if len(found) > MAX_FILES:
            raise ModelSourceError(f"{folder} has over {MAX_FILES} files", code="too-large")
    return found


def _file_digest(path: Path) -> str:
    size = path.stat().st_size
    if size > LIMITS.layer_bytes:
        raise ModelSourceError(
            f"{path} has {size} bytes; files go up to {LIMITS.layer_bytes}", code="too-large"
        )
    with path.open("rb") as stream:
        return digest_stream(stream, size=size, what=path.name)

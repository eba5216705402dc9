"""Weights beside an ONNX file: read into the graph, from plain files of its own folder only."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgepack_contract.digest import sha256_digest
from edgepack_packager.errors import ModelSourceError
from edgepack_packager.graphs.tensors import all_tensors


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where the bytes of one tensor are; without a length they go to the end of the file."""

    tensor: onnx.TensorProto
    location: str
    offset: int
    length: int | None


def embed_weights(model: onnx.ModelProto, path: Path, *, budget: int) -> tuple[str, ...]:
    """Read all external weights of ``model`` into it.

    A location is somebody else's text: ``../../etc/shadow`` or a link would pull any file into a
    bundle (CVE-2022-25882, CVE-2024-27318, CVE-2025-51480, CVE-2026-34445).

    Args:
        model: The graph of ``path``; changed in place.
        path: The ONNX file.
        budget: Bytes that all of them may have together.

    Returns:
        The digests of the files, in the order of their names.

    Raises:
        ModelSourceError: A file is not a plain one beside ``path``, is missing or too short, or all
            have over ``budget`` bytes.
    """
    pieces = [
        _piece(tensor, path)
        for tensor in all_tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    digests = []
    for location in sorted({piece.location for piece in pieces}):
        raw = _read_beside(path, location, budget)
        budget -= len(raw)
        digests.append(sha256_digest(raw))
        for piece in pieces:
            if piece.location == location:
                _embed(piece, raw, path)
    return tuple(digests)


def _piece(tensor: onnx.TensorProto, path: Path) -> _Piece:
    said = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = (_number(said, key, tensor, path) for key in ("offset", "length"))
    return _Piece(tensor, said.get("location", ""), offset or 0, length)


def _number(said: Mapping[str, str], key: str, tensor: onnx.TensorProto, path: Path) -> int | None:
    text = said.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ModelSourceError(
            f"{path.name}: tensor {tensor.name[:80]!r} has the {key} {text[:40]!r}, which is no "
            "number of bytes",
            code="bad-weights",
        )
    return int(text)


def _read_beside(path: Path, location: str, budget: int) -> bytes:
    unsafe = ModelSourceError(
        f"{path.name} keeps weights in {location[:200]!r}; they must be a plain file beside it, "
        "no link: copy them there",
        code="unsafe-weights",
    )
    if not location or location in {".", ".."} or "/" in location or "\\" in location:
        raise unsafe
    if "\0" in location:
        raise unsafe
    try:
        # the file that was checked is the file that is read: it is never opened a second time
        descriptor = os.open(path.parent / location, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ModelSourceError(
            f"{path.name} keeps weights in {location!r}, which is missing", code="missing-weights"
        ) from error
    except OSError as error:
        if (path.parent / location).is_symlink():
            raise unsafe from error
        raise ModelSourceError(
            f"cannot read {path.parent / location}: {error.strerror}", code="missing-weights"
        ) from error
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise unsafe
        if found.st_size > budget:
            raise ModelSourceError(
                f"{path.name} has {found.st_size - budget} bytes too many with its weights; "
                "models go up to 2 GiB",
                code="too-large",
            )
        return stream.read(found.st_size)


def _embed(piece: _Piece, raw: bytes, path: Path) -> None:
    end = len(raw) if piece.length is None else piece.offset + piece.length
    if piece.offset > len(raw) or end > len(raw):
        raise ModelSourceError(
            f"{path.name}: tensor {piece.tensor.name[:80]!r} lies in bytes {piece.offset} to {end} "
            f"of {piece.location!r}, which has {len(raw)}",
            code="short-weights",
        )
    piece.tensor.raw_data = raw[piece.offset : end]
    piece.tensor.data_location = onnx.TensorProto.DEFAULT
    del piece.tensor.external_data[:]

"""One captured request: what a model was asked and what it answered, in a form without code.

A record is safetensors: tensors ``input:NAME`` and ``output:NAME``, and everything else as JSON
under ``edgepack`` of its metadata. A tensor of texts is a JSON list of them, as bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edgepack_contract.description import TensorSpec
from edgepack_contract.limits import MIB
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.inference.session import Tensor

KEY = "x-edgepack-key"
"""The header with the key of a request; to redact this name leaves the key out."""

RECORD_BYTES = 8 * MIB
"""A request with more than this is not captured."""

_KEY = "edgepack"
_HEADER_BYTES = 256 * 1024


class CaptureError(DeviceError):
    """What should be a captured request is none."""

    default_code = "capture"


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a captured request comes from.

    ``at`` is milliseconds since 1970 UTC; ``request`` the caller's own id of it, and ``key`` whom
    or what it is about (:data:`KEY`): by these, labels that come later can be joined. ``columns``
    names the columns that are left of a tensor of which some were redacted, ``texts`` the shapes of
    the tensors that hold texts.
    """

    at: int
    slot: str
    version: str
    digest: str
    request: str | None = None
    key: str | None = None
    columns: dict[str, list[str]] = {}
    texts: dict[str, list[int]] = {}


@dataclass(frozen=True, slots=True)
class Captured:
    """One request and its answer; tensors by ``input:NAME`` and ``output:NAME``."""

    origin: Origin
    tensors: Mapping[str, Tensor]


def redacted(
    tensors: Mapping[str, Tensor], specs: Collection[TensorSpec], names: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Leave out what must not be written.

    Args:
        tensors: Inputs or outputs by name.
        specs: What the description says of them.
        names: Tensors and features (columns) to leave out.

    Returns:
        What is left, and the names of the columns of the tensors that lost some.
    """
    features = {spec.name: spec.features for spec in specs}
    left, columns = {}, {}
    for name, tensor in tensors.items():
        if name in names:
            continue
        told = features.get(name) or []
        kept = [index for index, feature in enumerate(told) if feature not in names]
        if len(kept) == len(told):
            left[name] = tensor
        elif kept and tensor.ndim and tensor.shape[-1] == len(told):
            left[name] = tensor[..., kept]
            columns[name] = [told[index] for index in kept]
    return left, columns


def encode(captured: Captured) -> bytes:
    """The bytes of a record."""
    found = captured.tensors.items()
    # padded to one length, a single long text would make all of them long
    texts = {name: list(tensor.shape) for name, tensor in found if tensor.dtype.kind in "OU"}
    plain = {
        name: _packed(tensor) if name in texts else np.ascontiguousarray(tensor)
        for name, tensor in captured.tensors.items()
    }
    origin = msgspec.structs.replace(captured.origin, texts=texts)
    return bytes(save(plain, {_KEY: msgspec.json.encode(origin).decode()}))


def decode(raw: bytes) -> Captured:
    """Read a record.

    Raises:
        CaptureError: It is none.
    """
    try:
        header = _header(raw)
        origin = msgspec.json.decode(header["__metadata__"][_KEY], type=Origin)
        tensors = load(raw)
        texts = {name: _unpacked(tensors[name], shape) for name, shape in origin.texts.items()}
    except (KeyError, TypeError, ValueError, SafetensorError, msgspec.MsgspecError) as error:
        raise CaptureError(f"a captured request cannot be read: {error}") from error
    return Captured(origin, tensors | texts)


def _header(raw: bytes) -> dict[str, dict[str, str]]:
    if len(raw) < 8:
        raise ValueError("it is too short")
    (size,) = struct.unpack("<Q", raw[:8])
    if size > min(_HEADER_BYTES, len(raw) - 8):
        raise ValueError(f"a header of {size} bytes")
    return msgspec.json.decode(raw[8 : 8 + size], type=dict)


def _packed(texts: Tensor) -> Tensor:
    plain = [str(text) for text in texts.reshape(-1).tolist()]
    return np.frombuffer(msgspec.json.encode(plain), np.uint8)


def _unpacked(stored: Tensor, shape: list[int]) -> Tensor:
    texts = msgspec.json.decode(stored.tobytes(), type=list[str])
    return np.array(texts, dtype=object).reshape(shape)

"""Tensors as bytes: the binary tensor data extension, and the raw contents of its gRPC form.

Source: github.com/triton-inference-server/server, ``docs/protocol/extension_binary_data.md``:
little-endian and row-major; a BOOL is one byte; an element of BYTES is its length, 4 bytes, and
then its bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence

import numpy as np

from edgepack_contract.description import TensorSpec
from edgepack_runtime.inference.coerce import check_shape
from edgepack_runtime.inference.errors import BadRequestError, ShapeError
from edgepack_runtime.inference.session import Tensor, numpy_dtype

_LENGTH = struct.Struct("<I")


def tensor_from_bytes(spec: TensorSpec, shape: Sequence[int], raw: memoryview) -> Tensor:
    """Read a tensor; numbers are not copied when they lie at an address fit for them.

    Raises:
        ShapeError: ``shape`` is not one that the input takes, or ``raw`` has another length than it
            says.
        BadRequestError: The bytes are no text, no truth values, or lengths point past the end.
    """
    check_shape(spec, shape)
    if spec.dtype == "str":
        return _texts(spec, shape, raw)
    dtype = numpy_dtype(spec.dtype)
    # of Python's integers, which have no end: a product of sizes cannot wrap around
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise ShapeError(
            f"unexpected size for input {spec.name!r}: shape {list(shape)} takes {expected} bytes, "
            f"given {len(raw)}"
        )
    array = np.frombuffer(raw, dtype).reshape(shape)
    if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise BadRequestError(f"input {spec.name!r}: a BOOL is a byte 0 or 1")
    return array if array.flags.aligned else array.copy()


def raw_tensor(spec: TensorSpec, raw: memoryview) -> Tensor:
    """Read a tensor that came without a shape: the whole body of a request.

    One dimension may be open, and is as large as the bytes allow; of several the first is one row.
    For BYTES the body is one element, without its length.

    Raises:
        ShapeError: More than that is open, or the bytes do not fill whole rows.
        BadRequestError: See :func:`tensor_from_bytes`.
    """
    if spec.dtype == "str":
        if any(size != 1 for size in spec.shape if isinstance(size, int)):
            raise ShapeError(f"input {spec.name!r}: a raw body is one BYTES element, not several")
        shape = [1] * len(spec.shape)
        return tensor_from_bytes(spec, shape, memoryview(_LENGTH.pack(len(raw)) + bytes(raw)))
    return tensor_from_bytes(spec, _raw_shape(spec, len(raw)), raw)


def tensor_to_bytes(array: Tensor) -> bytes | memoryview:
    """Write a tensor, without a copy where it lies in order already."""
    if array.dtype.kind in "OU":
        return b"".join(
            _LENGTH.pack(len(text)) + text for text in (str(value).encode() for value in array.flat)
        )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _raw_shape(spec: TensorSpec, size: int) -> list[int]:
    shape = list(spec.shape)
    names = {one for one in shape if isinstance(one, str)}
    if len(names) > 1 and isinstance(shape[0], str):
        names.discard(shape[0])
        shape[0] = 1
    places = [place for place, one in enumerate(shape) if isinstance(one, str)]
    if len(places) > 1:
        raise ShapeError(
            f"input {spec.name!r}: a raw body can leave one dimension open, this input has "
            f"{len(places)}; send the shape in a JSON header"
        )
    row = numpy_dtype(spec.dtype).itemsize
    row *= math.prod(one for one in shape if isinstance(one, int))
    if places and (size % row or not size):
        raise ShapeError(
            f"unexpected size for input {spec.name!r}: expected {row} bytes or a multiple of it, "
            f"given {size}"
        )
    return [size // row if isinstance(one, str) else one for one in shape]


def _texts(spec: TensorSpec, shape: Sequence[int], raw: memoryview) -> Tensor:
    # each element takes four bytes at least: no shape can make this larger than the body
    count = math.prod(shape)
    texts: list[str] = []
    try:
        texts.extend(str(element, "utf-8") for element in _elements(raw))
    except UnicodeDecodeError as error:
        raise BadRequestError(
            f"input {spec.name!r}: element {len(texts)} is not UTF-8: {error.reason}"
        ) from error
    except struct.error as error:
        raise BadRequestError(
            f"input {spec.name!r}: element {len(texts)} is longer than the bytes that are left"
        ) from error
    if len(texts) != count:
        raise ShapeError(
            f"unexpected size for input {spec.name!r}: shape {list(shape)} takes {count} elements, "
            f"given {len(texts)}"
        )
    array = np.empty(count, object)
    array[:] = texts
    return array.reshape(shape)


def _elements(raw: memoryview) -> Iterator[memoryview]:
    place, end = 0, len(raw)
    while place < end:
        (length,) = _LENGTH.unpack_from(raw, place)
        place += _LENGTH.size
        if length > end - place:
            raise struct.error
        yield raw[place : place + length]
        place += length

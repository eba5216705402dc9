"""The names of element types in the Open Inference Protocol, in all of its forms."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from edgepack_contract.description import TensorSpec
from edgepack_runtime.inference.errors import BadRequestError
from edgepack_runtime.inference.session import Tensor

DATATYPES = {
    "bool": "BOOL",
    "str": "BYTES",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
}


def datatype_of(spec: TensorSpec) -> str:
    """The protocol's name for the elements of an input or output."""
    return DATATYPES.get(spec.dtype, spec.dtype)


def array_datatype(array: Tensor) -> str:
    """The protocol's name for the elements of an array."""
    return _datatype(array.dtype)


def check_datatype(spec: TensorSpec, given: str) -> None:
    """Check the type that came with a tensor.

    Raises:
        BadRequestError: The input is of another.
    """
    expected = datatype_of(spec)
    if given != expected:
        raise BadRequestError(
            f"input {spec.name!r}: expected datatype {expected}, given {given[:16]!r}"
        )


def dims(spec: TensorSpec) -> list[int]:
    """A shape as the protocol tells it: -1 for what requests may choose."""
    return [size if isinstance(size, int) else -1 for size in spec.shape]


@functools.cache
def _datatype(dtype: np.dtype[Any]) -> str:
    # numpy puts the name together anew each time
    return DATATYPES["str" if dtype.kind in "OU" else dtype.name]

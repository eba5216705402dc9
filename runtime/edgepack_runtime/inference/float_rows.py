"""The usual input, rows of equally many floats, read and checked in a few steps in C.

What it does not read is for :mod:`.coerce`, which takes everything, and has the words for what is
wrong; the two give the same array where both give one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from edgepack_contract.description import Description
from edgepack_runtime.inference.session import Tensor, numpy_dtype

MOST_VALUES = 1024

_FORMATS = {"float16": "e", "float32": "f", "float64": "d"}
_SQUARES = {"float16": 4.0e9, "float32": 1.0e77, "float64": math.inf}
"""Values whose squares add up to less are finite, and in the type's range."""


class FloatRows:
    """The only input of a model: two dimensions of floats, of which nothing else is asked.

    Args:
        name: Its name.
        dtype: numpy's name of a float type.
        width: The second size.
        rows: The smallest and the largest first size, at least 1.

    Attributes:
        name: Its name.
        dtype: numpy's name of its type.
    """

    __slots__ = (
        "_least", "_limit", "_most", "_one", "_pack", "_single", "_type", "_width", "dtype", "name",
    )  # fmt: skip

    def __init__(self, name: str, dtype: str, width: int, rows: tuple[int, float]) -> None:
        self.name, self.dtype = name, dtype
        self._type, self._limit = numpy_dtype(dtype), _SQUARES[dtype]
        self._width = width
        self._least, self._most = rows
        self._one, self._single = (1, width), self._least == 1 and width <= MOST_VALUES
        # of its own sizes struct would make an infinity of what is too large
        self._pack = struct.Struct(f"={width}{_FORMATS[dtype]}").pack

    @classmethod
    def of(cls, description: Description) -> Self | None:
        """That of a model, None when its inputs are otherwise."""
        if len(description.inputs) != 1:
            return None
        (spec,) = description.inputs
        if spec.role == "state" or spec.dtype not in _SQUARES or len(spec.shape) != 2:
            return None
        rows, width = spec.shape
        if not isinstance(width, int):
            return None
        allowed = description.dimensions.get(rows) if isinstance(rows, str) else None
        bounds: tuple[int, float] = (1, math.inf)
        if isinstance(rows, int):
            bounds = (max(rows, 1), rows)
        elif allowed is not None:
            bounds = (max(allowed.minimum, 1), allowed.maximum)
        return cls(spec.name, spec.dtype, width, bounds)

    def read(self, values: Sequence[Any], shape: Sequence[int] | None = None) -> Tensor | None:
        """Make an array of numbers, None for what takes a closer look.

        Args:
            values: Rows of floats; or, with ``shape``, the floats one after the other.
            shape: The shape that the caller gave.
        """
        if shape is not None and not self._is_shape(shape, len(values)):
            return None
        if self._single and (len(values) if shape is None else shape[0]) == 1:
            return self._read_one(values[0] if shape is None else values)
        try:
            wide = np.array(values, np.float64)
        except ValueError:
            return None
        if shape is not None:
            wide = wide.reshape(shape)
        if not self._takes(wide) or not np.vdot(wide, wide) < self._limit:
            return None
        return wide.astype(self._type)

    def fits(self, array: Tensor) -> bool:
        """Whether an array is as the model takes it, and finite; False where that is not sure."""
        return (
            array.dtype == self._type
            and self._takes(array)
            and math.isfinite(np.vdot(array, array))
        )

    def _read_one(self, row: Any) -> Tensor | None:
        # a third of the time that numpy takes to find out how such a list is nested
        if len(row) != self._width or not math.isfinite(sum(row)):
            return None
        try:
            return np.ndarray(self._one, self._type, self._pack(*row))
        except OverflowError:
            return None

    def _is_shape(self, shape: Sequence[int], size: int) -> bool:
        # of Python's integers: numpy would find out a negative size, and not take a huge one
        return len(shape) == 2 and shape[1] == self._width and shape[0] * shape[1] == size

    def _takes(self, array: Tensor) -> bool:
        shape = array.shape
        return (
            len(shape) == 2
            and shape[1] == self._width
            and self._least <= shape[0] <= self._most
            and array.size <= MOST_VALUES
        )

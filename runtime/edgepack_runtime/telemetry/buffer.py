"""Raw rows of some tensors, kept until there are enough to count them in one go.

Counting a block of rows costs little more than counting one, so the hot path only copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack_contract.statistics import flatten

Array = NDArray[Any]


class RowBuffer:
    """Bounded raw rows; a full block is handed to ``count``. Not thread-safe.

    Args:
        tensors: The names of the tensors to keep, and their columns; None where any number will do.
        capacity: Rows in a block. Of a request with more rows an evenly spread ``capacity`` of them
            is kept, so that one call never takes longer than one block.
        every: Only every so many requests are looked at.
        count: Takes the rows of every tensor, flattened to (rows, columns), all of one length. They
            are overwritten afterwards.
    """

    def __init__(
        self,
        tensors: Mapping[str, int | None],
        *,
        capacity: int,
        count: Callable[[Mapping[str, Array]], None],
        every: int = 1,
    ) -> None:
        self._widths = dict(tensors)
        self._capacity = capacity
        self._count = count
        self._every = every
        self._skip = 0
        self._tables: dict[str, Array] = {}
        self._used = 0

    def put(self, tensors: Mapping[str, Array]) -> int:
        """Keep the rows of one request.

        Returns:
            How many rows were kept: none when the request is not sampled, lacks a tensor, or has
            tensors of other columns than they should have, or of different lengths.
        """
        if self._skip:
            self._skip -= 1
            return 0
        rows = [_table(tensors.get(name)) for name in self._widths]
        if not rows or not self._fits(rows):
            return 0
        self._skip = self._every - 1
        return self._keep(rows)

    def flush(self) -> None:
        """Count what is kept."""
        if self._used:
            used, self._used = self._used, 0
            self._count({name: table[:used] for name, table in self._tables.items()})

    def _fits(self, rows: list[Array]) -> bool:
        length = len(rows[0])
        for part, (name, width) in zip(rows, self._widths.items(), strict=True):
            if not length or len(part) != length or width not in (None, part.shape[1]):
                return False
            table = self._tables.get(name)
            if table is None or table.shape[1] != part.shape[1]:
                self.flush()
                self._tables[name] = np.empty((self._capacity, part.shape[1]), _kept_dtype(part))
        return True

    def _keep(self, rows: list[Array]) -> int:
        length = len(rows[0])
        if length > self._capacity:
            step = -(-length // self._capacity)
            rows = [part[::step] for part in rows]
            length = len(rows[0])
        if self._used + length > self._capacity:
            self.flush()
        end = self._used + length
        for name, part in zip(self._widths, rows, strict=True):
            self._tables[name][self._used : end] = part
        self._used = end
        if end == self._capacity:
            self.flush()
        return length


_NOTHING: Array = np.empty((0, 0))


def _table(rows: Array | None) -> Array:
    if rows is None or rows.ndim == 0:
        return _NOTHING
    return rows if rows.ndim == 2 else flatten(rows)


def _kept_dtype(part: Array) -> np.dtype[Any]:
    # text of any length fits in objects only
    return np.dtype(object) if part.dtype.kind in "OUS" else part.dtype

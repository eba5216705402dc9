"""Rows of some tensors, kept as they came until there are enough to count them in one go.

Counting a block of rows costs little more than counting one, so the hot path only keeps them. Small
requests that are alike, the usual case, are kept as bytes, which are copied and joined in a
fraction of the time that arrays take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack_contract.statistics import flatten

Array = NDArray[Any]

MOST_BYTES = 4096
"""Requests up to this size are copied rather than held."""


class RowBuffer:
    """Bounded rows; a full block is handed to ``count``. Not thread-safe.

    Args:
        tensors: The names of the tensors to keep, and their columns; None where any number will do.
        capacity: Rows in a block. Of a request with more rows an evenly spread ``capacity`` of them
            is kept, so that one call never takes longer than one block.
        every: Only every so many requests are looked at.
        copy: Keep copies: the caller may change its arrays, or they hold on to a whole request.
        first: Rows in the block after a :meth:`flush`, ``capacity`` if not given: buffers that
            begin unlike are not counted in the same instant.
        count: Takes the rows of every tensor, flattened to (rows, columns), all of one length.
            Requests that lack a tensor or have other columns than they should are left out.
    """

    def __init__(
        self,
        tensors: Mapping[str, int | None],
        *,
        capacity: int,
        count: Callable[[Mapping[str, Array]], None],
        every: int = 1,
        copy: bool = True,
        first: int | None = None,
    ) -> None:
        self._widths = dict(tensors)
        self._names = list(tensors)
        self._first_name = self._names[0] if self._names else ""
        self._capacity = capacity
        self._first = first or capacity
        self._count = count
        self._every = every
        self._copy = copy
        self._turn = 0
        self._kept: list[Sequence[Array]] = []
        self._raw: list[bytes] = []
        self._shape: tuple[int, ...] | None = None
        self._dtype: np.dtype[Any] | None = None
        self._room = self._first

    @property
    def kept(self) -> int:
        """How many requests are kept, and not counted yet."""
        return len(self._kept) + len(self._raw)

    def put(self, tensors: Mapping[str, Array], rows: int) -> None:
        """Keep the ``rows`` rows of one request."""
        if self._every > 1 and self._skips():
            return
        part = tensors.get(self._first_name)
        if (
            part is not None
            and part.shape == self._shape
            and part.dtype is self._dtype
            and 0 < rows < self._room
        ):
            self._raw.append(part.tobytes())
            self._room -= rows
            return
        self._put(tensors, rows)

    def flush(self) -> None:
        """Count what is kept."""
        self._settle()
        self._room = self._first

    def _skips(self) -> bool:
        self._turn = (self._turn + 1) % self._every
        return self._turn != 1

    def _put(self, tensors: Mapping[str, Array], rows: int) -> None:
        try:
            if rows <= self._capacity:
                parts = [tensors[name] for name in self._names]
            else:
                step = -(-rows // self._capacity)
                parts = [tensors[name][::step] for name in self._names]
                rows = -(-rows // step)
        except (KeyError, IndexError):
            return
        if not rows or not parts:
            return
        if rows > self._room:
            self._settle()
        if not self._raw:
            self._expect(parts)
        if parts[0].shape == self._shape and parts[0].dtype is self._dtype:
            self._raw.append(parts[0].tobytes())
        else:
            # what fills the block is counted before the caller has its arrays back
            held = self._copy and rows < self._room
            self._kept.append([part.copy() for part in parts] if held else parts)
        self._room -= rows
        if self._room <= 0:
            self._settle()

    def _expect(self, parts: Sequence[Array]) -> None:
        """Take requests like this one to be the usual ones, if they can be kept as bytes."""
        part, usual = parts[0], len(parts) == 1 and self._fits(parts)
        if usual and 0 < part.nbytes <= MOST_BYTES and not part.dtype.hasobject:
            self._shape, self._dtype = part.shape, part.dtype
        else:
            self._shape = None

    def _settle(self) -> None:
        kept, self._kept, self._room = self._kept, [], self._capacity
        raw, self._raw = self._raw, []
        if raw and self._shape is not None:
            rows = np.frombuffer(b"".join(raw), self._dtype)
            self._block([rows.reshape(len(raw) * self._shape[0], -1)])
        if not kept or not self._names:
            return
        if not self._alike(kept):
            kept = [parts for parts in kept if self._fits(parts)]
        try:
            blocks = [[_joined(parts) for parts in zip(*kept, strict=True)]]
        except ValueError:
            # rows of different shapes do not join; each request is a block then
            blocks = [[_joined([part]) for part in parts] for parts in kept]
        for columns in blocks:
            self._block(columns)

    def _block(self, columns: Sequence[Array]) -> None:
        if columns:
            self._count(dict(zip(self._names, columns, strict=True)))

    def _alike(self, kept: Sequence[Sequence[Array]]) -> bool:
        """Whether all requests are of one shape, and it fits: the common case, decided quickly."""
        columns = zip(*kept, strict=True)
        return all(len({part.shape for part in column}) == 1 for column in columns) and (
            self._fits(kept[0])
        )

    def _fits(self, parts: Sequence[Array]) -> bool:
        length = len(parts[0]) if parts[0].ndim else 0
        return length > 0 and all(
            part.ndim > 0 and len(part) == length and width in (None, part.size // length)
            for part, width in zip(parts, self._widths.values(), strict=True)
        )


def _joined(parts: Sequence[Array]) -> Array:
    return flatten(parts[0] if len(parts) == 1 else np.concatenate(parts))

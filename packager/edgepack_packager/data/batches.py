"""Rows from code: ``module:function`` that gives dicts of arrays, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgepack_contract.digest import sha256_digest
from edgepack_packager.code import load_function
from edgepack_packager.data.readers import check_size, plain
from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.errors import DataError, PackagerError

MOST_BATCHES = 1_000_000


def read_batches(reference: Path) -> tuple[Feeds, str]:
    """Call ``module:function`` and join what it gives.

    The function takes nothing, and gives one dict of arrays or yields several with the same names.

    Returns:
        The arrays, and a digest over their names, types, shapes and values.

    Raises:
        DataError: It fails, gives something else, or too much.
    """
    name = str(reference)
    try:
        batches = _collect(load_function(reference)(), name)
        columns = {key: _join([batch[key] for batch in batches], key, name) for key in batches[0]}
    except PackagerError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise DataError(
            f"{name} failed: {type(error).__name__}: {error}", code="data-failed"
        ) from error
    return columns, sha256_digest(b"".join(_summary(key, columns[key]) for key in sorted(columns)))


def _collect(given: Any, name: str) -> list[Feeds]:
    several: Iterable[Any] = [given] if isinstance(given, Mapping) else given
    batches: list[Feeds] = []
    size = 0
    for place, item in enumerate(several):
        batch = _batch(item, place, name)
        if batches and batch.keys() != batches[0].keys():
            raise DataError(
                f"{name}: batch {place} has {', '.join(map(str, batch))}, the first has "
                f"{', '.join(batches[0])}",
                code="bad-batch",
            )
        size += sum(values.nbytes for values in batch.values())
        check_size(size, name)
        if place >= MOST_BATCHES:
            raise DataError(f"{name} gives over {MOST_BATCHES} batches", code="too-much-data")
        batches.append(batch)
    if not batches:
        raise DataError(f"{name} gives no rows", code="no-rows")
    return batches


def _batch(item: Any, place: int, name: str) -> Feeds:
    if not isinstance(item, Mapping) or not all(isinstance(key, str) for key in item):
        raise DataError(
            f"{name}: batch {place} is {type(item).__name__}; give dicts of arrays by name",
            code="bad-batch",
        )
    batch = {key: plain(np.asarray(values), key, name) for key, values in item.items()}
    lengths = {values.shape[0] if values.ndim else -1 for values in batch.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise DataError(
            f"{name}: batch {place} holds arrays of different lengths, or none", code="bad-batch"
        )
    return batch


def _join(parts: list[Array], key: str, name: str) -> Array:
    if len({values.shape[1:] for values in parts}) > 1:
        raise DataError(f"{name}: {key} changes its shape between batches", code="bad-batch")
    return np.concatenate(parts)


def _summary(key: str, values: Array) -> bytes:
    # widths of texts depend on the longest one of a batch, their values do not
    textual = values.dtype.kind in "OU"
    raw = repr(values.tolist()).encode() if textual else np.ascontiguousarray(values).tobytes()
    kind = "text" if textual else values.dtype.str
    return f"{key}\n{kind}\n{values.shape}\n{sha256_digest(raw)}\n".encode()

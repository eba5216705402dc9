"""Fetching the layers of a variant into a staging folder, each from where it was left."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from edgepack_contract.digest import CHUNK_BYTES
from edgepack_contract.oci import Descriptor
from edgepack_contract.trusted import other_bytes
from edgepack_runtime.errors import InterruptedInstallError, TransientSourceError
from edgepack_runtime.sources.source import Source
from edgepack_runtime.storage.fsio import Appending, open_regular
from edgepack_runtime.storage.store import Store

_BLOCK_BYTES = 64 * 1024


class LayerFetch:
    """One run of fetching the layers of a variant into a staging folder."""

    def __init__(
        self,
        store: Store,
        source: Source,
        folder: Path,
        interrupted: Callable[[], bool],
        progress: Callable[[float], None],
    ) -> None:
        self._store, self._source, self._model = store, source, folder / "model"
        self._interrupted, self._progress = interrupted, progress
        self._done = 0
        self._total = 1

    def run(self, layers: Mapping[str, Descriptor]) -> None:
        """Fetch all layers, the rest of each."""
        self._total = max(1, sum(layer.size for layer in layers.values()))
        for path, layer in layers.items():
            target = self._model / path
            self._store.fs.make_dirs(target.parent)
            self._fetch(target, layer, path)

    def _fetch(self, target: Path, layer: Descriptor, path: str) -> None:
        before = self._done
        there = file_size(target)
        with self._store.fs.appending(target) as file:
            if 0 < there <= layer.size and self._append(file, target, layer, there) == layer.digest:
                file.finish()
                return
            # what was there is the beginning of something else: once more from the first byte
            self._done = before
            file.restart()
            found = self._append(file, target, layer, 0)
            if found != layer.digest:
                file.restart()
                raise other_bytes(path, found, layer)
            file.finish()

    def _append(self, file: Appending, target: Path, layer: Descriptor, there: int) -> str:
        hasher = hashlib.sha256()
        if there:
            self._hash_prefix(target, hasher.update)
        left = layer.size - there
        if left:
            with self._source.open_blob_at(layer, there) as stream:
                self._copy(stream, file, hasher.update, left)
        return f"sha256:{hasher.hexdigest()}"

    def _hash_prefix(self, target: Path, update: Callable[[bytes], None]) -> None:
        with self._store.fs.blaming(target), open_regular(target) as fd:
            while chunk := os.read(fd, CHUNK_BYTES):
                update(chunk)
                self._count(len(chunk))

    def _copy(
        self, stream: BinaryIO, file: Appending, update: Callable[[bytes], None], left: int
    ) -> None:
        while left:
            if self._interrupted():
                raise InterruptedInstallError("something newer is wanted")
            chunk = stream.read(min(left, _BLOCK_BYTES))
            if not chunk:
                raise TransientSourceError(f"the source ended {left} bytes early", code="truncated")
            file.write(chunk)
            update(chunk)
            left -= len(chunk)
            self._count(len(chunk))

    def _count(self, size: int) -> None:
        self._done += size
        self._progress(min(1.0, self._done / self._total))


def file_size(path: Path) -> int:
    """The size of a file, 0 when there is none."""
    return path.stat().st_size if path.is_file() else 0

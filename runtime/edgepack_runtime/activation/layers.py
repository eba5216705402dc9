"""Fetching the layers of a variant into a staging folder, each from where it was left.

A layer that any slot of the device has is copied from there. The rest is fetched as a compressed
copy where the source has one and the disk has room for both, else as it is. Whatever way it came,
it counts only by its digest.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edgepack_contract.digest import CHUNK_BYTES, hex_of
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.oci import Descriptor
from edgepack_contract.trusted import other_bytes
from edgepack_runtime.errors import InterruptedInstallError, TransientSourceError
from edgepack_runtime.sources.source import Have, Incoming, Source
from edgepack_runtime.storage.fsio import Appending, open_regular
from edgepack_runtime.storage.holdings import Holdings
from edgepack_runtime.storage.packed import PackedPart
from edgepack_runtime.storage.store import Store

logger = logging.getLogger(__name__)

FLUSH_BYTES = 8 * 1024 * 1024
"""What a power cut may cost of a download."""

PACKED_FROM_BYTES = 64 * 1024
"""Below, a compressed copy saves less than its two files cost."""

_BLOCK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Job:
    """One layer on its way into ``target``, which ``file`` writes."""

    path: str
    layer: Descriptor
    target: Path
    file: Appending


class LayerFetch:
    """One run of fetching the layers of a variant into a staging folder.

    Args:
        store: Where the folder is.
        source: Has the layers.
        folder: The staging folder.
        interrupted: Asked between blocks, and while none comes; whether to stop.
        progress: Told the share of the bytes that are there.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        folder: Path,
        interrupted: Callable[[], bool],
        progress: Callable[[float], None],
    ) -> None:
        self._store, self._source = store, source
        self._model, self._packed = folder / "model", folder / "packed"
        self._interrupted, self._progress = interrupted, progress
        self._before = 0
        self._total = 1

    def run(self, layers: Mapping[str, Descriptor]) -> None:
        """Bring all layers, the rest of each.

        Raises:
            InterruptedInstallError: It was asked to stop.
            MalformedBundleError: The source has other bytes.
            TransientSourceError: The source does not answer now.
            SourceError: It refuses.
            DiskFullError: No room.
            StorageFaultError: The disk failed.
        """
        self._total = max(1, sum(layer.size for layer in layers.values()))
        held = self._store.held()
        for path, layer in layers.items():
            target = self._model / path
            self._store.fs.make_dirs(target.parent)
            with self._store.fs.appending(target) as file:
                self._bring(_Job(path, layer, target, file), held)
                file.finish()
            self._before += layer.size
        self._store.fs.remove_tree(self._packed)

    def _bring(self, job: _Job, held: Holdings) -> None:
        layer, there = job.layer, file_size(job.target)
        if there > layer.size:
            job.file.restart()
            there = 0
        hasher = self._hash_there(job)
        if there == layer.size:
            if _named(hasher) == layer.digest:
                return
            job.file.restart()
            there, hasher = 0, hashlib.sha256()
        if not any(self._copy(job, one) for one in held.get((layer.digest, layer.size), [])):
            self._fetch(job, there, hasher)

    def _hash_there(self, job: _Job) -> hashlib._Hash:
        hasher, done = hashlib.sha256(), 0
        with self._store.fs.blaming(job.target), open_regular(job.target) as fd:
            while chunk := os.read(fd, CHUNK_BYTES):
                self._look()
                hasher.update(chunk)
                done += len(chunk)
                self._count(done)
        return hasher

    def _copy(self, job: _Job, origin: Path) -> bool:
        """Copy a file of the device; whether it is the right one.

        No link is made and no block is shared: one that goes bad would damage two models.
        """
        if file_size(origin) != job.layer.size:
            return False
        job.file.restart()
        try:
            found = self._copied(job, origin)
        except OSError as error:
            # it may be removed at any moment, and what cannot be read there is fetched
            found = str(error)
        if found != job.layer.digest:
            job.file.restart()
            return False
        logger.info(
            "%s is copied from %s", job.path, origin,
            extra={"event": "layer_copied", "bytes": job.layer.size},
        )  # fmt: skip
        return True

    def _copied(self, job: _Job, origin: Path) -> str:
        hasher, done = hashlib.sha256(), 0
        with open_regular(origin) as fd:
            while chunk := os.read(fd, CHUNK_BYTES):
                self._look()
                job.file.write(chunk)
                hasher.update(chunk)
                done += len(chunk)
                self._count(done)
        return _named(hasher)

    def _fetch(self, job: _Job, there: int, hasher: hashlib._Hash) -> None:
        layer, part = job.layer, PackedPart(self._store.fs, self._packed, hex_of(job.layer.digest))
        packed = part.kept() if there == 0 else None
        have = Have(
            plain=there,
            packed=packed.size if packed else 0,
            etag=packed.etag if packed else "",
            packable=there == 0 and self._may_pack(layer),
        )
        if packed is not None and packed.is_whole:
            found = self._unpack(job, part)
        else:
            found = self._receive(job, have, part, hasher)
        if found != layer.digest and (there or packed or part.kept()):
            # what was there is of something else: once more as it is, from the first byte
            part.remove()
            job.file.restart()
            found = self._receive(job, Have(), part, hashlib.sha256())
        if found != layer.digest:
            job.file.restart()
            raise other_bytes(job.path, found, layer)

    def _may_pack(self, layer: Descriptor) -> bool:
        return layer.size >= PACKED_FROM_BYTES and self._store.has_room(2 * layer.size)

    def _receive(self, job: _Job, have: Have, part: PackedPart, hasher: hashlib._Hash) -> str:
        with closing(self._source.fetch(job.layer, have, self._interrupted)) as incoming:
            if incoming.packed:
                return self._receive_packed(job, incoming, part)
            self._skip(incoming, have.plain - incoming.start)
            done = have.plain
            for chunk in self._chunks(incoming, job.layer.size - done):
                job.file.write(chunk)
                hasher.update(chunk)
                if done // FLUSH_BYTES != (done + len(chunk)) // FLUSH_BYTES:
                    job.file.flush()
                done += len(chunk)
                self._count(done)
            return _named(hasher)

    def _receive_packed(self, job: _Job, incoming: Incoming, part: PackedPart) -> str:
        # a copy that is no smaller is none
        most = job.layer.size if incoming.total is None else incoming.total
        done = incoming.start
        with part.appending(incoming.etag, start=done, total=incoming.total) as file:
            for chunk in self._chunks(incoming, most - done, exactly=incoming.total is not None):
                file.write(chunk)
                if done // FLUSH_BYTES != (done + len(chunk)) // FLUSH_BYTES:
                    file.flush()
                done += len(chunk)
                self._count(done * job.layer.size // most)
        return self._unpack(job, part)

    def _unpack(self, job: _Job, part: PackedPart) -> str:
        hasher = hashlib.sha256()
        job.file.restart()
        try:
            for block in part.unpacked(job.layer.size):
                self._look()
                job.file.write(block)
                hasher.update(block)
        except MalformedBundleError as error:
            return error.code
        return _named(hasher)

    def _chunks(self, incoming: Incoming, left: int, *, exactly: bool = True) -> Iterator[bytes]:
        while left:
            self._look()
            chunk = incoming.stream.read(min(left, _BLOCK_BYTES))
            if not chunk:
                if exactly:
                    raise TransientSourceError(
                        f"the source ended {left} bytes early", code="truncated"
                    )
                return
            left -= len(chunk)
            yield chunk

    def _skip(self, incoming: Incoming, count: int) -> None:
        for _ in self._chunks(incoming, count):
            pass

    def _look(self) -> None:
        if self._interrupted():
            raise InterruptedInstallError("something newer is wanted")

    def _count(self, done: int) -> None:
        self._progress(min(1.0, (self._before + done) / self._total))


def file_size(path: Path) -> int:
    """The size of a file, 0 when there is none."""
    return path.stat().st_size if path.is_file() else 0


def _named(hasher: hashlib._Hash) -> str:
    return f"sha256:{hasher.hexdigest()}"

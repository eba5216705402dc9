"""The bundles that a slot keeps on its disk, each in a folder named by its index digest.

```
store/<hex>/model/   the files of one variant: what is probed and served
store/<hex>/proof/   index, manifests and signature, so that it can be proven again with no network
staging/<hex>/       the same while it is being fetched; renamed into the store when complete
```
An entry of the store is complete by construction, since it gets there by one rename; whether its
bytes are still right is for :meth:`~edgepack_runtime.activation.installer.Installer.verify` to say.
"""

from __future__ import annotations

import errno
import io
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from edgepack_contract.digest import hex_of
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.limits import LIMITS
from edgepack_contract.oci import FILEPATH, Descriptor
from edgepack_runtime.errors import DiskFullError, StorageFaultError
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.storage.holdings import Holdings, held_files

logger = logging.getLogger(__name__)

RESERVE_BYTES = 64 * 1024 * 1024
"""What an install leaves free: journals, telemetry and the system must go on writing."""


class Store:
    """The store of one slot.

    Args:
        fs: All file changes go through it.
        folder: ``slots/<slot>``.
        reserve_bytes: Free space that an install must leave.
        device: The folder of all slots of the device, whose files spare downloads; None for none.
    """

    def __init__(
        self,
        fs: DurableFS,
        folder: Path,
        *,
        reserve_bytes: int = RESERVE_BYTES,
        device: Path | None = None,
    ) -> None:
        self.fs = fs
        self._device = device
        self._reserve = reserve_bytes
        self._store = folder / "store"
        self._staging = folder / "staging"

    def prepare(self) -> None:
        """Make the folders when they are missing."""
        self.fs.make_dirs(self._store)
        self.fs.make_dirs(self._staging)

    def entry(self, digest: str) -> Path:
        """The folder of a complete bundle."""
        return self._store / hex_of(digest)

    def model(self, digest: str) -> Path:
        """The folder of the files of a complete bundle's variant."""
        return self.entry(digest) / "model"

    def staging(self, digest: str) -> Path:
        """The folder of a bundle that is being fetched."""
        return self._staging / hex_of(digest)

    def has(self, digest: str) -> bool:
        """Whether a bundle is complete."""
        return self.entry(digest).is_dir()

    def held(self) -> Holdings:
        """The files of all complete bundles of the device."""
        return {} if self._device is None else held_files(self.fs, self._device)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more leave enough for everybody else."""
        return self.fs.free_bytes(self._staging) >= size + self._reserve

    def stage(self, digest: str, *, needed_bytes: int) -> Path:
        """Make room for a bundle, and the folders to fetch it into.

        What other downloads left half-way is removed, and nothing else.

        Args:
            digest: The bundle.
            needed_bytes: What has yet to be written.

        Raises:
            DiskFullError: It would leave too little space; nothing was written.
        """
        gone = self._tidy_staging(keep=digest)
        free = self.fs.free_bytes(self._staging)
        if free < needed_bytes + self._reserve:
            raise DiskFullError(
                f"the bundle needs {needed_bytes} bytes more and {self._reserve} must stay free, "
                f"but {free} are free on {self._staging}; {_removed(gone)}"
            )
        folder = self.staging(digest)
        self.fs.make_dirs(folder / "model")
        self.fs.make_dirs(folder / "proof")
        return folder

    def publish(self, digest: str) -> None:
        """Move a bundle whose files are all written and durable from staging into the store."""
        self.fs.sync_tree(self.staging(digest))
        self.fs.rename(self.staging(digest), self.entry(digest))

    def remove(self, digest: str) -> None:
        """Remove a bundle; after a crash it is there as a whole or not at all."""
        doomed = self._staging / f"{hex_of(digest)}.gone"
        self.fs.remove_tree(doomed)
        if self.has(digest):
            self.fs.rename(self.entry(digest), doomed)
            self.fs.remove_tree(doomed)

    def collect(self, keep: Collection[str]) -> list[str]:
        """Remove every bundle but those in ``keep``, and what other downloads left half-way.

        Returns:
            The digests that were removed from the store.
        """
        kept = {hex_of(digest) for digest in keep}
        gone = []
        for entry in sorted(self._store.iterdir()):
            if entry.name not in kept:
                self.fs.rename(entry, self._staging / f"{entry.name}.gone")
                told = {"event": "bundle_removed", "digest": f"sha256:{entry.name}"}
                logger.info("bundle %s removed", entry.name, extra=told)
                gone.append(f"sha256:{entry.name}")
        for entry in sorted(self._staging.iterdir()):
            if entry.name not in kept:
                self.fs.remove_tree(entry)
        return gone

    def _tidy_staging(self, *, keep: str) -> list[str]:
        gone = []
        for entry in sorted(self._staging.iterdir()):
            if entry.name != hex_of(keep):
                self.fs.remove_tree(entry)
                gone.append(entry.name)
        if gone:
            logger.info(
                "removed what other downloads left: %s", ", ".join(gone),
                extra={"event": "leftovers_removed"},
            )  # fmt: skip
        return gone


class StoredSource:
    """A complete bundle of the store; a :class:`~edgepack_contract.bundle.BlobSource`."""

    def __init__(self, fs: DurableFS, entry: Path) -> None:
        self._fs = fs
        self._entry = entry

    def resolve(self, reference: str) -> bytes | None:
        """See :class:`~edgepack_contract.bundle.BlobSource`."""
        try:
            return self._fs.read_bounded(
                self._entry / "proof" / proof_name(reference), max_bytes=LIMITS.manifest_bytes
            )
        except FileNotFoundError:
            return None

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """See :class:`~edgepack_contract.bundle.BlobSource`; read from the disk, not from cache."""
        path = self._path(descriptor)
        try:
            stream = io.open(path, "rb", opener=_open_no_link)  # noqa: SIM115, UP020 - returned
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            words = f"{path.name} of the installed bundle cannot be read: {error.strerror}"
            if error.errno in _NOT_THERE:
                raise MalformedBundleError(words, code="damaged-store") from error
            # too many open files, no memory: the bundle is not to blame, and may be read next time
            raise StorageFaultError(words) from error
        return stream

    def files(self) -> set[str]:
        """The paths of all files of the variant, relative to its folder."""
        model = self._entry / "model"
        found = (path for path in model.rglob("*") if not path.is_dir() or path.is_symlink())
        return {path.relative_to(model).as_posix() for path in found}

    def _path(self, descriptor: Descriptor) -> Path:
        path = descriptor.annotations.get(FILEPATH)
        proof = self._entry / "proof" / proof_name(descriptor.digest)
        return proof if path is None or proof.exists() else self._entry / "model" / path


_NOT_THERE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENXIO,
        errno.ESPIPE,
        errno.EACCES,
    }
)
"""There is no such file, or something else in its place."""


def _removed(names: list[str]) -> str:
    if not names:
        return "nothing could be removed but what serves, or served before"
    told = ", ".join(name[:12] for name in names[:8])
    return f"what other downloads left was removed ({told}), which was not enough"


def proof_name(reference: str) -> str:
    """The file name of a document under ``proof/``, by its tag or digest."""
    return reference.replace(":", "-")


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)

"""A bundle file of this machine as a source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Self

from edgepack_contract.bundle import BundleFile
from edgepack_contract.errors import SourceError
from edgepack_contract.oci import Descriptor
from edgepack_runtime.sources.source import Have, Incoming


class ArchiveSource:
    """A bundle file on this machine."""

    def __init__(self, file: BundleFile) -> None:
        self._file = file

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a ``.edgepack`` file.

        Raises:
            MalformedBundleError: It is not one.
            SourceError: It cannot be read.
        """
        try:
            return cls(BundleFile.open(path))
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror}", code="no-file") from error

    @property
    def digest(self) -> str:
        """The digest that the file claims for its bundle."""
        return self._file.digest

    def resolve(self, reference: str) -> bytes | None:
        """See :class:`~edgepack_contract.bundle.BlobSource`."""
        return self._file.resolve(reference)

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """See :class:`~edgepack_contract.bundle.BlobSource`."""
        return self._file.open_blob(descriptor)

    def fetch(self, descriptor: Descriptor, _have: Have, _stop: Callable[[], bool]) -> Incoming:
        """See :class:`Source`. It all comes, as fast as this disk is."""
        return Incoming(self._file.open_blob(descriptor), total=descriptor.size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

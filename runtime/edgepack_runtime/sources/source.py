"""What a source of bundles is, how long it may take, and who asks."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from edgepack_contract.oci import Descriptor

CHUNK_BYTES = 64 * 1024


class Source(Protocol):
    """A :class:`~edgepack_contract.bundle.BlobSource` that can also go on half-way."""

    def resolve(self, reference: str) -> bytes | None:
        """See :class:`~edgepack_contract.bundle.BlobSource`."""
        ...

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """See :class:`~edgepack_contract.bundle.BlobSource`."""
        ...

    def open_blob_at(self, descriptor: Descriptor, offset: int) -> BinaryIO:
        """A stream of a blob's bytes from ``offset`` on."""
        ...

    def close(self) -> None:
        """Let go of connections and files."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds, and how slow a source may be, in bytes a second."""

    stall_seconds: float = 30.0
    least_seconds: float = 60.0
    least_rate: float = 16 * 1024

    def deadline(self, size: int) -> float:
        """The most seconds that ``size`` bytes may take."""
        return self.least_seconds + size / self.least_rate


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password for a registry."""

    user: str
    password: str

    @property
    def header(self) -> str:
        """The value of the Authorization header (RFC 7617)."""
        pair = f"{self.user}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


def skip(stream: BinaryIO, count: int) -> None:
    """Read ``count`` bytes of a stream and forget them."""
    while count and (chunk := stream.read(min(count, CHUNK_BYTES))):
        count -= len(chunk)

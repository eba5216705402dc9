"""What a source of bundles is, how long it may take, and who asks."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from edgepack_contract.oci import Descriptor

CHUNK_BYTES = 64 * 1024


def never() -> bool:
    """Nobody asks to stop."""
    return False


@dataclass(frozen=True, slots=True)
class Have:
    """What is there of a blob already, in bytes.

    Attributes:
        plain: Its first bytes.
        packed: The first bytes of a compressed copy, whose strong validator is ``etag``.
        etag: Empty when there is no such copy.
        packable: Whether a compressed copy is welcome.
    """

    plain: int = 0
    packed: int = 0
    etag: str = ""
    packable: bool = False


class Stream(Protocol):
    """Bytes that come in."""

    def read(self, most: int, /) -> bytes | None:
        """At most ``most`` bytes, and none at the end."""
        ...

    def close(self) -> None:
        """Let go of where they come from."""
        ...


@dataclass(frozen=True, slots=True)
class Incoming:
    """The bytes of a blob, or of its compressed copy, from somewhere on. Close it.

    Attributes:
        stream: Gives them, as they come.
        start: The first byte that comes.
        total: The size of the whole of it, None when that is not said.
        packed: Whether it is the compressed copy (gzip, RFC 1952).
        etag: The strong validator of the copy.
    """

    stream: Stream
    start: int = 0
    total: int | None = None
    packed: bool = False
    etag: str = ""

    def close(self) -> None:
        """Let go of where it comes from."""
        self.stream.close()


class Source(Protocol):
    """A :class:`~edgepack_contract.bundle.BlobSource` that can also go on half-way."""

    def resolve(self, reference: str) -> bytes | None:
        """See :class:`~edgepack_contract.bundle.BlobSource`."""
        ...

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """See :class:`~edgepack_contract.bundle.BlobSource`."""
        ...

    def fetch(
        self, descriptor: Descriptor, have: Have, interrupted: Callable[[], bool]
    ) -> Incoming:
        """The rest of a blob, or of a compressed copy, or all of either.

        Args:
            descriptor: The blob.
            have: What is there of it.
            interrupted: Asked all the time that bytes are waited for; whether to stop.
        """
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
    password: str = field(repr=False)

    @property
    def header(self) -> str:
        """The value of the Authorization header (RFC 7617)."""
        pair = f"{self.user}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

"""SHA-256 digests as the OCI specification writes them: ``sha256:`` and 64 hex digits."""

from __future__ import annotations

import hashlib
import re
from typing import BinaryIO

from edgepack_contract.errors import MalformedBundleError

_DIGEST = re.compile(r"\Asha256:[0-9a-f]{64}\Z")
CHUNK_BYTES = 1024 * 1024


def sha256_digest(data: bytes | memoryview) -> str:
    """The digest of ``data``, as ``sha256:<hex>``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def check_digest(text: str, *, what: str) -> str:
    """Return ``text`` when it is a well-formed digest.

    Raises:
        MalformedBundleError: It is not.
    """
    if not _DIGEST.match(text):
        raise MalformedBundleError(
            f"{what}: {text[:80]!r} is not a digest of the form sha256:<64 hex digits>",
            code="bad-digest",
        )
    return text


def hex_of(digest: str) -> str:
    """The hex part of a well-formed digest."""
    return check_digest(digest, what="digest").removeprefix("sha256:")


def digest_stream(stream: BinaryIO, *, size: int, what: str) -> str:
    """Hash exactly ``size`` bytes of ``stream``.

    Raises:
        MalformedBundleError: The stream ends early.
    """
    hasher = hashlib.sha256()
    left = size
    while left:
        chunk = stream.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise MalformedBundleError(
                f"{what}: ends {left} bytes before its size of {size}", code="truncated"
            )
        hasher.update(chunk)
        left -= len(chunk)
    return f"sha256:{hasher.hexdigest()}"

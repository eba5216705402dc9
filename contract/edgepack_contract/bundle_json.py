"""Read a JSON document of a bundle: as strict as any other, but the bundle is to blame."""

from __future__ import annotations

from typing import TypeVar

from edgepack_contract.canonical import canonical_json, decode
from edgepack_contract.errors import MalformedBundleError, MalformedDocumentError

T = TypeVar("T")


def decode_bundle_json(raw: bytes, shape: type[T], *, what: str, max_bytes: int) -> T:
    """Decode a document of a bundle into a struct.

    Raises:
        MalformedBundleError: Too large, too deep, not JSON, unknown, missing or wrong fields (the
            field is named), numbers that are not finite, or text that is not Unicode.
    """
    try:
        document = decode(raw, shape, what=what, max_bytes=max_bytes)
    except MalformedDocumentError as error:
        raise MalformedBundleError(str(error), code=error.code) from error
    try:
        # JSON can spell an infinity (1e999) and half a character ("\ud800"); neither can be written
        canonical_json(document)
    except ValueError as error:
        raise MalformedBundleError(
            f"{what} holds a number or text that JSON cannot carry: {error}", code="bad-value"
        ) from error
    return document

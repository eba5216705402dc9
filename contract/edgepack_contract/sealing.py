"""The MAC that every message from a device carries, and every acknowledgement to one.

A sealed message is one JSON object whose last member is ``mac``: HMAC-SHA256 with the device's key
from its enrolment, over the topic, a zero byte, and the exact bytes of the object without that
member. Session and sequence are members of the object, so they are covered too. Working on the
bytes as sent, never on a re-encoding, leaves nothing to disagree about.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from edgepack_contract.errors import MalformedDocumentError, UntrustedDocumentError

MAC_KEY_BYTES = 32
_TAIL = re.compile(rb',"mac":"([0-9a-f]{64})"\}\Z')


def seal(body: bytes, *, topic: str, key: bytes) -> bytes:
    """Append the MAC to an encoded, non-empty JSON object.

    Raises:
        ValueError: ``body`` is not the encoding of a non-empty object.
    """
    if not (body.startswith(b"{") and body.endswith(b"}") and len(body) > 2):
        raise ValueError("only a non-empty JSON object can be sealed")
    return b'%b,"mac":"%b"}' % (body[:-1], _mac(body, topic, key).encode())


def unseal(raw: bytes, *, topic: str, key: bytes, max_bytes: int) -> bytes:
    """Check the MAC and return the object's bytes without it.

    Raises:
        MalformedDocumentError: Too large, or not a sealed message.
        UntrustedDocumentError: The MAC does not hold: forged, altered, or sent to another topic.
    """
    if len(raw) > max_bytes:
        raise MalformedDocumentError(
            f"a message of {len(raw)} bytes on {topic}; at most {max_bytes} are accepted",
            code="too-large",
        )
    tail = _TAIL.search(raw[-75:])
    if tail is None or not raw.startswith(b"{"):
        raise MalformedDocumentError(
            f"the message on {topic} does not end with a mac; every message must carry one",
            code="no-mac",
        )
    body = raw[: -len(tail.group(0))] + b"}"
    if not hmac.compare_digest(_mac(body, topic, key), tail.group(1).decode()):
        raise UntrustedDocumentError(
            f"the mac of the message on {topic} does not hold", code="bad-mac"
        )
    return body


def derived_secret(key: bytes, purpose: str) -> str:
    """A secret for one purpose (such as pulling bundles), derived from the device's MAC key."""
    return hmac.new(key, b"edgepack:" + purpose.encode(), hashlib.sha256).hexdigest()


def _mac(body: bytes, topic: str, key: bytes) -> str:
    return hmac.new(key, topic.encode() + b"\0" + body, hashlib.sha256).hexdigest()

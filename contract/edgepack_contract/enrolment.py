"""How a device joins a fleet: the join string, and what is asked and answered over HTTPS.

``POST /api/v1/enrol`` takes an :class:`EnrolRequest` and answers with an :class:`EnrolAnswer`;
while that says ``pending``, the same request is sent again. ``POST /api/v1/enrol/renew`` takes a
DSSE envelope around a :class:`Renewal`, signed with the device's key, and needs no certificate, so
that a device whose certificate has expired comes back. ``GET /api/v1/keyring`` is public: it proves
itself against the owner that the join string pins, and names the authorities that TLS goes by.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from edgepack_contract.canonical import canonical_json, decode
from edgepack_contract.dsse import PayloadType, open_envelope, seal_envelope
from edgepack_contract.errors import ConfigError
from edgepack_contract.keys import PrivateKey, PublicKey
from edgepack_contract.limits import LIMITS
from edgepack_contract.loopback import is_loopback

TOKEN_PREFIX = "epj_"
RENEW_AFTER = 2 / 3
"""The share of a certificate's life after which it is renewed."""

COMEBACK_DAYS = 365
"""For how long after its certificate's end a device can still renew; later it enrols anew."""

_FINGERPRINT = re.compile(r"\A[0-9a-f]{64}\Z")
_TOKEN = re.compile(rf"\A{TOKEN_PREFIX}[A-Za-z0-9_-]{{20,128}}\Z")

Short = Annotated[str, msgspec.Meta(max_length=128)]
Pem = Annotated[str, msgspec.Meta(max_length=16 * 1024)]


@dataclass(frozen=True, slots=True)
class JoinString:
    """``https://HOST[:PORT]#OWNER:TOKEN``: where to join, whom to trust, by what right."""

    url: str
    owner: str
    token: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.url}#{self.owner}:{self.token}"

    @property
    def is_local(self) -> bool:
        """Whether the fleet is on this machine."""
        return is_loopback(urlsplit(self.url).hostname or "")


def parse_join_string(text: str) -> JoinString:
    """Read a join string. Plain http is for loopback only.

    Raises:
        ConfigError: It is of another form; the message does not repeat the token.
    """
    url, _, rest = text.strip().partition("#")
    owner, _, token = rest.partition(":")
    form = "a join string has the form https://HOST[:PORT]#OWNER:TOKEN"
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        # Nothing but a scheme and a host: no user, path, query, or what a parser would leave out.
        plain = url.rstrip("/") == f"{parts.scheme}://{parts.netloc}" and "@" not in parts.netloc
    except ValueError as error:
        raise ConfigError(f"{form}; this one has no proper URL", code="bad-join") from error
    if parts.scheme not in ("http", "https") or not (named and plain):
        raise ConfigError(f"{form}; this one has no proper URL", code="bad-join")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ConfigError(
            "this join string asks for plain http to another machine; use https", code="bad-join"
        )
    if not _FINGERPRINT.match(owner):
        raise ConfigError(
            f"{form}; OWNER is the 64 hex digits that `edgepack keys show` prints", code="bad-join"
        )
    if not _TOKEN.match(token):
        raise ConfigError(f"{form}; TOKEN begins with {TOKEN_PREFIX}", code="bad-join")
    return JoinString(url.rstrip("/"), owner, token)


class Standing(StrEnum):
    """What became of a wish to join."""

    ACCEPTED = "accepted"
    PENDING = "pending"


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A wish to join. ``request`` is a certificate request that names the device's wished id."""

    token: Short
    request: Pem
    labels: dict[Short, Short] = {}
    nonce: Short


class BrokerAddress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where devices reach the broker."""

    host: Short
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    tls: bool


class Membership(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an accepted device gets. ``mac_key`` is hex, ``certificate`` and ``keyring`` are files.

    Without an authority there is no certificate, and the broker is on loopback.
    """

    tenant: Short
    device: Short
    mac_key: Short
    keyring: Annotated[str, msgspec.Meta(max_length=256 * 1024)]
    broker: BrokerAddress
    certificate: Pem | None = None
    certificate_expires: int | None = None


class EnrolAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answer to a wish to join; ``member`` is there when it was accepted."""

    status: Standing
    nonce: Short
    words: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    retry_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 10.0
    member: Membership | None = None


class Renewal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A wish for a new certificate for the same key. Said again, it gives nobody else anything."""

    tenant: Short
    device: Short
    enrolment: Short
    nonce: Short


class RenewalAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The new certificate, and the keyring as it is now."""

    nonce: Short
    certificate: Pem
    certificate_expires: int
    keyring: Annotated[str, msgspec.Meta(max_length=256 * 1024)]


def sign_renewal(renewal: Renewal, key: PrivateKey) -> bytes:
    """The envelope that a device sends."""
    return seal_envelope(PayloadType.RENEWAL, canonical_json(renewal), key)


def open_renewal(raw: bytes, key: PublicKey) -> Renewal:
    """Verify a renewal against the key that the device enrolled with.

    Raises:
        MalformedDocumentError: It does not decode.
        UntrustedDocumentError: The key did not sign it.
    """
    what, most = "renewal", LIMITS.message_bytes
    body = open_envelope(
        raw, PayloadType.RENEWAL, {key.fingerprint: key}, what=what, max_bytes=most
    )
    return decode(body, Renewal, what=what, max_bytes=most)


def renewal_due_ms(issued_ms: int, expires_ms: int) -> int:
    """When a certificate should be renewed, milliseconds since 1970 UTC."""
    return issued_ms + int((expires_ms - issued_ms) * RENEW_AFTER)

"""Passkeys of people: WebAuthn level 3, by the library ``webauthn``; here is what it is asked.

A passkey belongs to a relying party, which is a host name: the one of the public address, or
``localhost``. An address without a name can have none. User verification is always asked for, since
a passkey is all that is asked for, and it is discoverable, so that nobody's name is asked before.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from sqlalchemy.orm import Session
from webauthn import (
    generate_authentication_options,
    generate_registration_options,
    options_to_json,
    verify_authentication_response,
    verify_registration_response,
)
from webauthn.helpers import (
    base64url_to_bytes,
    bytes_to_base64url,
    decode_credential_public_key,
    decoded_public_key_to_cryptography,
)
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from edgepack_contract.loopback import is_loopback
from edgepack_fleet.db.schema import PasskeyRow
from edgepack_fleet.errors import InvalidRequestError

CHALLENGE_TTL_MS = 120_000
MAX_CHALLENGES = 4096
_PORTS = {"http": 80, "https": 443}
MAX_ID_LENGTH = 1364
"""1023 bytes in base64url (WebAuthn, 5.1)."""
RP_NAME = "edgepack fleet"
LOGIN = "login"
"""The purpose of a challenge for somebody who is not known yet."""

Field = Annotated[str, msgspec.Meta(max_length=16_384)]

_HOSTILE = (
    WebAuthnException,
    UnsupportedAlgorithm,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What the library raises for what an authenticator would not send: not all of it is its own."""


class Created(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an authenticator answers when it has made a passkey; base64url."""

    clientDataJSON: Field  # noqa: N815 - a name of WebAuthn, as are the next ones
    attestationObject: Field  # noqa: N815


class Asserted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an authenticator answers when it has used a passkey; base64url."""

    clientDataJSON: Field  # noqa: N815
    authenticatorData: Field  # noqa: N815
    signature: Field


class NewPasskey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A passkey that was made: its id and the challenge that it answers are base64url."""

    id: Annotated[str, msgspec.Meta(max_length=MAX_ID_LENGTH)]
    challenge: Field
    response: Created


class UsedPasskey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A passkey that was used: its id and the challenge that it answers are base64url."""

    id: Annotated[str, msgspec.Meta(max_length=MAX_ID_LENGTH)]
    challenge: Field
    response: Asserted


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """Whom passkeys belong to: a host name, and the one origin that may use them."""

    id: str
    origin: str


class Challenges:
    """Challenges that wait for their answer: each good once, for one purpose, for two minutes."""

    def __init__(self, max_waiting: int = MAX_CHALLENGES) -> None:
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._waiting: OrderedDict[bytes, tuple[str, int]] = OrderedDict()

    def new(self, purpose: str, now_ms: int) -> bytes:
        """A challenge for ``purpose``; the oldest is forgotten when there are too many."""
        challenge = secrets.token_bytes(32)
        with self._lock:
            self._waiting[challenge] = (purpose, now_ms)
            if len(self._waiting) > self._max_waiting:
                self._waiting.popitem(last=False)
        return challenge

    def take(self, challenge: bytes, purpose: str, now_ms: int) -> bool:
        """Whether this challenge was given for ``purpose`` and is fresh. It is good once."""
        with self._lock:
            known = self._waiting.pop(challenge, None)
        if known is None:
            return False
        return known[0] == purpose and 0 <= now_ms - known[1] < CHALLENGE_TTL_MS


def relying_party(public_url: str) -> RelyingParty | None:
    """Who passkeys of the page at ``public_url`` belong to; None where browsers allow none."""
    parts = urlsplit(public_url)
    host = parts.hostname or ""
    port = "" if parts.port in (None, _PORTS.get(parts.scheme)) else f":{parts.port}"
    if is_loopback(host):
        return RelyingParty("localhost", f"{parts.scheme}://localhost{port}")
    if parts.scheme != "https" or _is_address(host):
        return None
    return RelyingParty(host, f"https://{host}{port}")


def creation_options(party: RelyingParty, user: str, challenge: bytes) -> dict[str, Any]:
    """What the page hands to ``navigator.credentials.create``, in JSON."""
    options = generate_registration_options(
        rp_id=party.id,
        rp_name=RP_NAME,
        user_name=user,
        # the same for the same person, so that a new passkey takes the place of the one before
        user_id=hashlib.sha256(f"edgepack-user:{user}".encode()).digest(),
        challenge=challenge,
        timeout=CHALLENGE_TTL_MS,
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED,
            user_verification=UserVerificationRequirement.REQUIRED,
        ),
    )
    return _json(options_to_json(options))


def request_options(party: RelyingParty, challenge: bytes) -> dict[str, Any]:
    """What the page hands to ``navigator.credentials.get``, in JSON: any passkey of this party."""
    options = generate_authentication_options(
        rp_id=party.id,
        challenge=challenge,
        timeout=CHALLENGE_TTL_MS,
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    return _json(options_to_json(options))


def add_passkey(
    session: Session, party: RelyingParty, user: str, passkey: NewPasskey, *, now_ms: int
) -> None:
    """Check a new passkey and keep it. The caller has taken the challenge.

    Raises:
        InvalidRequestError: It does not hold, or is somebody's already.
    """
    try:
        made = verify_registration_response(
            credential=_credential(passkey.id, passkey.response),
            expected_challenge=challenge_of(passkey),
            expected_rp_id=party.id,
            expected_origin=party.origin,
            require_user_verification=True,
        )
        # else a key that can check nothing would be found out only when it is needed
        decoded_public_key_to_cryptography(decode_credential_public_key(made.credential_public_key))
    except _HOSTILE as error:
        raise _refused("the browser's answer does not hold") from error
    name = bytes_to_base64url(made.credential_id)
    if name != passkey.id or session.get(PasskeyRow, name) is not None:
        raise _refused("it is in use already, or not the one it says it is")
    session.add(
        PasskeyRow(
            credential=name,
            user=user,
            public_key=made.credential_public_key,
            sign_count=made.sign_count,
            created_ms=now_ms,
        )
    )
    session.flush()


def use_passkey(
    session: Session, party: RelyingParty, passkey: UsedPasskey, *, now_ms: int
) -> str | None:
    """Whose passkey answered; None when it is unknown, does not hold, or its counter went back.

    A counter that does not grow is what a copied authenticator shows (WebAuthn, 6.1.1). The caller
    has taken the challenge.
    """
    row = session.get(PasskeyRow, passkey.id)
    if row is None:
        return None
    try:
        used = verify_authentication_response(
            credential=_credential(passkey.id, passkey.response),
            expected_challenge=challenge_of(passkey),
            expected_rp_id=party.id,
            expected_origin=party.origin,
            credential_public_key=row.public_key,
            credential_current_sign_count=row.sign_count,
            require_user_verification=True,
        )
    except _HOSTILE:
        return None
    row.sign_count, row.last_used_ms = used.new_sign_count, now_ms
    return row.user


def challenge_of(passkey: NewPasskey | UsedPasskey) -> bytes:
    """The challenge that an answer says it is for; empty when it is not base64url."""
    try:
        return base64url_to_bytes(passkey.challenge)
    except ValueError:
        return b""


def _credential(name: str, response: Created | Asserted) -> dict[str, Any]:
    fields = msgspec.to_builtins(response)
    return {"id": name, "rawId": name, "type": "public-key", "response": fields}


def _refused(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"this passkey cannot be used: {why}", code="bad-passkey")


def _json(options: str) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(options)
    return decoded


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

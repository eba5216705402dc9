"""A passkey in software: makes and signs what an authenticator would, and lies when told to."""

from __future__ import annotations

import hashlib
import json
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

UP, UV, AT = 1, 4, 64


def text64(raw: bytes) -> str:
    """Base64url without padding."""
    return urlsafe_b64encode(raw).decode().rstrip("=")


def bytes64(text: str) -> bytes:
    """The bytes of base64url."""
    return urlsafe_b64decode(text + "===")


@dataclass
class Passkey:
    """One P-256 credential for one origin."""

    origin: str = "http://localhost:8080"
    party: str = "localhost"
    id: bytes = b"credential-1"
    count: int = 0
    flags: int = UP | UV
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def make(self, options: dict[str, Any]) -> dict[str, Any]:
        """What the page sends after ``navigator.credentials.create``."""
        point = self.key.public_key().public_numbers()
        cose = {
            1: 2,
            3: -7,
            -1: 1,
            -2: point.x.to_bytes(32, "big"),
            -3: point.y.to_bytes(32, "big"),
        }
        attested = b"\1" * 16 + struct.pack(">H", len(self.id)) + self.id + cbor2.dumps(cose)
        data = self._data(self.flags | AT) + attested
        attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
        return {
            "id": text64(self.id),
            "challenge": options["challenge"],
            "response": {
                "clientDataJSON": text64(self._client("webauthn.create", options["challenge"])),
                "attestationObject": text64(attestation),
            },
        }

    def use(self, options: dict[str, Any], *, count: int | None = None) -> dict[str, Any]:
        """What the page sends after ``navigator.credentials.get``."""
        self.count = self.count + 1 if count is None else count
        client, data = self._client("webauthn.get", options["challenge"]), self._data(self.flags)
        signed = data + hashlib.sha256(client).digest()
        return {
            "id": text64(self.id),
            "challenge": options["challenge"],
            "response": {
                "clientDataJSON": text64(client),
                "authenticatorData": text64(data),
                "signature": text64(self.key.sign(signed, ec.ECDSA(hashes.SHA256()))),
            },
        }

    def _client(self, kind: str, challenge: str) -> bytes:
        return json.dumps({"type": kind, "challenge": challenge, "origin": self.origin}).encode()

    def _data(self, flags: int) -> bytes:
        party = hashlib.sha256(self.party.encode()).digest()
        return party + bytes([flags]) + struct.pack(">I", self.count)

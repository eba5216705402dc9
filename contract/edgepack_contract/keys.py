"""ECDSA P-256 keys: one curve for every signature, because OpenSSF Model Signing has no Ed25519.

Signatures are deterministic (RFC 6979) and DER encoded. A key's fingerprint is the SHA-256 of its
SubjectPublicKeyInfo in DER.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack_contract.errors import SigningKeyError, UntrustedDocumentError
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half of a key."""

    key: ec.EllipticCurvePublicKey

    @classmethod
    def from_pem(cls, pem: bytes) -> PublicKey:
        """Read a PEM SubjectPublicKeyInfo.

        Raises:
            SigningKeyError: Not PEM, or not a P-256 key.
        """
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise SigningKeyError("not a public key in PEM form", code="bad-key") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise SigningKeyError(
                "the public key is not on curve P-256, the only one edgepack accepts",
                code="bad-key",
            )
        return cls(key)

    @property
    def pem(self) -> bytes:
        """PEM SubjectPublicKeyInfo."""
        return self.key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def fingerprint(self) -> str:
        """64 hex digits: SHA-256 of the DER SubjectPublicKeyInfo."""
        der = self.key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(der).hexdigest()

    def verify(self, signature: bytes, data: bytes) -> None:
        """Check a DER signature over ``data``.

        Raises:
            UntrustedDocumentError: The signature is not this key's over these bytes.
        """
        try:
            self.key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise UntrustedDocumentError(
                f"the signature is not one of key {self.fingerprint[:16]} over these bytes",
                code="bad-signature",
            ) from error


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A signing key."""

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def generate(cls) -> PrivateKey:
        """Make a new key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes, passphrase: bytes | None = None) -> PrivateKey:
        """Read a PKCS#8 PEM, encrypted or not.

        Raises:
            SigningKeyError: Not a key, the wrong passphrase, or not a P-256 key.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=passphrase)
        except TypeError as error:
            needs = "no passphrase" if passphrase else "a passphrase"
            raise SigningKeyError(f"this private key needs {needs}", code="passphrase") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise SigningKeyError(
                "not a private key in PEM form, or the passphrase is wrong", code="bad-key"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise SigningKeyError(
                "the private key is not on curve P-256, the only one edgepack accepts",
                code="bad-key",
            )
        return cls(key)

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(self.key.public_key())

    def pem(self, passphrase: bytes | None = None) -> bytes:
        """PKCS#8 PEM, encrypted when a passphrase is given."""
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            encryption = serialization.BestAvailableEncryption(passphrase)
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )

    def sign(self, data: bytes) -> bytes:
        """A deterministic DER signature over ``data``."""
        return self.key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def write_private_key(path: Path, key: PrivateKey, passphrase: bytes | None = None) -> None:
    """Write a new key file with mode 0600, durably; an existing file is never replaced.

    Raises:
        SigningKeyError: The file exists.
        OSError: The folder is missing, full, or may not be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise SigningKeyError(
            f"{path} exists; a key is never overwritten: move it away first", code="key-exists"
        ) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(key.pem(passphrase))
            stream.flush()
            os.fsync(handle)
    except BaseException:
        # A torn key would hold the name for good, because a key is never overwritten.
        path.unlink()
        raise


def read_private_key(path: Path, passphrase: bytes | None = None) -> PrivateKey:
    """Read a key file that only its owner can read.

    Raises:
        SigningKeyError: Missing, readable by others, or not a usable key.
    """
    try:
        mode = path.stat().st_mode
        pem = _read_bounded(path)
    except OSError as error:
        raise SigningKeyError(f"cannot read key {path}: {error.strerror}", code="no-key") from error
    if mode & 0o077:
        raise SigningKeyError(
            f"{path} can be read by others (mode {mode & 0o777:04o}); run: chmod 600 {path}",
            code="key-mode",
        )
    try:
        return PrivateKey.from_pem(pem, passphrase)
    except SigningKeyError as error:
        raise SigningKeyError(f"{path}: {error}", code=error.code) from error


def read_public_key(path: Path) -> PublicKey:
    """Read a public key file.

    Raises:
        SigningKeyError: Missing, or not a usable key.
    """
    try:
        pem = _read_bounded(path)
    except OSError as error:
        raise SigningKeyError(f"cannot read key {path}: {error.strerror}", code="no-key") from error
    try:
        return PublicKey.from_pem(pem)
    except SigningKeyError as error:
        raise SigningKeyError(f"{path}: {error}", code=error.code) from error


def _read_bounded(path: Path) -> bytes:
    data = read_small(path, LIMITS.key_file_bytes)
    if len(data) > LIMITS.key_file_bytes:
        raise SigningKeyError(
            f"{path} is larger than {LIMITS.key_file_bytes} bytes: not a key", code="bad-key"
        )
    return data

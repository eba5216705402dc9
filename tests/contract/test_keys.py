from __future__ import annotations

import base64
import contextlib
import errno
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edgepack_contract.errors import SigningKeyError, UntrustedDocumentError
from edgepack_contract.keys import (
    PrivateKey,
    PublicKey,
    read_private_key,
    read_public_key,
    write_private_key,
)


def test_sign_and_verify_and_be_deterministic():
    key = PrivateKey.generate()
    signature = key.sign(b"hello")
    assert signature == key.sign(b"hello")
    key.public.verify(signature, b"hello")
    with pytest.raises(UntrustedDocumentError):
        key.public.verify(signature, b"hellp")
    with pytest.raises(UntrustedDocumentError):
        PrivateKey.generate().public.verify(signature, b"hello")
    for junk in (b"", b"0", signature[:-1], signature + b"\0"):
        with pytest.raises(UntrustedDocumentError):
            key.public.verify(junk, b"hello")


def test_files_round_trip_with_and_without_passphrase(tmp_path):
    key = PrivateKey.generate()
    for name, passphrase in (("plain.key", None), ("secret.key", b"correct horse")):
        path = tmp_path / name
        write_private_key(path, key, passphrase)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert read_private_key(path, passphrase).public.fingerprint == key.public.fingerprint
        with pytest.raises(SigningKeyError, match="exists"):
            write_private_key(path, key)


def test_a_key_others_can_read_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "owner.key"
    write_private_key(path, PrivateKey.generate())
    path.chmod(0o644)
    with pytest.raises(SigningKeyError, match="chmod 600") as caught:
        read_private_key(path)
    assert caught.value.code == "key-mode"


def test_wrong_missing_and_needless_passphrases(tmp_path):
    path = tmp_path / "owner.key"
    write_private_key(path, PrivateKey.generate(), b"right")
    for passphrase in (None, b"wrong"):
        with pytest.raises(SigningKeyError):
            read_private_key(path, passphrase)


def test_other_curves_and_kinds_are_refused(tmp_path):
    encoding, public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    for key in (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
        with pytest.raises(SigningKeyError, match="P-256"):
            PublicKey.from_pem(key.public_key().public_bytes(encoding, public))
        private = key.private_bytes(
            encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with pytest.raises(SigningKeyError, match="P-256"):
            PrivateKey.from_pem(private)


def test_garbage_and_absent_files_name_the_file(tmp_path):
    (tmp_path / "big.pub").write_bytes(b"x" * 100_000)
    (tmp_path / "junk.pub").write_bytes(b"junk")
    with pytest.raises(SigningKeyError, match=r"big\.pub"):
        read_public_key(tmp_path / "big.pub")
    with pytest.raises(SigningKeyError):
        read_public_key(tmp_path / "junk.pub")
    with pytest.raises(SigningKeyError, match=r"none\.pub"):
        read_public_key(tmp_path / "none.pub")


def test_a_curve_that_the_library_does_not_know_is_a_bad_key_and_not_a_crash():
    der = bytearray(
        PrivateKey.generate().public.key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    for place in range(len(der)):
        for mask in (0x01, 0x0F, 0x80):
            altered = bytearray(der)
            altered[place] ^= mask
            body = base64.encodebytes(bytes(altered))
            pem = b"-----BEGIN PUBLIC KEY-----\n" + body + b"-----END PUBLIC KEY-----\n"
            with contextlib.suppress(SigningKeyError):
                PublicKey.from_pem(pem)


def test_a_key_that_could_not_be_written_leaves_its_name_free(tmp_path, monkeypatch):
    path = tmp_path / "owner.key"

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("edgepack_contract.keys.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_private_key(path, PrivateKey.generate())
    assert not path.exists()
    write_private_key(path, PrivateKey.generate())

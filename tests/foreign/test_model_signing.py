"""The reference tool of OpenSSF Model Signing accepts our signatures, and we accept its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bundle_samples import PUBLISHER, keyring, three_variants

from edgepack_contract.bundle import BundleFile
from edgepack_contract.errors import UntrustedBundleError
from edgepack_contract.layout import unpack, write_bundle
from edgepack_contract.trusted import TrustedBundle

EVIDENCE = {"report.json": b"{}"}


def model_signing(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def public_key(tmp_path):
    path = tmp_path / "publisher.pub"
    path.write_bytes(PUBLISHER.public.pem)
    return path


@pytest.fixture
def private_key(tmp_path):
    path = tmp_path / "publisher.key"
    path.write_bytes(PUBLISHER.pem())
    return path


def unpacked(folder: Path, **options) -> tuple[TrustedBundle, Path]:
    path = folder / "digits.edgepack"
    write_bundle(path, three_variants(), evidence=EVIDENCE, **options)
    with BundleFile.open(path) as file:
        return unpack(file, folder / "digits"), folder / "digits"


def test_it_accepts_an_unpacked_bundle_and_notices_a_change(tmp_path, public_key):
    _, tree = unpacked(tmp_path, signer=PUBLISHER)
    arguments = ("verify", "key", tree, "--signature", tree / "bundle.sig", "--public_key")
    accepted = model_signing(*arguments, public_key, "--ignore-paths", tree / "bundle.sig")
    assert accepted.returncode == 0, accepted.stderr
    assert "succeeded" in accepted.stdout

    model = tree / "arm64-dot" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"!")
    refused = model_signing(*arguments, public_key)
    assert refused.returncode != 0
    assert "arm64-dot/model.onnx" in refused.stderr


@pytest.mark.parametrize("place", ["digits/bundle.sig", "outside.sig"])
def test_we_accept_its_signatures(tmp_path, private_key, place):
    bundle, tree = unpacked(tmp_path)
    signature = tmp_path / place
    signed = model_signing(
        "sign", "key", tree, "--signature", signature, "--private_key", private_key
    )
    assert signed.returncode == 0, signed.stderr
    raw = signature.read_bytes()
    assert bundle.with_signature(raw, keyring()).signed_by == PUBLISHER.public.fingerprint


def test_we_refuse_its_signature_over_another_tree(tmp_path, private_key):
    bundle, tree = unpacked(tmp_path)
    (tree / "bundle-index.json").write_bytes(b"{}")
    signature = tmp_path / "outside.sig"
    signed = model_signing(
        "sign", "key", tree, "--signature", signature, "--private_key", private_key
    )
    assert signed.returncode == 0, signed.stderr
    with pytest.raises(UntrustedBundleError):
        bundle.with_signature(signature.read_bytes(), keyring())

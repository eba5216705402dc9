"""A foreign client pulls a bundle from the fleet: the same digests, and a device verifies it."""

from __future__ import annotations

import hashlib
import json
import subprocess

import pytest
from bundle_samples import PUBLISHER, keyring, one_variant, three_variants
from fleet_http import MAC_KEY, open_fleet, served

from edgepack_contract.layout import write_bundle
from edgepack_contract.sealing import derived_secret
from edgepack_contract.trusted import TrustedBundle


def skopeo(*arguments):
    done = subprocess.run(
        ["skopeo", "--override-os=linux", *arguments], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        fleet.add_device("pi-1")
        path = tmp_path / "digits.edgepack"
        write_bundle(path, three_variants(), signer=PUBLISHER, evidence={"report.json": b"{}"})
        assert fleet.push(path).status_code == 201
        yield fleet


def sha256(raw):
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


@pytest.mark.foreign("skopeo")
@pytest.mark.parametrize("as_device", [True, False])
def test_skopeo_copies_every_tag_with_equal_digests(fleet, tmp_path, as_device):
    secret = derived_secret(MAC_KEY, "pull")
    credentials = f"pi-1:{secret}" if as_device else f"token:{fleet.tokens['viewer']}"
    row = fleet.client("viewer").get("/api/v1/bundles/digits/1.0.0").json()
    layout = tmp_path / "layout"
    with served(fleet) as url:
        repository = f"docker://{url.removeprefix('http://')}/digits"
        access = ["--tls-verify=false", "--creds", credentials]
        tags = json.loads(skopeo("list-tags", *access, repository))["Tags"]
        assert sorted(tags) == sorted(row["tags"])
        for tag in tags:
            source = ["--src-tls-verify=false", "--src-creds", credentials]
            skopeo(
                "copy", "--all", "--preserve-digests", *source,
                f"{repository}:{tag}", f"oci:{layout}:{tag}",
            )  # fmt: skip

    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    copied = {e["annotations"]["org.opencontainers.image.ref.name"]: e["digest"] for e in entries}
    assert copied == row["tags"]
    blobs = layout / "blobs" / "sha256"
    for path in blobs.iterdir():
        assert sha256(path.read_bytes()) == f"sha256:{path.name}"

    def blob(digest):
        return (blobs / digest.removeprefix("sha256:")).read_bytes()

    bundle = TrustedBundle.from_index(blob(row["digest"]), expected=row["digest"])
    manifest = bundle.signature_manifest(blob(copied[f"sha256-{row['digest'][7:]}.sig"]))
    trusted = bundle.with_signature(blob(manifest.layers[0].digest), keyring())
    assert trusted.signed_by == PUBLISHER.public.fingerprint


@pytest.mark.foreign("skopeo")
def test_skopeo_copies_what_the_fleet_has_compressed_copies_of(fleet, tmp_path):
    """Its HTTP library asks for gzip by itself; what arrives must be the blob."""
    table = b"".join(f"row {number} of a table\n".encode() for number in range(9000))
    files = {"golden.safetensors": b"golden", "model.onnx": table, "reference.json": b"{}"}
    path, layout = tmp_path / "words.edgepack", tmp_path / "words"
    write_bundle(path, one_variant(files, name="words", version="1.0.0"), signer=PUBLISHER)
    assert fleet.push(path).status_code == 201
    assert list((fleet.folder / "packed").iterdir())
    with served(fleet) as url:
        skopeo(
            "copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--src-creds",
            f"pi-1:{derived_secret(MAC_KEY, 'pull')}",
            f"docker://{url.removeprefix('http://')}/words:1.0.0", f"oci:{layout}:1.0.0",
        )  # fmt: skip
    assert (layout / "blobs" / "sha256" / sha256(table)[7:]).read_bytes() == table


@pytest.mark.foreign("skopeo")
def test_skopeo_without_credentials_is_told_so(fleet):
    with served(fleet) as url:
        done = subprocess.run(
            ["skopeo", "list-tags", "--tls-verify=false", "--no-creds",
             f"docker://{url.removeprefix('http://')}/digits"],
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode != 0
    assert b"authentication required" in done.stderr.lower() or b"unauthorized" in done.stderr

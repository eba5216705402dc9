"""``skopeo`` carries a bundle into Debian's ``docker-registry`` and back, unchanged."""

from __future__ import annotations

import io
import json
import queue
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_samples import PUBLISHER, keyring, three_variants

from edgepack_contract.bundle import BundleFile, open_bundle, open_variant, verify_layers
from edgepack_contract.digest import sha256_digest
from edgepack_contract.layout import copy_bundle, write_bundle
from edgepack_contract.oci import REF_NAME, Descriptor, evidence_tag, signature_tag

pytestmark = pytest.mark.foreign("skopeo", "docker-registry")

CONFIG = """
version: 0.1
log: {{level: info, formatter: text}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:0"}}
"""


@pytest.fixture
def registry(tmp_path) -> Iterator[str]:
    """The address of a registry that is empty and gone after the test."""
    config = tmp_path / "registry.yml"
    config.write_text(CONFIG.format(folder=tmp_path / "registry"))
    process = subprocess.Popen(
        ["docker-registry", "serve", config],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: queue.Queue[str] = queue.Queue()
    # A thread reads to the end, so that the registry never waits for somebody to read its log
    reader = threading.Thread(target=_pass_on, args=(process, said))
    reader.start()
    try:
        yield _address(said)
    finally:
        process.kill()
        process.wait()
        reader.join()


def _pass_on(process: subprocess.Popen[str], said: queue.Queue[str]) -> None:
    assert process.stderr is not None
    with process.stderr as log:
        for line in log:
            said.put(line)
    said.put("")


def _address(said: queue.Queue[str]) -> str:
    while line := said.get(timeout=30):
        if found := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
            return found[1]
    raise AssertionError("the registry ended without listening")


class LayoutFolder:
    """A bundle source over a folder in OCI image layout, as skopeo writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resolve(self, reference: str) -> bytes | None:
        entries = json.loads((self.folder / "index.json").read_bytes())["manifests"]
        tags = {entry.get("annotations", {}).get(REF_NAME): entry["digest"] for entry in entries}
        path = self._blob(tags.get(reference, reference))
        return path.read_bytes() if path.is_file() else None

    def open_blob(self, descriptor: Descriptor) -> io.BufferedReader:
        return self._blob(descriptor.digest).open("rb")

    def _blob(self, digest: str) -> Path:
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")


def skopeo(*arguments: str) -> None:
    command = ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_bundle_survives_the_way_into_a_registry_and_back(tmp_path, registry):
    path = tmp_path / "digits.edgepack"
    digest = write_bundle(
        path, three_variants(), signer=PUBLISHER, evidence={"report.json": b'{"p50_ms":1.5}'}
    )
    for tag in ("1.0.0", signature_tag(digest), evidence_tag(digest)):
        there = f"docker://{registry}/models/digits:{tag}"
        skopeo("--dest-tls-verify=false", f"oci-archive:{path}:{tag}", there)
        skopeo("--src-tls-verify=false", there, f"oci:{tmp_path / 'back'}:{tag}")

    source = LayoutFolder(tmp_path / "back")
    bundle = open_bundle(source, "1.0.0", keyring=keyring(), name="digits")
    assert (bundle.digest, sha256_digest(bundle.raw_index)) == (digest, digest)
    for variant in bundle.variants:
        verify_layers(open_variant(bundle, source, variant), source)

    back = tmp_path / "back.edgepack"
    assert copy_bundle(source, digest, back, keyring=keyring()) == digest
    assert back.read_bytes() == path.read_bytes()
    with BundleFile.open(back) as file:
        assert open_bundle(file, digest, keyring=keyring()).evidence_digest is not None

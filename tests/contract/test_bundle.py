"""Hostile bundles: each attack is made on bytes, and meets its refusal."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from bundle_forgery import blob, entries_of, put, resigned, resigned_tree, rewritten
from bundle_samples import FILES, PUBLISHER, STRANGER, keyring, one_variant, three_variants

from edgepack_contract.bundle import (
    BundleFile,
    open_bundle,
    open_evidence,
    open_variant,
    read_blob,
    verify_bundle_file,
    verify_layers,
)
from edgepack_contract.canonical import canonical_json
from edgepack_contract.digest import sha256_digest
from edgepack_contract.errors import (
    BundleError,
    MalformedBundleError,
    SourceError,
    UntrustedBundleError,
)
from edgepack_contract.keyring import KeyStatus
from edgepack_contract.layout import BundleContent, write_bundle
from edgepack_contract.oci import Descriptor, evidence_tag, signature_tag
from edgepack_contract.oci_layout import INDEX_ENTRY, LAYOUT_ENTRY
from edgepack_contract.signing import sign_tree
from edgepack_contract.trusted import TrustedBundle

EVIDENCE = {"report.json": b'{"p50_ms": 1.5}'}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "digits-1.0.0.edgepack"


def written(path: Path, content: BundleContent | None = None, **options: Any) -> Path:
    options = {"signer": PUBLISHER, "evidence": EVIDENCE} | options
    write_bundle(path, content or one_variant(), **options)
    return path


def verified(path: Path, **changes: Any) -> TrustedBundle:
    with BundleFile.open(path) as file:
        return verify_bundle_file(file, keyring=keyring(**changes))


def refused(path: Path, kind: type[BundleError] = BundleError, **changes: Any) -> str:
    with pytest.raises(kind) as refusal:
        verified(path, **changes)
    return refusal.value.code


def test_a_good_bundle_is_proven(path):
    bundle = verified(written(path, three_variants()))
    assert (bundle.name, bundle.version, bundle.security_version) == ("digits", "1.0.0", 3)
    assert [one.name for one in bundle.variants] == ["generic", "x86-64-v3-int8", "arm64-dot"]
    assert bundle.signed_by == PUBLISHER.public.fingerprint
    assert bundle.digest == sha256_digest(bundle.raw_index)


def test_layers_and_evidence_are_read(path):
    with BundleFile.open(written(path)) as file:
        bundle = open_bundle(file, "1.0.0", keyring=keyring(), name="digits")
        (variant,) = bundle.variants
        found = open_variant(bundle, file, variant)
        verify_layers(found, file)
        model = read_blob(file, found.layers["model.onnx"], what="model", max_bytes=100)
        assert model == FILES["model.onnx"]
        report = open_evidence(bundle, file)["report.json"]
        assert read_blob(file, report, what="report", max_bytes=100) == EVIDENCE["report.json"]


def test_without_a_keyring_nothing_is_vouched_for(path):
    with BundleFile.open(written(path)) as file:
        bundle = open_bundle(file, file.digest, keyring=None)
    assert bundle.signed_by is None
    assert bundle.signed_files is None
    assert bundle.evidence_digest is None


@pytest.mark.parametrize("reference", [f"sha256:{'0' * 64}", "9.9.9", "latest", ""])
def test_what_is_not_there(path, reference):
    with BundleFile.open(written(path)) as file, pytest.raises(SourceError):
        open_bundle(file, reference, keyring=None)


def test_every_third_byte_flipped_is_refused(path):
    raw = written(path).read_bytes()
    with path.open("r+b", buffering=0) as file:
        for offset, byte in list(enumerate(raw))[::3]:
            os.pwrite(file.fileno(), bytes([byte ^ 1 << offset % 8]), offset)
            with pytest.raises((BundleError, SourceError)):
                verified(path)
            os.pwrite(file.fileno(), bytes([byte]), offset)
    assert path.read_bytes() == raw
    verified(path)


def test_every_truncation_is_refused(path):
    raw = written(path).read_bytes()
    for length in range(len(raw) - 1, -1, -1):
        os.truncate(path, length)
        refused(path, MalformedBundleError)


def test_trailing_bytes_and_a_second_archive(path):
    raw = written(path).read_bytes()
    for more in (b"\0", bytes(512), b"x" * 512, raw):
        path.write_bytes(raw + more)
        refused(path, MalformedBundleError)


# --- arbitrary software ---------------------------------------------------------------------------


def test_unsigned(path):
    assert refused(written(path, signer=None), UntrustedBundleError) == "unsigned"


def test_signed_by_a_stranger(path):
    assert refused(written(path, signer=STRANGER), UntrustedBundleError) == "unknown-publisher"


def test_signed_by_a_stranger_under_the_hint_of_the_publisher(path):
    files = entries_of(written(path, signer=STRANGER))

    def claim(raw: bytes) -> bytes:
        bundle = json.loads(raw)
        mine = json.loads(sign_tree({"bundle-index.json": "0" * 64}, PUBLISHER, name="x"))
        return canonical_json(bundle | {"verificationMaterial": mine["verificationMaterial"]})

    resigned(path, files, claim)
    assert refused(path, UntrustedBundleError) == "bad-signature"


def test_the_resigner_of_these_tests_changes_nothing_by_itself(path):
    before = written(path).read_bytes()
    resigned(path, entries_of(path), lambda raw: raw)
    assert verified(path).digest == sha256_digest(entries_of(path)[blob(verified(path).digest)])
    assert len(path.read_bytes()) == len(before)
    resigned_tree(path, lambda tree: tree)
    verified(path)


# --- mix and match --------------------------------------------------------------------------------


def test_the_signature_of_another_bundle_of_the_same_publisher(path, tmp_path):
    other = entries_of(written(tmp_path / "other", one_variant(version="2.0.0")))
    genuine = next(raw for raw in other.values() if b"sigstore" in raw and b"dsse" in raw)
    written(path)
    resigned(path, entries_of(path), lambda _: genuine)
    assert refused(path, UntrustedBundleError) == "wrong-bundle"


def test_files_swapped_between_two_valid_bundles(path, tmp_path):
    first = entries_of(written(path))
    second = entries_of(written(tmp_path / "b", one_variant({**FILES, "model.onnx": b"b graph"})))
    one = blob(sha256_digest(b"a graph"))
    two = blob(sha256_digest(b"b graph"))
    for files, mine, other in ((first, one, second[two]), (second, two, first[one])):
        rewritten(path, files | {mine: other})
        assert refused(path, MalformedBundleError) == "wrong-digest"


def test_another_variant_under_a_valid_index(path, tmp_path):
    first = entries_of(written(path))
    second = entries_of(written(tmp_path / "b", one_variant(variant="other")))
    manifests = [
        [name for name, raw in files.items() if b'"artifactType":"application/vnd.cncf' in raw
         and b'"config"' in raw]
        for files in (first, second)
    ]  # fmt: skip
    ((mine,), (other,)) = manifests
    rewritten(path, first | {mine: second[other]})
    assert refused(path, MalformedBundleError) == "wrong-digest"


def described_as(path: Path, **changes: Any) -> None:
    """Write a signed bundle whose index says something else than its ``edgepack.json``."""
    files = entries_of(written(path, evidence=None))
    layout = json.loads(files[INDEX_ENTRY])
    files.pop(blob(layout["manifests"][1]["digest"]))
    entry = layout["manifests"][0]
    index = json.loads(files.pop(blob(entry["digest"])))
    files = {name: raw for name, raw in files.items() if b"sigstore" not in raw and raw != b"{}"}
    variant = index["manifests"][0]
    for place in (index["annotations"], variant["annotations"], variant["platform"]):
        place |= {key: value for key, value in changes.items() if key in place}
    put(files, entry, canonical_json(index))
    entry["annotations"] = {
        "org.opencontainers.image.ref.name": index["annotations"]["dev.edgepack.version"]
    }
    files[INDEX_ENTRY] = canonical_json(layout | {"manifests": [entry]})
    rewritten(path, files)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dev.edgepack.name", "other"),
        ("dev.edgepack.version", "2.0.0"),
        ("dev.edgepack.security-version", "9"),
        ("dev.edgepack.variant", "other"),
        ("dev.edgepack.features", "avx2"),
        ("dev.edgepack.min-runtime", "1.0.0"),
        ("dev.edgepack.memory-bytes", "1"),
        ("architecture", "arm64"),
    ],
)
def test_an_index_that_contradicts_the_description(path, field, value):
    described_as(path)
    with BundleFile.open(path) as file:
        verify_bundle_file(file, keyring=None)
    described_as(path, **{field: value})
    with BundleFile.open(path) as file, pytest.raises(MalformedBundleError) as refusal:
        verify_bundle_file(file, keyring=None)
    assert refusal.value.code == "wrong-description"
    assert value in str(refusal.value)


def test_a_manifest_with_a_file_that_the_description_does_not_list(path):
    files = entries_of(written(path, evidence=None, signer=None))
    layout = json.loads(files[INDEX_ENTRY])
    entry = layout["manifests"][0]
    index = json.loads(files.pop(blob(entry["digest"])))
    variant = index["manifests"][0]
    manifest = json.loads(files.pop(blob(variant["digest"])))
    extra = json.loads(json.dumps(manifest["layers"][0]))
    extra["annotations"] = {"org.cncf.model.filepath": "extra.json"}
    put(files, extra, b"{}")
    manifest["layers"].append(extra)
    put(files, variant, canonical_json(manifest))
    put(files, entry, canonical_json(index))
    files[INDEX_ENTRY] = canonical_json(layout)
    with (
        BundleFile.open(rewritten(path, files)) as file,
        pytest.raises(MalformedBundleError, match=r"extra\.json") as refusal,
    ):
        verify_bundle_file(file, keyring=None)
    assert refusal.value.code == "wrong-files"


MODEL = "generic/model.onnx"
ZEROS = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda tree: {**tree, MODEL: ZEROS}, "wrong-files"),
        (lambda tree: {**tree, "generic/extra": ZEROS}, "wrong-files"),
        (lambda tree: {path: tree[path] for path in tree if path != MODEL}, "wrong-files"),
        (lambda tree: {**tree, "other/model.onnx": ZEROS}, "bad-statement"),
        (lambda tree: {**tree, "README": ZEROS}, "bad-statement"),
        (lambda tree: {"bundle-index.json": tree["bundle-index.json"]}, "bad-statement"),
        (lambda tree: {**tree, "bundle-index.json": ZEROS}, "wrong-bundle"),
        (lambda tree: {path: tree[path] for path in tree if "/" in path}, "wrong-bundle"),
        (lambda tree: {**tree, "evidence-manifest.json": ZEROS}, "wrong-evidence"),
        (
            lambda tree: {p: d for p, d in tree.items() if p != "evidence-manifest.json"},
            "wrong-evidence",
        ),
    ],
)
def test_a_genuine_signature_over_another_tree(path, change, code):
    written(path)
    resigned_tree(path, change)
    assert refused(path) == code


def test_the_evidence_of_another_bundle(path, tmp_path):
    first = written(path, signer=None)
    with BundleFile.open(written(tmp_path / "b", one_variant(version="2.0.0"))) as other:
        bundle = open_bundle(other, "2.0.0", keyring=None)
        raw = other.resolve(evidence_tag(bundle.digest))
    assert raw is not None
    with BundleFile.open(first) as file:
        mine = open_bundle(file, "1.0.0", keyring=None)
    with pytest.raises(MalformedBundleError, match="not about this bundle"):
        mine.evidence_manifest(raw)
    with BundleFile.open(path) as file:
        evidence = file.resolve(evidence_tag(mine.digest))
    assert evidence is not None
    with pytest.raises(MalformedBundleError):
        mine.signature_manifest(evidence)


# --- key compromise, wrong name -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"names": ["faces-*"]}, "wrong-name"),
        ({"names": []}, "wrong-name"),
        ({"status": KeyStatus.REVOKED}, "revoked-publisher"),
        ({"status": KeyStatus.RETIRED}, "retired-publisher"),
        ({"status": KeyStatus.RETIRED, "digests": [ZEROS]}, "retired-publisher"),
        ({"key": STRANGER}, "unknown-publisher"),
    ],
)
def test_a_key_that_may_not_vouch_for_this_bundle(path, changes, code):
    assert refused(written(path), UntrustedBundleError, **changes) == code


def test_a_retired_key_vouches_for_the_digests_it_lists(path):
    digest = verified(written(path)).digest
    verified(path, status=KeyStatus.RETIRED, digests=[digest])


def test_a_bundle_of_another_name_or_digest_than_asked_for(path):
    with BundleFile.open(written(path)) as file:
        with pytest.raises(MalformedBundleError) as refusal:
            open_bundle(file, "1.0.0", keyring=keyring(), name="faces")
        assert refusal.value.code == "wrong-bundle"
        raw = open_bundle(file, "1.0.0", keyring=None).raw_index
        with pytest.raises(MalformedBundleError) as refusal:
            TrustedBundle.from_index(raw, expected=ZEROS)
        assert refusal.value.code == "wrong-digest"


# --- the file around it ---------------------------------------------------------------------------


def test_blobs_that_belong_to_nothing(path):
    files = entries_of(written(path))
    extra = b"smuggled"
    rewritten(path, files | {blob(sha256_digest(extra)): extra})
    assert refused(path, MalformedBundleError) == "stray-blob"


@pytest.mark.parametrize(
    "name", ["readme", "blobs/sha256/xyz", "blobs/sha512/" + "0" * 64, "blobs"]
)
def test_entries_that_are_no_part_of_a_layout(path, name):
    rewritten(path, entries_of(written(path)) | {name: b""})
    assert refused(path, MalformedBundleError) == "bad-layout"


def test_every_missing_entry_is_noticed(path):
    files = entries_of(written(path, three_variants()))
    for name in files:
        rewritten(path, {other: raw for other, raw in files.items() if other != name})
        with pytest.raises((MalformedBundleError, SourceError)):
            verified(path)


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"imageLayoutVersion":"1.1.0"}', b"x" * 1000])
def test_another_layout_version(path, raw):
    rewritten(path, entries_of(written(path)) | {LAYOUT_ENTRY: raw})
    refused(path, MalformedBundleError)


def test_a_version_tag_on_another_version(path):
    files = entries_of(written(path))
    files[INDEX_ENTRY] = files[INDEX_ENTRY].replace(b'"1.0.0"', b'"1.0.1"')
    rewritten(path, files)
    assert refused(path, MalformedBundleError) == "wrong-bundle"
    with BundleFile.open(path) as file, pytest.raises(MalformedBundleError, match=r"1\.0\.1"):
        open_bundle(file, "1.0.1", keyring=None)


# --- sources that lie -----------------------------------------------------------------------------


class Liar:
    """A source that answers like a file, except for one reference or blob."""

    def __init__(self, file: BundleFile, lies: dict[str, bytes | None]) -> None:
        self.file = file
        self.lies = lies

    def resolve(self, reference: str) -> bytes | None:
        return self.lies[reference] if reference in self.lies else self.file.resolve(reference)

    def open_blob(self, descriptor: Descriptor) -> io.BufferedIOBase:
        lie = self.lies.get(descriptor.digest)
        return io.BytesIO(lie) if lie is not None else self.file.open_blob(descriptor)


def test_a_source_that_lies_about_a_blob(path):
    with BundleFile.open(written(path)) as file:
        bundle = open_bundle(file, file.digest, keyring=None)
        (variant,) = bundle.variants
        honest = open_variant(bundle, file, variant)
        layer = honest.layers["model.onnx"]
        for lie in (b"", b"a grap", b"b graph", b"a graph and more", b"a graph" * 2**20):
            source = Liar(file, {layer.digest: lie})
            with pytest.raises(MalformedBundleError, match=r"model\.onnx"):
                verify_layers(honest, source)
            with pytest.raises(MalformedBundleError):
                read_blob(source, layer, what="model", max_bytes=100)


def test_a_source_that_lies_about_manifests(path):
    with BundleFile.open(written(path)) as file:
        bundle = open_bundle(file, file.digest, keyring=None)
        (variant,) = bundle.variants
        for lie in (b"", b"{}", bundle.raw_index):
            with pytest.raises(MalformedBundleError):
                open_bundle(Liar(file, {bundle.digest: lie + b" "}), bundle.digest, keyring=None)
            with pytest.raises(MalformedBundleError):
                open_variant(bundle, Liar(file, {variant.manifest.digest: lie}), variant)
        with pytest.raises(SourceError):
            open_variant(bundle, Liar(file, {variant.manifest.digest: None}), variant)
        hidden = Liar(file, {signature_tag(bundle.digest): None})
        with pytest.raises(UntrustedBundleError, match="not signed"):
            open_bundle(hidden, bundle.digest, keyring=keyring())


def test_a_blob_larger_than_the_limit_is_not_read(path):
    with BundleFile.open(written(path)) as file:
        bundle = open_bundle(file, file.digest, keyring=None)
        layer = open_variant(bundle, file, bundle.variants[0]).layers["model.onnx"]
        with pytest.raises(MalformedBundleError, match="at most 6"):
            read_blob(file, layer, what="model", max_bytes=6)

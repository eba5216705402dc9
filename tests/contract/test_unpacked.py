"""An unpacked folder is proven as the archive was."""

from __future__ import annotations

import pytest
from bundle_samples import PUBLISHER, keyring, one_variant, three_variants

from edgepack_contract.bundle import BundleFile, open_bundle, open_variant
from edgepack_contract.errors import (
    BundleError,
    MalformedBundleError,
    SourceError,
    UntrustedBundleError,
)
from edgepack_contract.layout import unpack, write_bundle
from edgepack_contract.unpacked import extract, open_local


@pytest.fixture
def tree(tmp_path):
    path = tmp_path / "digits.edgepack"
    write_bundle(path, three_variants(), signer=PUBLISHER, evidence={"report.json": b"{}"})
    with BundleFile.open(path) as file:
        unpack(file, tmp_path / "tree")
    return tmp_path / "tree"


def lay_out(tree, folder, *, ring=None):
    with open_local(tree) as source:
        bundle = open_bundle(source, source.digest, keyring=ring)
        for variant in bundle.variants:
            (folder / variant.name).mkdir(parents=True)
            extract(open_variant(bundle, source, variant), source, folder / variant.name)
    return bundle


def test_every_variant_comes_out_as_it_went_in(tree, tmp_path):
    bundle = lay_out(tree, tmp_path / "out", ring=keyring())
    assert bundle.signed_by == PUBLISHER.public.fingerprint
    files = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*"))
    assert len(files) == 12
    assert all(
        (tmp_path / "out" / path).read_bytes() == (tree / path).read_bytes() for path in files
    )


def test_a_file_is_opened_the_same_way(tree, tmp_path):
    with open_local(tmp_path / "digits.edgepack") as file, open_local(tree) as folder:
        assert file.digest == folder.digest


@pytest.mark.parametrize("name", ["model.onnx", "golden.safetensors", "edgepack.json"])
def test_a_changed_byte_is_found(tmp_path, name):
    write_bundle(tmp_path / "one.edgepack", one_variant())
    with BundleFile.open(tmp_path / "one.edgepack") as file:
        unpack(file, tmp_path / "tree")
    path = tmp_path / "tree" / "generic" / name
    path.write_bytes(path.read_bytes().replace(b"g", b"G", 1))
    with pytest.raises((MalformedBundleError, SourceError)):
        lay_out(tmp_path / "tree", tmp_path / "out")


def test_a_changed_file_is_not_used_when_another_variant_has_the_right_one(tree, tmp_path):
    changed = tree / "generic" / "golden.safetensors"
    changed.write_bytes(b"other rows")
    lay_out(tree, tmp_path / "out")
    assert (tmp_path / "out" / "generic" / "golden.safetensors").read_bytes() == b"golden rows"


def test_a_changed_index_is_another_bundle(tree, tmp_path):
    path = tree / "bundle-index.json"
    path.write_bytes(path.read_bytes().replace(b'"3"', b'"9"'))
    with pytest.raises(BundleError):
        lay_out(tree, tmp_path / "out", ring=keyring())
    with pytest.raises(BundleError, match="security-version"):
        lay_out(tree, tmp_path / "out")


def test_without_its_signature_it_is_unsigned(tree, tmp_path):
    (tree / "bundle.sig").unlink()
    with pytest.raises(UntrustedBundleError, match="not signed"):
        lay_out(tree, tmp_path / "out", ring=keyring())


def test_a_file_that_is_gone_is_missed(tree, tmp_path):
    (tree / "generic" / "model.onnx").unlink()
    with pytest.raises(MalformedBundleError, match="has no file with digest"):
        lay_out(tree, tmp_path / "out")


def test_any_other_folder_is_no_bundle(tmp_path):
    with (
        pytest.raises(MalformedBundleError, match=r"has no bundle-index\.json"),
        open_local(tmp_path),
    ):
        pass

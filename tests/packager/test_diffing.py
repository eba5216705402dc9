"""What changed between two bundles: descriptions, constants, and bytes to fetch."""

from __future__ import annotations

import msgspec
import pytest
from bundle_samples import FILES, describe, one_variant
from tests.packager.model_bundles import bundle, changed, variant, wide
from tests.packager.models import mlp

from edgepack_contract.bundle import BundleFile
from edgepack_contract.description import Platform, TensorSpec
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.layout import unpack, write_bundle
from edgepack_contract.unpacked import open_local
from edgepack_packager.diffing import Change, compare, diff_bundles
from edgepack_packager.errors import InputError


def diff(one, two):
    with open_local(one) as before, open_local(two) as after:
        return diff_bundles(before, after)


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    return folder


@pytest.fixture
def old(tmp_path, place):
    return bundle(tmp_path / "old.edgepack", variant(place, mlp()))


def test_a_bundle_and_itself_are_equal(old):
    found = diff(old, old)
    assert found.equal
    assert found.changes == ()
    one = found.variants["generic"]
    assert (one.changes, one.files, one.new_bytes) == ((), (), 0)
    assert (one.tensors.changed, one.tensors.share) == (0, 0.0)


def test_an_unpacked_bundle_is_the_same_bundle(old, tmp_path):
    with BundleFile.open(old) as file:
        unpack(file, tmp_path / "tree")
    assert diff(old, tmp_path / "tree").equal


def test_one_changed_constant_is_found_with_its_share_of_the_bytes(old, tmp_path, place):
    new = bundle(tmp_path / "new.edgepack", variant(place, changed(mlp(), "w2"), version="1.1.0"))
    found = diff(old, new)
    assert not found.equal
    assert found.changes == (Change("version", "1.0.0", "1.1.0"),)
    one = found.variants["generic"]
    assert one.files == ("edgepack.json", "model.onnx")
    assert (one.tensors.changed, one.tensors.added, one.tensors.removed) == (1, 0, 0)
    # w1 8x16, b1 16, w2 16x3 floats
    assert one.tensors.share == pytest.approx(48 / (128 + 16 + 48), abs=1e-4)
    golden = len(FILES["golden.safetensors"])
    assert one.bytes - one.new_bytes == golden


def test_constants_in_a_file_beside_the_graph_count_too(tmp_path, place):
    one = bundle(tmp_path / "1.edgepack", variant(place, wide()))
    two = bundle(tmp_path / "2.edgepack", variant(place, changed(wide(), "b1")))
    found = diff(one, two).variants["generic"]
    assert "model.onnx.data" in found.files
    assert found.tensors.changed == 1
    assert 0.05 < found.tensors.share < 0.15


def test_variants_come_and_go(old, tmp_path, place):
    arm = Platform(architecture="arm64", variant="v8")
    new = bundle(tmp_path / "new.edgepack", variant(place, mlp(), "arm", platform=arm))
    found = diff(old, new)
    assert found.removed == ("generic",)
    assert set(found.added) == {"arm"}
    assert found.added["arm"] > 1000
    assert found.variants == {}


def test_descriptions_are_compared_field_by_field():
    base = describe()
    other = msgspec.structs.replace(
        base,
        precision="int8-static",
        quantization={"weights": "int8"},
        opsets={"ai.onnx": 18},
        metrics=[msgspec.structs.replace(base.metrics[0], value=0.96)],
        gates=[],
        inputs=[*base.inputs, TensorSpec(name="more", dtype="bool", shape=["N"])],
    )
    found = {change.what: change for change in compare(base, other)}
    assert set(found) == {
        "inputs.more", "precision", "quantization", "opsets.ai.onnx", "metrics.accuracy",
        "gates.max-drop accuracy",
    }  # fmt: skip
    assert (found["opsets.ai.onnx"].before, found["opsets.ai.onnx"].after) == (17, 18)
    assert found["inputs.more"].before is None
    assert found["gates.max-drop accuracy"].after is None
    assert list(compare(base, base)) == []


def test_a_model_that_is_none_is_named(old, tmp_path):
    write_bundle(tmp_path / "odd.edgepack", one_variant())
    with pytest.raises(InputError, match=r"model\.onnx in the bundle is no ONNX"):
        diff(old, tmp_path / "odd.edgepack")


def test_a_bundle_that_is_not_intact_is_refused(old, tmp_path):
    cut = tmp_path / "cut.edgepack"
    cut.write_bytes(old.read_bytes()[:-2048])
    with pytest.raises(MalformedBundleError):
        diff(old, cut)

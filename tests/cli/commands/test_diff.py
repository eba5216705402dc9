"""``edgepack diff`` and ``edgepack bundle export``: words, JSON and exit codes."""

from __future__ import annotations

import json

import onnx
import pytest
from bundle_samples import describe
from onnx import helper
from tests.packager.model_bundles import bundle, changed, variant
from tests.packager.models import build, mlp, value

from edgepack_packager.targets import this_hardware


@pytest.fixture
def pair(tmp_path):
    """Two versions of a bundle, the second with other weights, operators and labels."""
    saved = tmp_path / "saved"
    saved.mkdir()
    base = describe()
    label, scores = base.outputs
    renamed = type(scores)(
        name="p", dtype="float32", shape=["N", 2], kind="probabilities", labels=["a", "c"]
    )
    here = base.platform.__class__(architecture=this_hardware().architecture)
    old = variant(saved, mlp(), platform=here)
    new = variant(
        saved, changed(mlp(), "w1"), platform=here, version="1.1.0", outputs=[label, renamed],
        operators=["ai.onnx:Gemm", "ai.onnx:Relu"],
    )  # fmt: skip
    return bundle(tmp_path / "1.edgepack", old), bundle(tmp_path / "2.edgepack", new)


def test_a_diff_reads_from_top_to_bottom(cli, pair):
    ended = cli("diff", *pair)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].startswith("- digits 1.0.0  sha256:")
    assert lines[1].startswith("+ digits 1.1.0  sha256:")
    assert lines[3] == "variant generic"
    text = ended.out
    assert "  outputs.p         labels - b; + c\n" in text
    assert "  operators         - ai.onnx:Softmax; + ai.onnx:Relu\n" in text
    assert "1 of 3 tensors changed: 66.7% of the bytes of the weights" in text
    assert "a device fetches" in lines[-1]
    assert max(map(len, lines)) <= 100


def test_a_model_that_stayed_is_said_to_be_the_same(cli, tmp_path):
    saved = tmp_path / "saved"
    saved.mkdir()
    same = [variant(saved, mlp(), version=version) for version in ("1.0.0", "2.0.0")]
    paths = [bundle(tmp_path / f"{n}.edgepack", one) for n, one in enumerate(same)]
    assert "  weights           the same\n" in cli("diff", *paths).out


def test_a_setting_that_is_empty_is_not_listed(cli, tmp_path):
    saved = tmp_path / "saved"
    saved.mkdir()
    how = {"weights": "int8", "excluded": []}
    old = variant(saved, mlp())
    new = variant(saved, mlp(), precision="int8-weights", quantization=how)
    said = cli("diff", bundle(tmp_path / "1.edgepack", old), bundle(tmp_path / "2.edgepack", new))
    assert "+ weights int8\n" in said.out


def test_trees_have_no_tensors_to_count(cli, tmp_path):
    saved = tmp_path / "saved"
    saved.mkdir()
    bare = [build([helper.make_node(op, ["x"], ["y"])], [value("x", ["n", 2])],
                  [value("y", ["n", 2])]) for op in ("Relu", "Abs")]  # fmt: skip
    paths = [bundle(tmp_path / f"{n}.edgepack", variant(saved, m)) for n, m in enumerate(bare)]
    assert "other ones, in attributes of nodes" in cli("diff", *paths).out


def test_json_is_one_object(cli, pair):
    ended = cli("diff", *pair, "--json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert not found["equal"]
    assert {change["what"] for change in found["variants"]["generic"]["changes"]} == {
        "outputs.p", "operators",
    }  # fmt: skip


@pytest.mark.parametrize(("places", "options", "code"), [
    ((0, 1), ["--exit-code"], 1), ((0, 1), [], 0), ((0, 0), ["--exit-code"], 0),
    ((1, 1), ["--exit-code", "--json"], 0), ((1, 0), ["--exit-code", "--json"], 1),
])  # fmt: skip
def test_the_exit_code_tells_on_request(cli, pair, places, options, code):
    assert cli("diff", *(pair[place] for place in places), *options).code == code


def test_equal_bundles_are_said_to_be_so(cli, pair):
    assert cli("diff", pair[0], pair[0]).out.startswith("digits 1.0.0 twice: sha256:")


def test_what_is_no_bundle_is_refused(cli, pair, tmp_path):
    (tmp_path / "notes.txt").write_text("no bundle")
    ended = cli("diff", pair[0], tmp_path / "notes.txt")
    assert (ended.code, ended.out) == (6, "")
    assert ended.err.startswith("error: ")


def test_export_writes_what_was_asked_for(cli, pair, tmp_path):
    ended = cli(
        "bundle", "export", pair[0], "--onnx", tmp_path / "m.onnx", "--ort-package", tmp_path / "p"
    )
    assert ended.code == 0, ended.err
    assert [line.split(":")[0] for line in ended.out.splitlines()] == [
        str(tmp_path / "m.onnx"), str(tmp_path / "p"),
    ]  # fmt: skip
    assert "C interface" in ended.err
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"))


def test_export_takes_an_unpacked_folder_too(cli, pair, tmp_path):
    assert cli("unpack", pair[0], tmp_path / "tree").code == 0
    ended = cli("bundle", "export", tmp_path / "tree", "--onnx", tmp_path / "m.onnx", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["onnx"]["variant"] == "generic"


def test_export_without_a_form_is_a_usage_error(cli, pair):
    ended = cli("bundle", "export", pair[0])
    assert ended.code == 2
    assert "--ort-package" in ended.err


def test_export_of_an_unknown_variant_names_those_there_are(cli, pair, tmp_path):
    ended = cli("bundle", "export", pair[0], "--onnx", tmp_path / "m.onnx", "--variant", "moon")
    assert (ended.code, ended.out) == (3, "")
    assert "no variant 'moon'; it has generic" in ended.err
    assert not (tmp_path / "m.onnx").exists()

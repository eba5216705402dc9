"""Models taken out of bundles are read by onnxruntime: as ONNX, and as its own package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import ort_package
import pytest
from tests.packager.model_bundles import bundle, variant, wide
from tests.packager.models import mlp, rows

from edgepack_contract.description import Platform, SessionOptions
from edgepack_contract.errors import UnsupportedBundleError
from edgepack_contract.unpacked import open_local
from edgepack_packager import RecipeError, exporting
from edgepack_packager.errors import InputError
from edgepack_packager.graphs.running import open_folder, save_model
from edgepack_packager.targets import this_hardware
from edgepack_runtime.inference.session import open_session

ARM = Platform(architecture="arm64", variant="v8")
AMD = Platform(architecture="amd64")
HERE = msgspec.structs.replace(this_hardware(), architecture="amd64", variant=None, features=[])


@pytest.fixture
def source(tmp_path):
    """A bundle for two platforms; the one for amd64 keeps its weights in a file of their own."""
    place = tmp_path / "saved"
    place.mkdir()
    amd = variant(place, wide(), "pc", platform=AMD)
    arm = variant(place, mlp(), "board", platform=ARM)
    with open_local(bundle(tmp_path / "b.edgepack", amd, arm)) as opened:
        yield opened


def answers(path):
    session = open_session(path, SessionOptions(intra_op_threads=1))
    return session.run({"x": rows(n=4)})["probabilities"]


def test_one_file_answers_as_the_variant_does(source, tmp_path):
    written = exporting.export_onnx(source, tmp_path / "m.onnx", variant=None, hardware=HERE)
    assert (written.variant, written.digest) == ("pc", source.digest)
    save_model(wide(), tmp_path / "whole")
    expected = open_folder(tmp_path / "whole").run({"x": rows(n=4)})["probabilities"]
    assert np.array_equal(answers(written.path), expected)
    assert list(tmp_path.glob("m.onnx*")) == [tmp_path / "m.onnx"]


def test_a_folder_gets_a_file_named_after_the_variant(source, tmp_path):
    written = exporting.export_onnx(source, tmp_path, variant="board", hardware=HERE)
    assert written.path == tmp_path / "digits-1.0.0-board.onnx"
    assert answers(written.path).shape == (4, 3)


def test_what_is_there_stays(source, tmp_path):
    (tmp_path / "m.onnx").write_text("precious")
    for export in (exporting.export_onnx, exporting.export_ort_package):
        with pytest.raises(RecipeError, match="there already"):
            export(source, tmp_path / "m.onnx", variant=None, hardware=HERE)
    assert (tmp_path / "m.onnx").read_text() == "precious"


def test_a_folder_that_is_not_there_is_named(source, tmp_path):
    with pytest.raises(RecipeError, match=f"there is no folder {tmp_path}/none"):
        exporting.export_onnx(source, tmp_path / "none" / "m.onnx", variant=None, hardware=HERE)


def test_an_unknown_variant_is_named_with_those_there_are(source, tmp_path):
    with pytest.raises(RecipeError, match="no variant 'moon'; it has pc, board"):
        exporting.export_onnx(source, tmp_path / "m.onnx", variant="moon", hardware=HERE)


def test_a_machine_that_none_fits_is_told_why(source, tmp_path):
    other = msgspec.structs.replace(HERE, os="plan9")
    with pytest.raises(UnsupportedBundleError, match="plan9"):
        exporting.export_onnx(source, tmp_path / "m.onnx", variant=None, hardware=other)


def test_more_than_one_file_holds_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "ONE_FILE_BYTES", 1 << 20)
    with pytest.raises(InputError, match="less than 2 GiB; unpack the bundle"):
        exporting.export_onnx(source, tmp_path / "m.onnx", variant="pc", hardware=HERE)
    assert not (tmp_path / "m.onnx").exists()


def opened_by_onnxruntime(folder):
    ended = subprocess.run(
        [sys.executable, ort_package.__file__, str(folder), "digits"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )  # fmt: skip
    return ended.stdout, ended.stderr


@pytest.mark.parametrize("name", ["pc", "board"])
def test_onnxruntime_opens_the_package_and_a_session_in_it(source, tmp_path, name):
    package = tmp_path / "package"
    exporting.export_ort_package(source, package, variant=name, hardware=HERE)
    out, err = opened_by_onnxruntime(package)
    assert json.loads(out or err) == {"variant": name, "inputs": 1}


def test_onnxruntime_would_refuse_another_layout(source, tmp_path):
    package = tmp_path / "package"
    exporting.export_ort_package(source, package, variant="board", hardware=HERE)
    manifest = package / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"components"', '"parts"'))
    out, err = opened_by_onnxruntime(package)
    assert out == ""
    assert "manifest" in err


def test_a_package_names_the_bundle_it_came_from(source, tmp_path):
    package = tmp_path / "package"
    written = exporting.export_ort_package(source, package, variant=None, hardware=HERE)
    manifest = json.loads((package / "manifest.json").read_text())
    assert manifest["package_name"] == "digits"
    assert manifest["additional_metadata"]["edgepack"] == {
        "digest": written.digest, "variant": "pc",
    }  # fmt: skip
    files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert files == {
        "manifest.json", "models/digits/component.json", "models/digits/pc/model.onnx",
        "models/digits/pc/model.onnx.data",
    }  # fmt: skip
    assert Path(written.path) == package

"""``edgepack build``: exit codes, streams, and one JSON object; small ONNX models, real builds."""

from __future__ import annotations

import contextlib
import json
import os
import signal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack_contract.bundle import BundleFile, open_evidence, verify_bundle_file
from edgepack_packager import building
from edgepack_packager.subject import load_subject


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A linear classifier that is always right about its rows, and rows with wrong labels too."""
    folder = tmp_path_factory.mktemp("source")
    weights = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
    rows = np.random.default_rng(2).standard_normal((600, 6)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"]),
        helper.make_node("Softmax", ["s"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes, "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
        initializer=[numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, folder / "linear.onnx")
    labels = (rows @ weights).argmax(axis=1)
    np.savez(folder / "rows.npz", x=rows, y=labels, wrong=(labels + 1) % 3)
    return folder


@pytest.fixture
def build(cli, source, tmp_path):
    """Builds the model with more options; the bundle is in ``tmp_path``."""

    def call(*options, label="y"):
        named = ("--name", "linear", "--version", "2.0.0", "-o", tmp_path / "linear.edgepack")
        data = ("--data", source / "rows.npz", "--label", label)
        return cli("build", source / "linear.onnx", *named, *data, *options)

    return call


def test_a_build_prints_its_table_and_what_it_wrote(build, cli, tmp_path):
    ended = build()
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    path, digest = lines[-1].split()
    assert path == str(tmp_path / "linear.edgepack")
    assert digest == json.loads(cli("inspect", path, "--json").out)["digest"]
    assert any(word in ended.out for word in ("fp32", "int8"))
    steps = [line.split()[2].rstrip(":") for line in ended.err.splitlines() if " s  " in line]
    order = ["load", "search", "describe", "write"]
    assert steps == sorted(steps, key=order.index)
    assert set(steps) == set(order)


def test_json_is_one_object_and_nothing_else(build):
    ended = build("--json")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    built = json.loads(ended.out)
    assert set(built) == {"path", "digest", "table", "warnings", "report"}
    assert sum(row["chosen"] for row in built["table"]) == 1


def test_a_key_signs_what_is_built(build, cli, keys, tmp_path):
    folder, owner = keys
    assert build("--key", folder / "publisher.key").code == 0
    trust = ("--keyring", folder / "keyring.json", "--owner", owner)
    assert cli("verify", tmp_path / "linear.edgepack", *trust).code == 0


def test_the_evidence_is_in_the_bundle_and_on_request_beside_it(build, tmp_path):
    html = tmp_path / "report.html"
    assert build("--report", html).code == 0
    assert html.read_text().startswith("<!doctype html>")
    with BundleFile.open(tmp_path / "linear.edgepack") as file:
        bundle = verify_bundle_file(file, keyring=None)
        assert set(open_evidence(bundle, file)) >= {"report.json"}


def test_a_locked_build_has_the_same_digest(build, tmp_path):
    lock = tmp_path / "linear.lock"
    first = build("--lock", lock).out.splitlines()[-1]
    (tmp_path / "linear.edgepack").unlink()
    assert build("--lock", lock, "--locked").out.splitlines()[-1] == first


@pytest.mark.parametrize(
    ("options", "label", "code", "words"),
    [
        (["--min-metric", "accuracy=0.9"], "wrong", 4, "accuracy"),
        (["--max-size", "10"], "y", 5, "size"),
        (["--target", "toaster"], "y", 3, "toaster"),
        (["--max-latency", "soon"], "y", 3, "soon"),
        ([], "z", 3, "z"),
        (["--min-metric", "accuracy"], "y", 2, "METRIC=VALUE"),
        (["--optimize", "beauty"], "y", 2, "beauty"),
    ],
)
def test_what_cannot_be_built_is_refused_and_leaves_nothing(
    build, tmp_path, options, label, code, words
):
    ended = build(*options, label=label)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_none_is_bad_input(cli, source, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("not a model")
    rows = source / "rows.npz"
    ended = cli("build", path, "--name", "m", "--version", "1.0.0", "--data", rows, "--label", "y")
    assert ended.code == 3
    assert "m.onnx is not an ONNX file" in ended.err.splitlines()[-1]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_it_even_where_a_library_swallows_that(
    build, tmp_path, monkeypatch, number, as_json
):
    def swallowing(recipe, folder):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        return load_subject(recipe, folder)

    monkeypatch.setattr(building, "load_subject", swallowing)
    before = {path.name for path in tmp_path.iterdir()}
    ended = build(*(["--json"] if as_json else []))
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.splitlines()[-1] == "interrupted"
    assert {path.name for path in tmp_path.iterdir()} == before

"""PyTorch: what is exported answers as the module does, at sizes the example did not have."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.packager.sources.modules_of_torch import CODE

from edgepack_packager.errors import ConversionError, ModelSourceError
from edgepack_packager.graphs.running import open_folder, run_rows, save_model
from edgepack_packager.sources import LoadContext, load_source

pytestmark = pytest.mark.framework("torch", "onnxscript")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("torch")
    (place / "nets_of_test.py").write_text(CODE)
    # in a process of its own: what PyTorch says while it saves is nobody's concern
    write = "import nets_of_test as n; n.save()"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", write], cwd=place, check=True, capture_output=True
    )
    return place


@pytest.fixture
def load(place, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(place)

    def load(name, trust="no", **columns):
        context = LoadContext(tmp_path, trust_pickle=trust, columns=columns)
        return load_source(Path(name), context)

    return load


def names(items):
    return [item.name for item in items]


def sizes(item):
    return [size.dim_value or size.dim_param for size in item.type.tensor_type.shape.dim]


def agree(source, tmp_path, feeds):
    save_model(source.graph, tmp_path / "graph")
    found, wanted = run_rows(open_folder(tmp_path / "graph"), feeds), source.answer(feeds)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, atol=1e-4)
    return wanted


def test_a_module_with_an_example_of_one_row_takes_any_number(load, tmp_path):
    source = load("nets_of_test:cnn")
    assert names(source.graph.graph.input) == ["image", "scale"]
    assert names(source.graph.graph.output) == ["scores", "pair_0", "pair_1"]
    assert isinstance(sizes(source.graph.graph.input[0])[0], str)
    assert source.sample["image"].shape == (1, 1, 8, 8)
    assert source.warnings == ()
    random = np.random.default_rng(0)
    feeds = {
        "image": random.random((70, 1, 8, 8), np.float32),
        "scale": random.random((70, 10), np.float32),
    }
    answers = agree(source, tmp_path, feeds)
    assert answers["scores"].shape == (70, 10)
    # dropout is off
    assert np.array_equal(source.answer(feeds)["scores"], answers["scores"])
    assert source.digest == load("nets_of_test:cnn").digest


def test_inputs_by_name_and_open_axes(load, tmp_path):
    source = load("nets_of_test:named")
    assert names(source.graph.graph.input) == ["tokens"]
    assert all(isinstance(size, str) for size in sizes(source.graph.graph.input[0]))
    for length in (4, 9):
        tokens = np.random.default_rng(0).integers(0, 20, (3, length))
        assert agree(source, tmp_path, {"tokens": tokens})["output"].shape == (3, 2)


def test_rows_that_code_fixes_are_packed_one_by_one(load, tmp_path):
    source = load("nets_of_test:fixed")
    assert sizes(source.graph.graph.input[0]) == [1, 3, 4]
    assert "one row at a time" in source.warnings[0]
    feeds = {"x": np.random.default_rng(0).random((5, 3, 4), np.float32)}
    agree(source, tmp_path, feeds)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        (
            "unknown",
            "unsupported-operator",
            r"bessel_j0 .*nets_of_test\.py:\d+: return torch",
        ),
        ("branches", "not-exportable", r"at nets_of_test\.py:\d+ \(if x\.sum\(\) > 0:\)"),
        ("closed", "fixed-axis", "fixes axis steps"),
        ("object_out", "unsupported-output", "output_0 is a str"),
    ],
)
def test_what_cannot_be_exported_is_said(load, capfd, name, code, words):
    with pytest.raises(ConversionError, match=words) as caught:
        load(f"nets_of_test:{name}")
    assert caught.value.code == code
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("too_many", "it has 2 tensors, forward takes x"),
        ("no_tensor", "x in it is no tensor"),
        ("wrong_size", "the model fails on its example: RuntimeError"),
        ("wrong_axis", "x has no axis 5"),
    ],
)
def test_examples_that_do_not_fit_are_said(load, name, words):
    with pytest.raises(ModelSourceError, match=words) as caught:
        load(f"nets_of_test:{name}")
    assert caught.value.code == "bad-example"


def test_a_state_dict_is_no_model(load):
    with pytest.raises(ModelSourceError, match="state_dict") as caught:
        load("nets_of_test:weights")
    assert caught.value.code == "no-model-inside"


def test_an_exported_program_answers_from_its_child(load, tmp_path):
    with pytest.raises(ModelSourceError, match="--trust-pickle") as caught:
        load("net.pt2")
    assert caught.value.code == "pickle"
    source = load("net.pt2", "sandboxed")
    assert source.passes == ("load-exported", "torch-export")
    assert names(source.graph.graph.input) == ["x"]
    feeds = {"x": np.random.default_rng(0).random((5, 3), np.float32)}
    assert agree(source, tmp_path, feeds)["output"].shape == (5, 2)


def test_a_whole_module_takes_its_example_from_the_data(load, tmp_path):
    columns = {name: np.arange(4.0) for name in "abc"}
    source = load("net.pth", "sandboxed", **columns)
    agree(source, tmp_path, {"x": np.random.default_rng(0).random((5, 3), np.float32)})


@pytest.mark.parametrize("columns", [{}, {"a": np.array(["text"])}])
def test_without_rows_there_is_no_example(columns):
    import torch

    from edgepack_packager.sources.from_torch import example_from

    with pytest.raises(ModelSourceError, match=r"its parameters \(input\)") as caught:
        example_from(torch.nn.Linear(3, 2), columns)
    assert caught.value.code == "no-example"


def test_a_hostile_exported_program_is_shut_in(load, place, tmp_path):
    with pytest.raises(ModelSourceError):
        load("hostile.pt2", "sandboxed")
    assert not (place / "mark").exists()
    with pytest.raises(ModelSourceError):
        load("hostile.pt2", "unsandboxed")
    # it is as dangerous as a pickle: this is why the flag is needed
    assert (place / "mark").exists()

"""Sources: what is loaded, and what is refused because loading it would run code."""

import pickle

import numpy as np
import onnx
import pytest
import skops.io
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.packager.models import mlp

from edgepack_packager.errors import ConversionError, ModelSourceError
from edgepack_packager.sources import LoadContext, load_source
from edgepack_packager.sources.model import as_labels


def load(path, trusted_types=()):
    return load_source(path, LoadContext(path.parent, trusted_types=trusted_types))


class Unpickled:
    """Its pickle would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".joblib", ".pt", ".PKL"])
def test_a_pickle_is_refused_unread(tmp_path, suffix):
    mark = tmp_path / "mark"
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Unpickled(str(mark))))
    with pytest.raises(ModelSourceError, match=r"skops\.io\.dump") as caught:
        load(path)
    assert caught.value.code == "pickle"
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "code"), [("m.exe", "model-type"), ("m.h5", "no-model"), ("m.onnx", "no-model")]
)
def test_other_files_are_refused(tmp_path, name, code):
    with pytest.raises(ModelSourceError) as caught:
        load(tmp_path / name)
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["m.onnx", "m.skops"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 half a zip", b"\x08\x0a"])
def test_broken_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelSourceError):
        load(tmp_path / name)


def test_a_scikit_learn_classifier(digits):
    source = load(digits / "network.skops")
    assert source.task == "classification"
    assert source.classes == tuple("0123456789")
    assert [item.name for item in source.graph.graph.output] == ["label", "probabilities"]
    assert source.framework.startswith("scikit-learn ")
    rows = np.load(digits / "rows.npz")
    assert np.mean(source.answer({"input": rows["pixels"]})["label"] == rows["label"]) > 0.85


def test_a_pipeline_with_text_classes(tmp_path):
    x = np.random.default_rng(0).standard_normal((60, 3))
    y = np.where(x[:, 0] > 0, "up", "down")
    skops.io.dump(
        make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y), tmp_path / "m.skops"
    )
    source = load(tmp_path / "m.skops")
    assert source.classes == ("down", "up")
    assert source.answer({"input": x})["label"].dtype.kind == "U"


def test_a_regression(tmp_path):
    x = np.random.default_rng(0).standard_normal((60, 3))
    skops.io.dump(LinearRegression().fit(x, x @ [1, 2, 3]), tmp_path / "m.skops")
    source = load(tmp_path / "m.skops")
    assert source.task == "regression"
    assert source.answer({"input": x})["variable"].shape == (60, 1)


def test_types_that_are_not_known_are_refused_by_name(tmp_path):
    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    model.extra = np.random.default_rng(0)
    model.hook = Unpickled("nowhere")
    skops.io.dump(model, tmp_path / "m.skops")
    with pytest.raises(ModelSourceError, match="Unpickled") as caught:
        load(tmp_path / "m.skops")
    assert caught.value.code == "untrusted-types"


def test_what_neither_classifies_nor_regresses_is_refused(tmp_path):
    skops.io.dump(PCA(1).fit(np.eye(4)), tmp_path / "m.skops")
    with pytest.raises(ConversionError, match="PCA") as caught:
        load(tmp_path / "m.skops")
    assert caught.value.code == "unsupported-model"


def test_a_file_without_a_model_is_refused(tmp_path):
    skops.io.dump({"a": 1}, tmp_path / "m.skops")
    with pytest.raises(ModelSourceError, match="not a fitted estimator"):
        load(tmp_path / "m.skops")


def external(folder, location):
    model = mlp(features=200, hidden=100)
    path = folder / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_graph_are_loaded_and_count_in_the_digest(tmp_path):
    path = external(tmp_path, "weights")
    one = load(path)
    assert all(tensor.raw_data for tensor in one.graph.graph.initializer)
    weights = bytearray((tmp_path / "weights").read_bytes())
    weights[5] ^= 1
    (tmp_path / "weights").write_bytes(weights)
    assert load(path).digest != one.digest


@pytest.mark.parametrize(
    "location", ["../weights", "/etc/hostname", "sub/weights", "..", "", "absent", "link"]
)
def test_weights_anywhere_else_are_refused(tmp_path, location):
    (tmp_path / "sub").mkdir()
    path = external(tmp_path / "sub", location)
    (tmp_path / "weights").write_bytes(b"x" * 200_000)
    (tmp_path / "sub" / "link").symlink_to(tmp_path / "weights")
    with pytest.raises(ModelSourceError):
        load(path)


def test_external_weights_that_are_too_short_are_refused(tmp_path):
    path = external(tmp_path, "weights")
    (tmp_path / "weights").write_bytes(b"short")
    with pytest.raises(ModelSourceError):
        load(path)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([1.0, 2.0]), [1, 2]),
        (np.array([True, False]), [1, 0]),
        (np.array([[3], [4]], np.uint8), [3, 4]),
        (np.array(["a", "b"], object), ["a", "b"]),
        (np.array([0.5]), ["0.5"]),
    ],
)
def test_labels_are_integers_or_texts(values, wanted):
    assert as_labels(values).tolist() == wanted

"""MLflow's folders: which flavor is read, and that a description leads nowhere else."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import skops.io
import yaml
from sklearn.linear_model import LogisticRegression
from tests.packager.models import mlp

from edgepack_packager.errors import ModelSourceError
from edgepack_packager.sources import LoadContext, extras, load_source

X = np.random.default_rng(0).standard_normal((40, 3))
MODEL = LogisticRegression().fit(X, (X[:, 0] > 0).astype(int))
SIGNATURE = {"inputs": json.dumps([{"name": name, "type": "double"} for name in "abc"])}


def described(folder, flavors, **more):
    folder.mkdir(exist_ok=True)
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors, **more}))
    return folder


def load(folder):
    between = folder.parent / "between"
    between.mkdir(exist_ok=True)
    return load_source(folder, LoadContext(between))


def refusal(folder):
    with pytest.raises(ModelSourceError) as caught:
        load(folder)
    return caught.value


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    skops.io.dump(MODEL, folder / "model.skops")
    return folder


SKOPS = {"sklearn": {"pickled_model": "model.skops", "serialization_format": "skops"}}


def test_scikit_learn_with_signature_and_example(folder):
    example = {"columns": ["a", "b", "c"], "data": X[:20].tolist()}
    (folder / "input_example.json").write_text(json.dumps(example))
    info = {"artifact_path": "input_example.json", "type": "dataframe", "pandas_orient": "split"}
    described(folder, SKOPS, signature=SIGNATURE, saved_input_example_info=info)
    source = load(folder)
    assert source.passes[:2] == ("load-mlflow", "load-skops")
    assert source.features == ("a", "b", "c")
    assert source.sample["input"].shape == (16, 3)
    assert source.answer({"input": X})["label"].tolist() == MODEL.predict(X).tolist()


def test_an_array_as_example(folder):
    (folder / "example.json").write_text(json.dumps({"inputs": X[:2].tolist()}))
    info = {"artifact_path": "example.json", "type": "ndarray"}
    described(folder, SKOPS, saved_input_example_info=info)
    assert load(folder).sample["input"].tolist() == X[:2].tolist()


def test_onnx_is_read_before_other_flavors(folder):
    onnx.save(mlp(), folder / "model.onnx")
    described(folder, {**SKOPS, "onnx": {"data": "model.onnx"}, "python_function": {}})
    assert load(folder).framework.startswith("onnx")


def test_a_pickle_inside_is_a_pickle(folder):
    (folder / "model.pkl").write_bytes(pickle.dumps(MODEL))
    described(folder, {"sklearn": {"pickled_model": "model.pkl"}})
    error = refusal(folder)
    assert error.code == "pickle"
    assert "--trust-pickle" in str(error)


@pytest.mark.parametrize(
    "data", ["../model.onnx", "/etc/hostname", "sub/../../model.onnx", "link", "linked/model.onnx"]
)
def test_paths_that_leave_the_folder_are_refused(folder, tmp_path, data):
    onnx.save(mlp(), tmp_path / "model.onnx")
    (folder / "link").symlink_to(tmp_path / "model.onnx")
    (folder / "linked").symlink_to(tmp_path)
    described(folder, {"onnx": {"data": data}})
    assert refusal(folder).code == "unsafe-path"


@pytest.mark.parametrize("data", ["absent.onnx", "", None, 3, ["model.onnx"]])
def test_paths_that_are_none_are_refused(folder, data):
    described(folder, {"onnx": {"data": data}})
    assert refusal(folder).code == "bad-mlmodel"


@pytest.mark.parametrize(
    "text",
    [
        "", "[1, 2]", "a: [", "\x00", "!!python/object/apply:os.system ['true']",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    ],
)  # fmt: skip
def test_descriptions_that_cannot_be_read_are_refused(folder, text):
    (folder / "MLmodel").write_text(text)
    assert refusal(folder).code == "bad-mlmodel"


@pytest.mark.parametrize("flavors", [{}, {"python_function": {}}, None, ["onnx"]])
def test_a_folder_without_a_known_flavor_names_those_it_has(folder, flavors):
    described(folder, flavors)
    error = refusal(folder)
    assert error.code == "no-flavor"
    assert "lightgbm" in str(error)


def test_an_example_that_is_none_is_refused(folder):
    (folder / "e.json").write_text('{"columns": ["a"], "data": [[1, 2]]}')
    info = {"artifact_path": "e.json", "type": "dataframe"}
    described(folder, SKOPS, saved_input_example_info=info)
    assert refusal(folder).code == "bad-mlmodel"


def test_a_folder_that_is_nothing_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    error = refusal(tmp_path / "empty")
    assert error.code == "model-type"
    assert "MLmodel or saved_model.pb" in str(error)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("models:/churn/3", "needs MLflow: pip install 'edgepack[mlflow]'"),
        ("model.keras", "needs TensorFlow: pip install 'edgepack[tensorflow]'"),
        ("model.tflite", "needs TensorFlow: pip install 'edgepack[tensorflow]'"),
        ("model.pt2", "needs PyTorch: pip install 'edgepack[torch]'"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, name, words):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    path = Path(name)
    if ":" not in name:
        path = tmp_path / name
        path.write_bytes(b"")
    with pytest.raises(ModelSourceError) as caught:
        load_source(path, LoadContext(tmp_path, trust_pickle="sandboxed"))
    assert caught.value.code == "missing-extra"
    assert words in str(caught.value)


@pytest.mark.framework("mlflow")
def test_registered_models_are_fetched_by_version_and_alias(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        described(folder, SKOPS)
        client = MlflowClient()
        client.create_registered_model("churn")
        client.create_model_version("churn", folder.as_uri())
        client.set_registered_model_alias("churn", "best", 1)
        for number, uri in enumerate(("models:/churn/1", "models:/churn@best")):
            between = tmp_path / f"between-{number}"
            between.mkdir()
            source = load_source(Path(uri), LoadContext(between))
            assert source.passes[0] == "load-mlflow"
        with pytest.raises(ModelSourceError, match="does not give models:/churn/7") as caught:
            load_source(Path("models:/churn/7"), LoadContext(tmp_path))
    assert caught.value.code == "no-model"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"

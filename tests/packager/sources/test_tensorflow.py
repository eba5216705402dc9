"""Keras, SavedModel and TFLite: read and answered by TensorFlow, in a child."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgepack_packager.errors import ModelSourceError
from edgepack_packager.graphs.running import open_folder, run_rows, save_model
from edgepack_packager.sources import LoadContext, enclosure, load_source

pytestmark = pytest.mark.framework("tensorflow", "tf2onnx")

WRITE = """
import numpy as np, keras, tensorflow as tf
from keras import layers
keras.utils.set_random_seed(0)
net = keras.Sequential([
    keras.Input((8, 8, 1), name="image"), layers.Conv2D(4, 3, activation="relu"),
    layers.BatchNormalization(), layers.Dropout(0.5), layers.Flatten(),
    layers.Dense(10, activation="softmax", name="scores"),
])
net.save("net.keras")
net.export("net", verbose=False)
a, b = keras.Input((5,), name="a"), keras.Input((3,), name="b")
y, z = layers.Dense(2, name="y"), layers.Dense(1, name="z")
keras.Model([a, b], {"y": y(layers.Concatenate()([a, b])), "z": z(a)}).save("two.keras")
keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x * 2)]).save("code.h5")
converter = tf.lite.TFLiteConverter.from_keras_model(net)
open("net.tflite", "wb").write(converter.convert())
converter = tf.lite.TFLiteConverter.from_keras_model(net)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
rows = np.random.rand(8, 1, 8, 8, 1).astype("f")
converter.representative_dataset = lambda: ([row] for row in rows)
open("small.tflite", "wb").write(converter.convert())

class Odd(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def __call__(self, x):
        return {"y": tf.raw_ops.Betainc(a=x, b=x, x=x)}

odd = Odd()
tf.saved_model.save(odd, "odd", signatures=odd.__call__)
converter = tf.lite.TFLiteConverter.from_concrete_functions([
    tf.function(lambda x: {"y": tf.raw_ops.Betainc(a=x, b=x, x=x)},
                input_signature=[tf.TensorSpec([1, 3], tf.float32)]).get_concrete_function()])
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
converter.allow_custom_ops = True
open("odd.tflite", "wb").write(converter.convert())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("tensorflow")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WRITE], cwd=place, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return place


@pytest.fixture
def load(place, tmp_path):
    return lambda name: load_source(place / name, LoadContext(tmp_path))


def agree(source, tmp_path, feeds):
    save_model(source.graph, tmp_path / "graph")
    found, wanted = run_rows(open_folder(tmp_path / "graph"), feeds, chunk=1), source.answer(feeds)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, atol=1e-4)
    return wanted


def images(n=5):
    return np.random.default_rng(0).random((n, 8, 8, 1), np.float32)


@pytest.mark.parametrize(("name", "output"), [("net.keras", "scores"), ("net", "output_0")])
def test_a_network_keeps_its_names_and_layout(load, tmp_path, name, output):
    source = load(name)
    assert source.framework.startswith("tensorflow ")
    assert [item.name for item in source.graph.graph.input] == ["image"]
    assert agree(source, tmp_path, {"image": images()})[output].shape == (5, 10)


def test_several_inputs_and_outputs(load, tmp_path):
    random = np.random.default_rng(0)
    feeds = {"a": random.random((4, 5), np.float32), "b": random.random((4, 3), np.float32)}
    answers = agree(load("two.keras"), tmp_path, feeds)
    assert {name: values.shape for name, values in answers.items()} == {"y": (4, 2), "z": (4, 1)}


def test_tflite_answers_row_by_row(load, tmp_path):
    source = load("net.tflite")
    assert source.warnings == ()
    (answer,) = agree(source, tmp_path, {"image": images()}).values()
    assert answer.shape == (5, 10)


def test_a_quantized_tflite_says_so_and_that_nothing_shuts_it_in(load, tmp_path, monkeypatch):
    source = Path(enclosure.__file__).read_text()
    source = source.replace("ARCHITECTURES = {", "ARCHITECTURES = {} and {")
    (tmp_path / "open.py").write_text(source)
    monkeypatch.setattr(enclosure, "__file__", str(tmp_path / "open.py"))
    quantized, unshut = load("small.tflite").warnings
    assert "quantized already (int8" in quantized
    assert "TensorFlow ran with access" in unshut


def test_python_code_in_a_model_is_never_run(load):
    with pytest.raises(ModelSourceError, match="Lambda") as caught:
        load("code.h5")
    assert caught.value.code == "code-inside"


@pytest.mark.parametrize("name", ["odd", "odd.tflite"])
def test_operators_without_a_form_are_named(load, name):
    with pytest.raises(Exception, match="Betainc") as caught:
        load(name)
    assert caught.value.code == "unsupported-operator"


def test_broken_files_are_refused(place, load):
    (place / "broken.keras").write_bytes(b"hello")
    with pytest.raises(ModelSourceError, match=r"broken\.keras is no readable Keras model"):
        load("broken.keras")

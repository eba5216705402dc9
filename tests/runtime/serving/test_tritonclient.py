"""The server, asked by the client that everybody has: ``tritonclient.http``, as it is."""

from __future__ import annotations

import numpy as np
import pytest
from echo_variants import ECHO_DTYPES, TEXTS, echo_input, echo_values
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


@pytest.fixture(scope="module")
def served(make_world, load, load_echo):
    world = make_world()
    world.add("pump", load("v1", version="1.0.0", bias=1.0))
    world.add("echo", load_echo(*ECHO_DTYPES))
    world.add("image", load_echo("float32", shape=("n", 3, 8, 8)))
    world.start()
    return world


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(f"127.0.0.1:{served.server.port}", concurrency=4) as made:
        yield made


def tensor(name, values, *, binary=True):
    made = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def wanted(dtype, *, binary=True):
    return triton.InferRequestedOutput(f"{echo_input(dtype)}_out", binary_data=binary)


def texts(array):
    """Texts as text: the client gives bytes for binary data, and text for JSON."""
    decoded = [value.decode() if isinstance(value, bytes) else value for value in array.flat]
    return np.array(decoded, object).reshape(array.shape)


def same(given, sent):
    assert given.dtype == sent.dtype
    np.testing.assert_array_equal(texts(given) if sent.dtype == object else given, sent)


def has_json(dtype):
    return dtype != "float16"  # nor has the client one


def everything(*, binary, shape=(2, 2)):
    return {
        dtype: (echo_values(dtype, shape), binary or not has_json(dtype)) for dtype in ECHO_DTYPES
    }


def asked(tensors):
    return [
        tensor(echo_input(dtype), values, binary=binary)
        for dtype, (values, binary) in tensors.items()
    ]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_every_datatype_comes_back(client, binary_in, binary_out):
    tensors = everything(binary=binary_in)
    outputs = [wanted(dtype, binary=binary_out) for dtype in ECHO_DTYPES]
    answer = client.infer(
        "echo", asked(tensors), outputs=None if binary_out is None else outputs, request_id="7"
    )
    assert answer.get_response()["id"] == "7"
    for dtype, (values, _) in tensors.items():
        same(answer.as_numpy(f"{echo_input(dtype)}_out"), values)
        told = answer.get_output(f"{echo_input(dtype)}_out")
        assert ("data" in told) == (binary_out is False)


def test_json_and_bytes_mixed_both_ways(client):
    tensors = {
        dtype: (echo_values(dtype), place % 2 == 0 or not has_json(dtype))
        for place, dtype in enumerate(ECHO_DTYPES)
    }
    outputs = [
        wanted(dtype, binary=place % 3 == 0) for place, dtype in enumerate(ECHO_DTYPES[::-1])
    ]
    answer = client.infer("echo", asked(tensors), outputs=outputs)
    names = [one["name"] for one in answer.get_response()["outputs"]]
    assert names == [one.name() for one in outputs]
    for dtype, (values, _) in tensors.items():
        same(answer.as_numpy(f"{echo_input(dtype)}_out"), values)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (1, 1), (70, 11)])
@pytest.mark.parametrize("binary", [True, False])
def test_empty_and_large_shapes(client, shape, binary):
    tensors = everything(binary=binary, shape=shape)
    answer = client.infer("echo", asked(tensors))
    for dtype, (values, _) in tensors.items():
        same(answer.as_numpy(f"{echo_input(dtype)}_out"), values)


def test_no_rows_are_no_predictions_and_not_a_fault_of_the_model(client, served):
    slot = served.slots["pump"]
    before = slot.counters()
    answer = client.infer("pump", [tensor("x", np.empty((0, 4), np.float32))])
    assert answer.as_numpy("probabilities").shape == (0, 3)
    assert answer.as_numpy("label").shape == (0,)
    assert slot.counters().errors == before.errors
    (window,) = served.call(slot.roll)
    assert window.errors == 0


@pytest.mark.parametrize("way", ["gzip", "deflate"])
def test_packed_both_ways(client, way):
    image = np.zeros((4, 3, 8, 8), np.float32)
    image[1] = 0.5
    answer = client.infer(
        "image",
        [tensor("x_float32", image)],
        request_compression_algorithm=way,
        response_compression_algorithm=way,
        headers={"X-Edgepack-Key": "gate-7"},
    )
    same(answer.as_numpy("x_float32_out"), image)
    tensors = everything(binary=False)
    answer = client.infer("echo", asked(tensors), request_compression_algorithm=way)
    same(answer.as_numpy("x_str_out"), TEXTS)


def test_many_at_once(client):
    images = [np.full((1, 3, 8, 8), place, np.float32) for place in range(12)]
    pending = [client.async_infer("image", [tensor("x_float32", image)]) for image in images]
    for image, answer in zip(images, pending, strict=True):
        same(answer.get_result().as_numpy("x_float32_out"), image)


def test_what_a_client_asks_before_it_infers(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pump")
    assert client.is_model_ready("pump", "1.0.0")
    assert not client.is_model_ready("pump", "2")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    told = client.get_model_metadata("pump", "1.0.0")
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert client.get_model_config("pump")["max_batch_size"] == 0
    row = [tensor("x", np.zeros((2, 4), np.float32))]
    before = client.get_inference_statistics("pump")["model_stats"][0]
    client.infer("pump", row, model_version="1.0.0")
    (after,) = client.get_inference_statistics("pump", "1.0.0")["model_stats"]
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["inference_stats"]["success"]["count"] == after["execution_count"]
    names = {one["name"] for one in client.get_inference_statistics()["model_stats"]}
    assert names == {"pump", "echo", "image"}


def test_a_model_is_unloaded_and_loaded(client):
    row = [tensor("x", np.zeros((1, 4), np.float32))]
    client.unload_model("pump")
    assert not client.is_model_ready("pump")
    assert not client.is_server_ready()
    states = {one["name"]: (one["state"], one["reason"]) for one in
              client.get_model_repository_index()}  # fmt: skip
    assert states["pump"] == ("UNAVAILABLE", "unloaded")
    assert states["echo"] == ("READY", "")
    with pytest.raises(InferenceServerException, match="POST /v2/repository/models/pump/load"):
        client.infer("pump", row)
    client.load_model("pump")
    client.load_model("pump")
    assert client.is_model_ready("pump")
    assert client.infer("pump", row).as_numpy("label").shape == (1,)


def test_what_cannot_be_loaded(client):
    for name, more, words in (
        ("other", {}, "there is no model 'other'"),
        ("pump", {"config": "{}"}, "'config' is not supported"),
        ("pump", {"config": "{}", "files": {"file:1/model.onnx": b"x"}}, "is not supported"),
    ):
        with pytest.raises(InferenceServerException, match=words):
            client.load_model(name, **more)
    with pytest.raises(InferenceServerException, match="there is no model 'other'"):
        client.unload_model("other")
    assert client.is_model_ready("pump")


def test_errors_come_in_words_the_client_can_show(client):
    wide = np.zeros((1, 5), np.float32)
    row = np.zeros((1, 4), np.float32)
    for model, tensors, more, words in (
        ("pump", [tensor("x", wide)], {}, r"expected shape \[batch, 4\].* given \[1, 5\]"),
        ("pump", [tensor("y", row)], {}, "'y' is not one of the model's: x"),
        ("pump", [tensor("x", row.astype(np.float64))], {}, "expected datatype FP32, given 'FP64'"),
        ("pump", [tensor("x", row), tensor("x", row)], {}, "'x' is there twice"),
        ("pump", [tensor("x", row)], {"model_version": "9"}, "no version '9'; 1.0.0 is serving"),
        ("nope", [tensor("x", row)], {}, "this device has: echo, image, pump"),
        (
            "pump",
            [tensor("x", row)],
            {"outputs": [triton.InferRequestedOutput("z")]},
            "output 'z' is not one of the model's: label, probabilities",
        ),
        (
            "pump",
            [tensor("x", row)],
            {"outputs": [triton.InferRequestedOutput("label", class_count=2)]},
            "'classification' is not supported",
        ),
    ):
        with pytest.raises(InferenceServerException, match=words):
            client.infer(model, tensors, **more)

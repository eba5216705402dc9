"""The gRPC listener, asked by the client that everybody has: ``tritonclient.grpc``, as it is."""

from __future__ import annotations

import contextlib
import queue

import grpc
import numpy as np
import pytest
from certificate_files import make_tls, make_token
from echo_variants import ECHO_DTYPES, echo_input, echo_values
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from edgepack_contract.errors import ConfigError


@pytest.fixture(scope="module")
def served(make_world, listening, load, load_echo):
    world = make_world()
    world.add("pump", load("v1", version="1.0.0", bias=1.0))
    world.add("echo", load_echo(*ECHO_DTYPES))
    with listening(world) as port:
        yield world, port


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(f"127.0.0.1:{served[1]}") as made:
        yield made


def values_of(dtype, shape=(2, 2)):
    """Over gRPC texts are bytes."""
    values = echo_values(dtype, shape)
    return np.vectorize(str.encode, [object])(values) if dtype == "str" else values


def tensor(name, values):
    made = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    made.set_data_from_numpy(values)
    return made


def everything(shape=(2, 2)):
    return {echo_input(dtype): values_of(dtype, shape) for dtype in ECHO_DTYPES}


def same(answer, sent):
    for name, values in sent.items():
        given = answer.as_numpy(f"{name}_out")
        assert given.dtype == values.dtype
        np.testing.assert_array_equal(given, values)


@pytest.mark.parametrize("shape", [(2, 2), (0, 2), (1, 1), (70, 11)])
def test_every_datatype_comes_back(client, shape):
    sent = everything(shape)
    asked = [tensor(name, values) for name, values in sent.items()]
    answer = client.infer("echo", asked, request_id="7", model_version="1.0.0")
    assert answer.get_response().id == "7"
    same(answer, sent)


def test_typed_contents_are_understood_too(served, listening):
    # what clients other than Triton's own send; FP16 has no such form
    fields = {
        "bool": "bool", "str": "bytes", "float32": "fp32", "float64": "fp64", "int64": "int64",
        "uint64": "uint64", **dict.fromkeys(("int8", "int16", "int32"), "int"),
        **dict.fromkeys(("uint8", "uint16", "uint32"), "uint"),
    }  # fmt: skip
    world, _ = served
    request = service_pb2.ModelInferRequest(model_name="typed")
    sent = {dtype: values_of(dtype) for dtype in fields}
    for dtype, values in sent.items():
        item = request.inputs.add(
            name=echo_input(dtype), datatype=np_to_triton_dtype(values.dtype), shape=values.shape
        )
        getattr(item.contents, f"{fields[dtype]}_contents").extend(values.ravel().tolist())
    with listening(world) as port, stub(port) as call:
        answer = call("ModelInfer", request, service_pb2.ModelInferResponse)
    raw = {
        one.name: one_raw
        for one, one_raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }
    for dtype, values in sent.items():
        if dtype != "str":
            found = np.frombuffer(raw[f"{echo_input(dtype)}_out"], values.dtype)
            np.testing.assert_array_equal(found, values.ravel())


@pytest.fixture(scope="module", autouse=True)
def typed(served, load_echo):
    served[0].add("typed", load_echo(*(one for one in ECHO_DTYPES if one != "float16")))


@contextlib.contextmanager
def stub(port, credentials=None, metadata=()):
    """Calls by the protocol's own messages, without a client's help."""
    where = f"localhost:{port}"
    channel = (
        grpc.insecure_channel(where)
        if credentials is None
        else grpc.secure_channel(where, credentials)
    )

    def call(method, request, kind):
        path = f"/inference.GRPCInferenceService/{method}"
        ask = channel.unary_unary(
            path, request_serializer=lambda one: one.SerializeToString(),
            response_deserializer=kind.FromString,
        )  # fmt: skip
        return ask(request, timeout=20, metadata=metadata)

    with channel:
        yield call


def test_chosen_outputs_and_a_stream(client):
    sent = values_of("float32", (3, 2))
    only = [triton.InferRequestedOutput("x_float32_out")]
    others = [tensor(name, values) for name, values in everything().items() if name != "x_float32"]
    answer = client.infer("echo", [tensor("x_float32", sent), *others], outputs=only)
    assert [one.name for one in answer.get_response().outputs] == ["x_float32_out"]
    found = queue.Queue()
    client.start_stream(lambda result, error: found.put((result, error)))
    row = tensor("x", np.zeros((1, 4), np.float32))
    client.async_stream_infer("pump", [row])
    client.async_stream_infer("nope", [row])
    client.async_stream_infer("pump", [row])
    first, refused, again = (found.get(timeout=20) for _ in range(3))
    client.stop_stream()
    assert first[0].as_numpy("label").tolist() == again[0].as_numpy("label").tolist()
    assert "there is no model 'nope'" in str(refused[1])


def test_what_a_client_asks_before_it_infers(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pump")
    assert client.is_model_ready("pump", "1.0.0")
    assert not client.is_model_ready("pump", "2")
    assert not client.is_model_ready("other")
    told = client.get_server_metadata()
    assert told.name == "edgepack"
    assert "model_repository" in told.extensions
    told = client.get_model_metadata("pump", "1.0.0", as_json=True)
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    config = client.get_model_config("pump").config
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("x", 11, [-1, 4])
    ]
    before = client.get_inference_statistics("pump").model_stats[0]
    client.infer("pump", [tensor("x", np.zeros((2, 4), np.float32))])
    (after,) = client.get_inference_statistics("pump", "1.0.0").model_stats
    assert after.inference_count - before.inference_count == 2
    assert after.inference_stats.success.count == after.execution_count
    names = {one.name for one in client.get_inference_statistics().model_stats}
    assert names == {"pump", "echo", "typed"}


def test_a_model_is_unloaded_and_loaded(client):
    client.unload_model("pump")
    assert not client.is_model_ready("pump")
    assert not client.is_server_ready()
    index = {
        one.name: (one.state, one.reason) for one in client.get_model_repository_index().models
    }
    assert index["pump"] == ("UNAVAILABLE", "unloaded")
    client.load_model("pump")
    assert client.is_model_ready("pump")
    with pytest.raises(InferenceServerException, match="'config' is not supported"):
        client.load_model("pump", config="{}")


def test_errors_have_a_status_and_words(client):
    row, wide = np.zeros((1, 4), np.float32), np.zeros((1, 5), np.float32)
    for model, tensors, more, status, words in (
        ("pump", [tensor("x", wide)], {}, "INVALID_ARGUMENT", r"given \[1, 5\]"),
        ("pump", [tensor("y", row)], {}, "INVALID_ARGUMENT", "'y' is not one of the model's: x"),
        ("pump", [tensor("x", row.astype(np.float64))], {}, "INVALID_ARGUMENT", "given 'FP64'"),
        ("pump", [tensor("x", row)], {"model_version": "9"}, "NOT_FOUND", "no version '9'"),
        ("nope", [tensor("x", row)], {}, "NOT_FOUND", "this device has: echo, pump"),
    ):  # fmt: skip
        with pytest.raises(InferenceServerException, match=words) as caught:
            client.infer(model, tensors, **more)
        assert caught.value.status() == f"StatusCode.{status}"


def malformed():
    fine = service_pb2.ModelInferRequest(model_name="pump")
    fine.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    yield "no contents", fine, "holds 4 values, fp32_contents has 0"
    short = service_pb2.ModelInferRequest()
    short.CopyFrom(fine)
    short.raw_input_contents.append(b"123")
    yield "short", short, "takes 16 bytes, given 3"
    many = service_pb2.ModelInferRequest()
    many.CopyFrom(fine)
    many.raw_input_contents.extend([b"", b""])
    yield "many", many, "1 inputs and 2 raw_input_contents"
    both = service_pb2.ModelInferRequest()
    both.CopyFrom(short)
    both.inputs[0].contents.fp32_contents.append(1)
    yield "both", both, "both contents and raw_input_contents"
    large = service_pb2.ModelInferRequest()
    large.CopyFrom(fine)
    large.inputs[0].shape[0] = 2**39
    yield "large", large, "fp32_contents has 0"
    huge = service_pb2.ModelInferRequest()
    huge.CopyFrom(fine)
    huge.inputs[0].shape[0] = 2**62
    yield "huge", huge, f"given [{2**62}, 4]"
    negative = service_pb2.ModelInferRequest()
    negative.CopyFrom(fine)
    negative.inputs[0].shape[0] = -1
    yield "negative", negative, "expected shape"


@pytest.mark.parametrize(("request_", "words"), [row[1:] for row in malformed()],
                         ids=[row[0] for row in malformed()])  # fmt: skip
def test_requests_that_no_client_makes(served, request_, words):
    with stub(served[1]) as call, pytest.raises(grpc.RpcError) as caught:
        call("ModelInfer", request_, service_pb2.ModelInferResponse)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()


def test_bytes_that_are_no_message_and_methods_that_are_none(served):
    class Raw:
        def SerializeToString(self):  # noqa: N802 - protobuf's name
            return b"\xff" * 40

    with stub(served[1]) as call:
        for method, code in (
            ("ModelInfer", grpc.StatusCode.INVALID_ARGUMENT),
            ("ModelMetadata", grpc.StatusCode.INVALID_ARGUMENT),
            ("SystemSharedMemoryStatus", grpc.StatusCode.UNIMPLEMENTED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(method, Raw(), service_pb2.ModelInferResponse)
            assert caught.value.code() == code


def test_a_body_over_the_limit_is_refused(served, listening):
    world, _ = served
    with (
        listening(world, body_bytes=4096) as port,
        triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer("pump", [tensor("x", np.zeros((4000, 4), np.float32))])
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert client.infer("pump", [tensor("x", np.zeros((4, 4), np.float32))])


def test_the_same_token_and_certificate_as_over_http(served, listening, tmp_path):
    world, _ = served
    files = make_tls(tmp_path, "localhost")
    token = make_token(tmp_path / "token")
    settings = {
        "host": "localhost", "tls_certificate": str(files.certificate), "tls_key": str(files.key),
        "token_file": str(tmp_path / "token"),
    }  # fmt: skip
    asked = service_pb2.ModelMetadataRequest(name="pump")
    credentials = grpc.ssl_channel_credentials(files.authority.read_bytes())
    with listening(world, **settings) as port:
        with stub(port, credentials) as call:
            assert call("ServerLive", asked, service_pb2.ServerLiveResponse).live
            with pytest.raises(grpc.RpcError) as caught:
                call("ModelMetadata", asked, service_pb2.ModelMetadataResponse)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert token not in caught.value.details()
        bearer = (("authorization", f"Bearer {token}"),)
        with stub(port, credentials, bearer) as call:
            told = call("ModelMetadata", asked, service_pb2.ModelMetadataResponse)
            assert told.name == "pump"


def test_a_place_that_is_taken(served, listening):
    world, port = served
    with (
        pytest.raises(ConfigError, match=r"cannot listen at 127\.0\.0\.1") as caught,
        listening(world, grpc_port=port),
    ):
        pass
    assert caught.value.code == "cannot-listen"

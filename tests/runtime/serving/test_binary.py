"""Tensors as bytes: what they mean, and what hostile lengths come to."""

from __future__ import annotations

import contextlib
import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepack_contract.description import TensorSpec
from edgepack_runtime.inference.errors import BadRequestError, InputError, ShapeError
from edgepack_runtime.serving.codec import Payload
from edgepack_runtime.serving.datatypes import DATATYPES
from edgepack_runtime.serving.oip import OipCodec
from edgepack_runtime.serving.tensor_bytes import raw_tensor, tensor_from_bytes, tensor_to_bytes

ROW = np.array([[0.5, -1.0, 2.0, 0.0]], np.float32)
SIXTEEN = ROW.tobytes()
NUMBERS = [dtype for dtype in DATATYPES if dtype not in ("str", "bool")]


def spec(dtype="float32", *shape):
    return TensorSpec(name="x", dtype=dtype, shape=list(shape or ("n", 4)))


@given(st.data())
def test_numbers_go_there_and_back(data):
    dtype = data.draw(st.sampled_from(NUMBERS))
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0)))
    open_ended = spec(dtype, *(f"d{axis}" for axis in range(array.ndim)))
    raw = bytes(tensor_to_bytes(array))
    assert raw == array.tobytes()
    # in the middle of a body numbers lie anywhere
    for before in range(3):
        view = memoryview(bytes(before) + raw)[before:]
        back = tensor_from_bytes(open_ended, array.shape, view)
        assert back.dtype == array.dtype
        assert back.flags.aligned
        np.testing.assert_array_equal(back, array)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=6))
def test_texts_go_there_and_back(texts):
    raw = bytes(tensor_to_bytes(np.array(texts, object)))
    back = tensor_from_bytes(spec("str", "n"), [len(texts)], memoryview(raw))
    assert back.tolist() == texts


def test_numbers_are_not_copied_where_they_lie_well():
    raw = ROW.tobytes()
    assert np.shares_memory(
        tensor_from_bytes(spec(), [1, 4], memoryview(raw)), np.frombuffer(raw, np.uint8)
    )


def test_a_strided_answer_is_written_in_order():
    turned = np.arange(6, dtype=np.int32).reshape(2, 3).T
    assert bytes(tensor_to_bytes(turned)) == turned.tobytes()


@pytest.mark.parametrize(
    ("raw", "shape", "words"),
    [
        (b"\x01\x00\x00\x00a", [2], "takes 2 elements, given 1"),
        (b"\x05\x00\x00\x00a", [1], "element 0 is longer than the bytes that are left"),
        (b"\xff\xff\xff\xff", [1], "element 0 is longer"),
        (b"\x01\x00\x00\x00a\x01\x00", [2], "element 1 is longer"),
        (b"\x01\x00\x00\x00\xff", [1], "element 0 is not UTF-8"),
        (b"", [1], "takes 1 elements, given 0"),
        (b"", [2**31 - 1], "takes 2147483647 elements, given 0"),
    ],
)
def test_texts_that_lie(raw, shape, words):
    with pytest.raises(InputError, match=words):
        tensor_from_bytes(spec("str", "n"), shape, memoryview(raw))


def test_truth_is_a_byte_of_0_or_1():
    truth = spec("bool", "n")
    assert tensor_from_bytes(truth, [2], memoryview(b"\x00\x01")).tolist() == [False, True]
    with pytest.raises(BadRequestError, match="a BOOL is a byte 0 or 1"):
        tensor_from_bytes(truth, [2], memoryview(b"\x00\x02"))


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        (("n", 4), 32, (2, 4)),
        ((1, 3, 2), 24, (1, 3, 2)),
        (("n", 3, "w"), 36, (1, 3, 3)),
        (("n",), 12, (3,)),
    ],
)
def test_a_raw_body_has_the_shape_that_fits(shape, size, expected):
    assert raw_tensor(spec("float32", *shape), memoryview(bytes(size))).shape == expected


@pytest.mark.parametrize(
    ("shape", "size"),
    [(("n", 4), 0), (("n", 4), 20), ((1, 3), 8), (("n", "h", "w"), 12), ((3, "h", "w"), 12)],
)
def test_a_raw_body_that_fits_no_shape(shape, size):
    with pytest.raises(ShapeError):
        raw_tensor(spec("float32", *shape), memoryview(bytes(size)))


def test_a_raw_text_is_one_element():
    assert raw_tensor(spec("str", "n", 1), memoryview("ä".encode())).tolist() == [["ä"]]
    with pytest.raises(ShapeError, match="one BYTES element"):
        raw_tensor(spec("str", "n", 2), memoryview(b"a"))


HOSTILE = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just("FP32")


@given(
    st.sampled_from(["float32", "str", "bool"]),
    st.dictionaries(
        st.sampled_from(["name", "shape", "datatype", "data"]),
        HOSTILE | st.lists(st.integers(-2, 2**65), max_size=3),
    ),
    st.integers(-1, 40) | st.integers() | HOSTILE,
    st.integers(-3, 200) | st.none(),
    st.binary(max_size=40),
)
def test_no_message_does_more_than_an_input_error(dtype, changes, size, header_bytes, rest):
    taken = spec(dtype, "n", "m")
    described = SimpleNamespace(
        inputs=[taken], outputs=[taken], dimensions={}, on_nonfinite="count", version="1"
    )
    one = {"name": "x", "shape": [2, 5], "datatype": DATATYPES[dtype]}
    one |= {"parameters": {"binary_data_size": size}} | changes
    header = json.dumps({"inputs": [one]}).encode()
    payload = Payload(header + rest, len(header) if header_bytes is None else header_bytes)
    with contextlib.suppress(InputError):
        request = OipCodec().decode(
            SimpleNamespace(description=described, float_rows=None), payload
        )
        assert request.feeds["x"].ndim == 2


def message(tensors=SIXTEEN, header_bytes=None, **changes):
    """A request with a binary tensor, and its headers; ``changes`` are those of its input."""
    one = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    header = json.dumps({"inputs": [one | changes]}).encode()
    size = len(header) if header_bytes is None else header_bytes
    return header + tensors, {"Inference_Header_Content_Length": str(size)}


def ask(shared, body, headers, path="/v2/models/pump/infer"):
    return shared.ask("POST", path, body, **headers)


def test_bytes_are_the_same_as_json(shared):
    given_bytes = ask(shared, *message())
    given_json = shared.ask(
        "POST",
        "/v2/models/pump/infer",
        {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW.tolist()}]},
    )
    assert given_bytes.status == 200
    assert given_bytes.headers["content-type"] == "application/json"
    assert given_bytes.json == given_json.json


def test_a_raw_body_gets_a_raw_answer(shared):
    answer = ask(shared, ROW.tobytes() * 2, {"Inference_Header_Content_Length": "0"})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers["inference-header-content-length"])
    outputs = json.loads(answer.raw[:size])["outputs"]
    sizes = {one["name"]: one["parameters"]["binary_data_size"] for one in outputs}
    assert sizes == {"label": 16, "probabilities": 24}
    assert len(answer.raw) == size + 40
    assert np.frombuffer(answer.raw[size + 16 :], np.float32).reshape(2, 3).sum() == pytest.approx(
        2
    )


LIES = [
    (*message(tensors=b""), "expected 16 additional bytes"),
    (*message(tensors=bytes(17)), "unexpected additional input data: 1 bytes"),
    (*message(parameters={"binary_data_size": 12}), "takes 16 bytes, given 12"),
    (*message(parameters={"binary_data_size": -16}), "to be a number of bytes, given '-16'"),
    (*message(parameters={"binary_data_size": 2**64 + 16}), "additional bytes"),
    (*message(parameters={"binary_data_size": True}), "given 'True'"),
    (*message(parameters={"binary_data_size": "16"}), "given '16'"),
    (*message(shape=[2**39, 4]), f"takes {2**43} bytes"),
    (*message(shape=[2**62, 4]), f"given [{2**62}, 4]"),
    (*message(shape=[-1, 4]), "given [-1, 4]"),
    (*message(data=[1, 2, 3, 4]), "both 'data' and 'binary_data_size'"),
    (*message(parameters={"shared_memory_region": "a"}), "is not supported"),
    (*message(datatype="FP16"), "expected datatype FP32, given 'FP16'"),
    (*message(header_bytes=-1), "Inference-Header-Content-Length"),
    (*message(header_bytes=10**6), "Inference-Header-Content-Length is 1000000"),
    (*message(header_bytes=2**63), "expected Inference-Header-Content-Length"),
    (*message(header_bytes="x"), "given 'x'"),
    (*message(header_bytes="1_0"), "given '1_0'"),
    (*message(header_bytes=20), "not an inference request"),
    (bytes(15), {"Inference_Header_Content_Length": "0"}, "16 bytes or a multiple of it"),
    (
        struct.pack("<4f", 1, 2, float("nan"), 0),
        {"Inference_Header_Content_Length": "0"},
        "1 of 4 values are null",
    ),
]


@pytest.mark.parametrize(("body", "headers", "words"), LIES, ids=[lie[2] for lie in LIES])
def test_lengths_that_lie_are_400(shared, body, headers, words):
    answer = ask(shared, body, headers)
    assert answer.status == 400
    assert words in answer.json["error"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"outputs": [{"name": "label"}, {"name": "label"}]}, "output 'label' is there twice"),
        ({"outputs": [{"name": "label", "parameters": {"binary_data": 1}}]}, "true or false"),
        ({"parameters": {"binary_data_output": "yes"}}, "'binary_data_output' to be true or false"),
    ],
)
def test_answers_that_cannot_be_given(shared, asked, words):
    one = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW.tolist()}
    answer = shared.ask("POST", "/v2/models/pump/infer", {"inputs": [one]} | asked)
    assert answer.status == 400
    assert words in answer.json["error"]


def test_bytes_are_for_inference_only(shared):
    answer = ask(shared, *message(), path="/v1/models/pump:predict")
    assert answer.status == 400
    assert "/v2/models/M/infer only" in answer.json["error"]


def test_json_is_not_read_as_numbers(shared):
    headers = {"Inference_Header_Content_Length": "0", "Content_Type": "application/json"}
    answer = ask(shared, b" " * 16, headers)
    assert answer.status == 400
    assert "says that it is JSON" in answer.json["error"]

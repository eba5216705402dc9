"""The two protocols over models of other kinds than the one that the server tests ask."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepack_contract.description import TensorSpec
from edgepack_contract.statistics import ClassReader
from edgepack_runtime.inference.errors import BadRequestError, InputError, ShapeError
from edgepack_runtime.inference.float_rows import FloatRows
from edgepack_runtime.serving.codec import Payload, PredictRequest
from edgepack_runtime.serving.datatypes import DATATYPES
from edgepack_runtime.serving.instances import InstancesCodec, column_names
from edgepack_runtime.serving.model import plain_classes
from edgepack_runtime.serving.oip import OipCodec
from edgepack_runtime.serving.oip_documents import model_config, model_metadata
from edgepack_runtime.serving.rows import RowCodec


def tensor(name, dtype, *shape, **more):
    return TensorSpec(name=name, dtype=dtype, shape=list(shape), **more)


def model(inputs, outputs):
    described = SimpleNamespace(
        inputs=inputs, outputs=outputs, dimensions={}, on_nonfinite="refuse", version="1.0.0"
    )
    reader = ClassReader(outputs)
    return SimpleNamespace(
        description=described,
        reader=reader,
        version=described.version,
        float_rows=FloatRows.of(described),
        plain_classes=plain_classes(outputs, reader.labels),
    )


def slow(of):
    """The same, with nothing that is done in fewer steps."""
    return SimpleNamespace(**vars(of) | {"float_rows": None, "plain_classes": None})


COLUMNS = model(
    [
        tensor("age", "float32", "n", 1),
        tensor("city", "str", "n", 1),
        tensor("pair", "int64", "n", 2, features=["left", "right"]),
        tensor("flag", "bool", "n"),
    ],
    [tensor("y", "float32", "n", 1, kind="values")],
)
ROWS = [
    {"age": 30, "city": "Bonn", "left": 1, "right": 2, "flag": True},
    {"age": 31.5, "city": "Ulm", "left": 3, "right": 4, "flag": False},
]


def payload(content):
    return Payload(json.dumps(content).encode())


def predict_feeds(of, instances):
    return InstancesCodec().decode(of, payload({"instances": instances})).feeds


def answer(of, outputs, rows=None):
    rows = len(next(iter(outputs.values()))) if rows is None else rows
    request = PredictRequest({"x": np.zeros((rows, 1), np.float32)})
    return json.loads(InstancesCodec().encode("slot", of, request, outputs).body)["predictions"]


@pytest.mark.parametrize("instances", [ROWS, [list(row.values()) for row in ROWS]])
def test_one_input_for_each_column(instances):
    feeds = predict_feeds(COLUMNS, instances)
    np.testing.assert_array_equal(feeds["age"], np.array([[30], [31.5]], np.float32))
    np.testing.assert_array_equal(feeds["pair"], [[1, 2], [3, 4]])
    assert feeds["city"].tolist() == [["Bonn"], ["Ulm"]]
    assert feeds["flag"].tolist() == [True, False]
    assert feeds["pair"].dtype == np.int64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"city": 5}, "'city'"),
        ({"age": "30"}, "'age'"),
        ({"left": 1.5}, "'pair'"),
        ({"flag": 1}, "'flag'"),
        ({"flag": None}, "'flag'"),
        ({"extra": 1}, "extra unknown"),
    ],
)
def test_columns_of_another_type(changes, words):
    with pytest.raises(BadRequestError, match=words):
        predict_feeds(COLUMNS, [ROWS[0] | changes])


def test_lists_of_another_length():
    with pytest.raises(ShapeError, match=r"instance 1: expected 5 values \(age, city, left"):
        predict_feeds(COLUMNS, [list(ROWS[0].values()), [1]])


def test_images_by_input_name_and_by_nesting():
    image = model([tensor("image", "uint8", "n", 2, 2)], [tensor("y", "float32", "n", 1)])
    pixels = [[[0, 1], [2, 255]]]
    for instances in (pixels, [{"image": pixels[0]}]):
        feeds = predict_feeds(image, instances)
        np.testing.assert_array_equal(feeds["image"], np.array(pixels, np.uint8))
    with pytest.raises(BadRequestError, match="uint8"):
        predict_feeds(image, [[[0, 1], [2, 256]]])


def test_several_inputs_with_more_dimensions_by_name():
    two = model(
        [tensor("image", "float32", "n", 1, 2), tensor("gain", "float32", "n", 1)],
        [tensor("y", "float32", "n", 1)],
    )
    feeds = predict_feeds(two, [{"image": [[1, 2]], "gain": [3]}])
    assert feeds["image"].shape == (1, 1, 2)
    assert feeds["gain"].tolist() == [[3.0]]
    np.testing.assert_array_equal(
        predict_feeds(two, [{"image": [[1, 2]], "gain": 3}])["gain"], feeds["gain"]
    )
    with pytest.raises(BadRequestError, match="keyed by input name"):
        predict_feeds(two, [[[[1, 2]], 3]])


def test_columns_without_names_are_numbered():
    assert column_names(tensor("x", "float32", "n", 3)) == ["x[0]", "x[1]", "x[2]"]
    plain = model([tensor("x", "float32", "n", 2)], [tensor("y", "float32", "n", 1)])
    by_number = predict_feeds(plain, [{"x[0]": 1, "x[1]": 2}])
    by_input = predict_feeds(plain, [{"x": [1, 2]}])
    np.testing.assert_array_equal(by_number["x"], by_input["x"])


@pytest.mark.parametrize(
    "inputs",
    [
        [tensor("x", "float32", 1, 2), tensor("h", "float32", 1, 4, role="state", source="h2")],
        [tensor("x", "float32")],
    ],
)
def test_models_that_are_not_by_row_are_for_the_other_protocol(inputs):
    with pytest.raises(BadRequestError, match="/v2/models/M/infer"):
        predict_feeds(model(inputs, [tensor("h2", "float32", 1, 4)]), [[1, 2]])


def test_answers_of_a_regression_are_values():
    one = model([], [tensor("y", "float32", "n", 1, kind="values")])
    assert answer(one, {"y": np.array([[1.5], [2.5]], np.float32)}) == [1.5, 2.5]
    wide = model([], [tensor("y", "float32", "n", 2, kind="values")])
    assert answer(wide, {"y": np.array([[1.5, 2.5]], np.float32)}) == [[1.5, 2.5]]
    two = model([], [tensor("a", "float32", "n", 1), tensor("b", "int64", "n")])
    given = {"a": np.array([[0.5]], np.float32), "b": np.array([7])}
    assert answer(two, given) == [{"a": 0.5, "b": 7}]


def test_answers_of_classifiers():
    labelled = model([], [tensor("label", "str", "n", kind="label")])
    assert answer(labelled, {"label": np.array(["a", "b"], object)}) == [
        {"label": "a"},
        {"label": "b"},
    ]
    numbers = model([], [tensor("label", "int64", "n", kind="label", labels=["3", "7"])])
    assert answer(numbers, {"label": np.array([7, 3])}) == [{"label": "7"}, {"label": "3"}]
    scored = model([], [tensor("s", "float32", "n", 2, kind="scores", labels=["no", "yes"])])
    assert answer(scored, {"s": np.array([[0.5, 2.0]], np.float32)}) == [
        {"label": "yes", "scores": [0.5, 2.0]}
    ]
    nameless = model([], [tensor("p", "float32", "n", 2, kind="probabilities")])
    assert answer(nameless, {"p": np.array([[0.25, 0.75]], np.float32)}) == [
        {"label": "1", "probabilities": {"0": 0.25, "1": 0.75}}
    ]


def test_a_class_that_is_not_known_is_told_as_it_is():
    odd = model([], [tensor("label", "str", "n", kind="label", labels=["a", "b"])])
    assert answer(odd, {"label": np.array(["z"], object)}) == [{"label": "z"}]


def test_outputs_that_are_not_by_row():
    boxes = model([], [tensor("boxes", "float32", "k", 4)])
    with pytest.raises(BadRequestError, match="use /v2"):
        answer(boxes, {"boxes": np.zeros((3, 4), np.float32)}, rows=1)


JSON_DTYPES = [dtype for dtype in DATATYPES if dtype not in ("float16", "str")]


@given(st.data())
def test_what_goes_in_by_v2_comes_out_by_v2(data):
    dtype = data.draw(st.sampled_from(JSON_DTYPES))
    array = data.draw(
        hnp.arrays(
            dtype,
            hnp.array_shapes(min_dims=1, max_dims=3, max_side=4),
            elements={"allow_nan": False, "allow_infinity": False}
            if dtype.startswith("float")
            else None,
        )
    )
    shape = [f"d{axis}" for axis in range(array.ndim)]
    echo = model([tensor("x", dtype, *shape)], [tensor("x", dtype, *shape)])
    codec, body = OipCodec(), {"name": "x", "shape": list(array.shape)}
    body |= {"datatype": DATATYPES[dtype], "data": array.tolist()}
    request = codec.decode(echo, payload({"id": "7", "inputs": [body]}))
    told = json.loads(codec.encode("slot", echo, request, request.feeds).body)
    again = codec.decode(echo, payload({"inputs": told["outputs"]}))
    assert told["id"] == "7"
    assert again.feeds["x"].dtype == array.dtype
    np.testing.assert_array_equal(again.feeds["x"], array)


def test_texts_by_v2():
    echo = model([tensor("x", "str", "n")], [tensor("x", "str", "n")])
    body = {"name": "x", "shape": [2], "datatype": "BYTES", "data": ["ä", ""]}
    request = OipCodec().decode(echo, payload({"inputs": [body]}))
    told = json.loads(OipCodec().encode("slot", echo, request, request.feeds).body)
    assert told["outputs"] == [body]


def test_half_floats_have_no_json_by_v2_but_rows_by_v1():
    half = model([tensor("x", "float16", "n", 1)], [tensor("y", "float16", "n", 1)])
    body = {"name": "x", "shape": [1, 1], "datatype": "FP16", "data": [1.5]}
    with pytest.raises(BadRequestError, match="use /v1/models/M:predict"):
        OipCodec().decode(half, payload({"inputs": [body]}))
    feeds = predict_feeds(half, [[1.5]])
    assert feeds["x"].dtype == np.float16
    assert answer(half, {"y": feeds["x"]}) == [1.5]


def test_metadata_of_every_datatype():
    inputs = [tensor(dtype, dtype, "n", 2) for dtype in DATATYPES]
    described = SimpleNamespace(version="1.0.0", inputs=inputs, outputs=[])
    told = model_metadata("slot", described, ["1.0.0"])
    assert {item["name"]: item["datatype"] for item in told["inputs"]} == DATATYPES
    config = model_config("slot", described)
    types = {item["name"]: item["data_type"] for item in config["input"]}
    assert types == {
        dtype: "TYPE_STRING" if dtype == "str" else f"TYPE_{wire}"
        for dtype, wire in DATATYPES.items()
    }
    assert config["input"][0]["dims"] == [-1, 2]


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_no_bytes_do_more_than_an_input_error(body):
    for codec in (OipCodec(), InstancesCodec()):
        with pytest.raises(InputError):
            codec.decode(COLUMNS, Payload(body))


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["age", "city", "left", "right", "flag", "x"]), inner)
    ),
    max_leaves=10,
)


@given(JSONS)
def test_no_instances_do_more_than_an_input_error(instances):
    try:
        feeds = predict_feeds(COLUMNS, instances)
    except InputError:
        return
    assert feeds.keys() == {"age", "city", "pair", "flag"}


@given(st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), JSONS))
def test_no_tensor_does_more_than_an_input_error(item):
    one = model([tensor("x", "float32", "n")], [tensor("y", "float32", "n")])
    body = payload({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]} | item]})
    try:
        assert OipCodec().decode(one, body).feeds["x"].dtype == np.float32
    except InputError:
        return


NUMBERS = st.floats(width=32) | st.floats() | st.integers(-(2**70), 2**70)
RAGGED = st.lists(st.lists(NUMBERS | st.none() | st.text(max_size=1), max_size=3), max_size=3)


def outcome(work):
    try:
        found = work()
    except InputError as error:
        return type(error), str(error)
    arrays = {
        name: (array.dtype, array.tobytes(), array.shape) for name, array in found.feeds.items()
    }
    return arrays, found.id


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@given(
    st.integers(0, 3).flatmap(
        lambda size: st.lists(st.lists(NUMBERS, min_size=2, max_size=2), min_size=size, max_size=3)
    )
    | RAGGED,
    st.sampled_from(["n", 1, 2]),
)
def test_rows_are_read_alike_in_few_steps_and_in_many(dtype, rows, first):
    of = model([tensor("x", dtype, first, 2)], [])
    body = Payload(json.dumps({"instances": rows}).encode())
    quick, plain = (outcome(lambda m=m: InstancesCodec().decode(m, body)) for m in (of, slow(of)))
    assert quick == plain


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(
    st.lists(NUMBERS, max_size=6) | RAGGED,
    st.lists(st.sampled_from([-1, 0, 1, 2, 3, 2**70]), min_size=1, max_size=3),
    st.sampled_from([{}, {"parameters": {}}, {"name": "z"}, {"datatype": "FP16"}]),
    st.sampled_from([{}, {"id": "a"}, {"id": 1}, {"outputs": []}, {"parameters": {}}]),
)
def test_tensors_are_read_alike_in_few_steps_and_in_many(dtype, data, shape, more, around):
    of = model([tensor("x", dtype, "n", 2)], [])
    item = {"name": "x", "shape": shape, "datatype": DATATYPES[dtype], "data": data} | more
    body = Payload(json.dumps({"inputs": [item]} | around).encode())
    quick, plain = (outcome(lambda m=m: OipCodec().decode(m, body)) for m in (of, slow(of)))
    assert quick == plain


def test_the_usual_request_takes_few_steps(monkeypatch):
    of = model([tensor("x", "float32", "n", 2)], [])
    monkeypatch.delattr(of, "description")
    assert predict_feeds(of, [[1, 2.5]])["x"].tolist() == [[1.0, 2.5]]
    item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}
    feeds = OipCodec().decode(of, payload({"inputs": [item], "id": "one"})).feeds
    assert feeds["x"].tolist() == [[1.0, 2.5]]


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(2, 3)),
        elements=st.floats(width=32),
    ),
    st.booleans(),
)
def test_classes_are_told_alike_in_few_steps_and_in_many(shares, labelled):
    outputs = [tensor("p", "float32", "n", 3, kind="probabilities", labels=["a", "b", "c"])]
    given_back = {"p": shares}
    if labelled:
        outputs.insert(0, tensor("l", "int64", "n", kind="label"))
        given_back["l"] = np.arange(len(shares))
    of = model([tensor("x", "float32", "n", 2)], outputs)

    def told(by):
        request = PredictRequest({"x": np.zeros((len(shares), 2), np.float32)})
        return InstancesCodec().encode("slot", by, request, given_back)

    assert told(of) == told(slow(of))


ONE = model([tensor("x", "float32", "n", 2)], [tensor("y", "float32", "n")])
TENSOR = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


@pytest.mark.parametrize(
    ("codec", "asked", "body", "json_bytes"),
    [
        (InstancesCodec(), ONE, b'{"instances": [[1, 2]]}', None),
        (InstancesCodec(), slow(ONE), b'{"instances": [[1, 2]]}', None),
        (RowCodec(batch=False), ONE, b"[1, 2]", None),
        (OipCodec(), ONE, json.dumps({"inputs": [TENSOR]}).encode(), None),
        (OipCodec(), slow(ONE), json.dumps({"inputs": [TENSOR]}).encode(), None),
        (OipCodec(), ONE, bytes(8), 0),
    ],
    ids=["rows", "rows, slowly", "a row", "tensors", "tensors, slowly", "bytes"],
)
def test_whom_a_request_is_about_is_known(codec, asked, body, json_bytes):
    assert codec.decode(asked, Payload(body, json_bytes, b"pump-7")).key == b"pump-7"
    assert codec.decode(asked, Payload(body, json_bytes)).key is None

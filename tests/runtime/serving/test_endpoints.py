"""The plain paths, KServe's lists, compression, and the methods of everything."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest

from edgepack_contract.limits import LIMITS, MIB
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.asgi import HttpError
from edgepack_runtime.serving.compression import encoding_for, unpack

ROW = [0.5, -1.0, 2.0, 0.0]
NAMES = ["temperature", "pressure", "flow", "age"]
NAMED = dict(zip(NAMES, ROW, strict=True))
PREDICT = "/v1/models/pump:predict"


def expected(shared):
    return shared.ask("POST", PREDICT, {"instances": [ROW]}).json["predictions"][0]


@pytest.mark.parametrize("row", [ROW, NAMED, {"x": ROW}])
def test_one_row_one_prediction(shared, row):
    answer = shared.ask("POST", "/predict", row)
    assert answer.status == 200
    assert answer.json == {
        "prediction": expected(shared), "model_name": "pump", "model_version": "1.0.0",
    }  # fmt: skip
    assert answer.headers["x-edgepack-version"] == "1.0.0"


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
@pytest.mark.parametrize("row", [ROW, NAMED])
def test_an_envelope_works_at_both(shared, path, row):
    answer = shared.ask("POST", path, {"instances": [row, row]})
    assert answer.json["predictions"] == [expected(shared)] * 2


@pytest.mark.parametrize("row", [ROW, NAMED])
def test_a_list_of_rows(shared, row):
    answer = shared.ask("POST", "/predict/batch", [row, row, row])
    assert answer.json["predictions"] == [expected(shared)] * 3


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/predict", b"", "expected one row"),
        ("/predict", b"{", "expected one row"),
        ("/predict", b"[1,2,3,4],[1,2,3,4]", "expected one row"),
        ("/predict", [[1, 2, 3, 4]], "expected shape [batch, 4] of float32, given [1, 1, 4]"),
        ("/predict", [1, 2, 3], "expected shape [batch, 4]"),
        ("/predict", {"temperature": 1}, "age, flow, pressure missing"),
        ("/predict", 5, "expected shape"),
        ("/predict", "x", "expected"),
        ("/predict/batch", {"temperature": 1}, "expected a list of rows"),
        ("/predict/batch", [[1, 2, 3]], "expected shape"),
        ("/predict/batch", ROW, "expected shape"),
    ],
)
def test_rows_that_do_not_fit(shared, path, body, words):
    answer = shared.ask("POST", path, body)
    assert answer.status == 400
    assert words in answer.json["error"]


def test_the_model_in_the_words_of_its_bundle(shared):
    told = shared.ask("GET", "/model/info").json
    assert (told["name"], told["version"], told["task"]) == ("pump", "1.0.0", "classification")
    assert told["inputs"][0]["features"] == NAMES
    assert told["outputs"][1]["labels"] == ["ok", "worn", "broken"]


def test_the_models_of_version_1(shared):
    assert shared.ask("GET", "/v1/models").json == {"models": ["pump"]}
    assert shared.ask("GET", "/v1/models/pump").json == {"name": "pump", "ready": True}
    assert shared.ask("GET", "/v1/models/other").status == 404


def test_plain_paths_need_one_model(world, load):
    world.start()
    for method, path in (("POST", "/predict"), ("POST", "/predict/batch"), ("GET", "/model/info")):
        answer = world.ask(method, path, ROW if method == "POST" else None)
        assert (answer.status, answer.json["error"]) == (404, "this device has no model")
    model = load("v1")
    world.add("pump", model)
    world.add("valve", model)
    for method, path in (("POST", "/predict"), ("POST", "/predict/batch"), ("GET", "/model/info")):
        answer = world.ask(method, path, ROW if method == "POST" else None)
        assert answer.status == 400
        assert "several models: pump, valve" in answer.json["error"]


def test_unloaded_is_told_everywhere_until_it_is_loaded(world, load):
    world.add("pump", load("v1"))
    world.start()
    for _ in range(2):
        gone = world.ask("POST", "/v2/repository/models/pump/unload")
        assert (gone.status, gone.raw) == (200, b"")
    answer = world.ask("POST", "/predict", ROW)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "unloaded by request" in answer.json["error"]
    health = world.ask("GET", "/health").json
    assert health["status"] == "degraded"
    assert (health["slots"]["pump"]["ready"], health["slots"]["pump"]["unloaded"]) == (False, True)
    assert world.ask("GET", "/v1/models/pump").status == 503
    assert world.ask("POST", "/v2/repository/models/pump/load", b"{}").status == 200
    assert world.ask("POST", "/predict", ROW).status == 200
    assert world.ask("GET", "/ready").status == 200


def test_what_orders_is_not_for_pages_of_other_sites(shared):
    answer = shared.ask("POST", "/v2/repository/models/pump/unload", Origin="http://evil.example")
    assert answer.status == 403
    assert shared.ask("GET", "/ready").status == 200


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"parameters": 1}', b"\xff"])
def test_orders_in_no_form(shared, body):
    for path in ("index", "models/pump/load", "models/pump/unload"):
        if path == "index" and b"parameters" in body:
            continue
        answer = shared.ask("POST", f"/v2/repository/{path}", body)
        assert answer.status == 400
        assert "or nothing" in answer.json["error"]


def test_an_empty_slot_cannot_be_loaded(world):
    world.add("pump")
    world.start()
    answer = world.ask("POST", "/v2/repository/models/pump/load")
    assert answer.status == 503
    assert "failed to load 'pump'" in answer.json["error"]


@pytest.mark.parametrize(
    ("path", "allow"),
    [("/health", "GET, HEAD, OPTIONS"), (PREDICT, "POST, OPTIONS"), ("/predict", "POST, OPTIONS")],
)
def test_options_tells_the_methods(shared, path, allow):
    answer = shared.ask("OPTIONS", path)
    assert (answer.status, answer.headers["allow"], answer.raw) == (200, allow, b"")
    assert shared.ask("OPTIONS", "/nothing").status == 404
    refused = shared.ask("PATCH", path)
    assert (refused.status, refused.headers["allow"]) == (405, allow)


PACKERS = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", PACKERS)
def test_packed_requests_and_answers(shared, encoding):
    body = json.dumps({"instances": [ROW] * 200}).encode()
    packed = PACKERS[encoding](body)
    plain = shared.ask("POST", PREDICT, body)
    answer = shared.ask(
        "POST", PREDICT, packed, Content_Encoding=encoding, Accept_Encoding=encoding
    )
    assert answer.headers["content-encoding"] == encoding
    assert answer.headers["vary"] == "accept-encoding"
    unpacked = gzip.decompress(answer.raw) if encoding == "gzip" else zlib.decompress(answer.raw)
    assert unpacked == plain.raw
    assert "content-encoding" not in plain.headers


def test_a_small_answer_is_not_packed(shared):
    answer = shared.ask("POST", PREDICT, {"instances": [ROW]}, Accept_Encoding="gzip")
    assert "content-encoding" not in answer.headers


def test_metrics_are_packed_too(shared):
    answer = shared.ask("GET", "/metrics", Accept_Encoding="gzip")
    assert b"edgepack_requests_total" in gzip.decompress(answer.raw)


LIES = {
    "brotli": (b"x", "br", 415, "'br' is not supported"),
    "twice": (b"x", "gzip, gzip", 415, "is not supported"),
    "plain": (b"{}", "gzip", 400, "the body is not gzip"),
    "nothing": (b"", "gzip", 400, "is cut off"),
    "cut": (gzip.compress(b"{}")[:-4], "gzip", 400, "is cut off"),
    "more": (gzip.compress(b"{}") + b"x", "gzip", 400, "goes on after its end"),
    "bomb": (zlib.compress(bytes(LIMITS.request_body_bytes + MIB), 9), "deflate", 413, "or more"),
    "other": (gzip.compress(b"{}"), "gzip", 400, "missing required field `instances`"),
}


@pytest.mark.parametrize("lie", LIES)
def test_packed_bodies_that_lie(shared, lie):
    body, encoding, status, words = LIES[lie]
    slot = shared.slots["pump"]
    shared.call(slot.roll)
    answer = shared.ask("POST", PREDICT, body, Content_Encoding=encoding)
    assert answer.status == status
    assert words in answer.json["error"]
    (window,) = shared.call(slot.roll)
    assert window.errors_by_kind == {"bad_request": 1}


def test_a_bomb_is_never_unpacked_further_than_allowed():
    bomb = zlib.compress(bytes(10 * MIB), 9)
    with pytest.raises(HttpError) as caught:
        unpack("deflate", bomb, 1000)
    assert caught.value.status == 413
    assert "1001 bytes or more" in str(caught.value)


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        (None, None),
        (b"", None),
        (b"gzip", "gzip"),
        (b"deflate, gzip", "gzip"),
        (b"gzip;q=0.1, deflate;q=0.5", "deflate"),
        (b"gzip;q=0, deflate", "deflate"),
        (b"GZIP", "gzip"),
        (b"br, *;q=0.1", "gzip"),
        (b"identity", None),
        (b"gzip;q=x", None),
        (b"gzip;q=nan", None),
        (b"*;q=0", None),
    ],
)
def test_which_packing_the_caller_likes(accept, encoding):
    assert encoding_for({} if accept is None else {b"accept-encoding": accept}) == encoding


def test_the_configured_bound_of_a_body(world, load):
    world.add("pump", load("v1"))
    world.start(App(world.slots, body_bytes=1024), host="127.0.0.1")
    assert world.ask("POST", PREDICT, {"instances": [ROW]}).status == 200
    big = json.dumps({"instances": [ROW] * 100}).encode()
    assert world.ask("POST", PREDICT, big).status == 413
    packed = world.ask("POST", PREDICT, gzip.compress(big), Content_Encoding="gzip")
    assert packed.status == 413
    assert "at most 1024" in packed.json["error"]

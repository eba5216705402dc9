from __future__ import annotations

import gzip
import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest

from edgepack_contract import __version__
from edgepack_contract.limits import LIMITS
from edgepack_contract.states import Phase
from edgepack_runtime.inference.errors import ModelRunError
from edgepack_runtime.serving.app import App

GOLDEN = Path(__file__).parent / "golden"
ROW = [0.5, -1.0, 2.0, 0.0]
NAMES = ["temperature", "pressure", "flow", "age"]
NAMED = dict(zip(NAMES, ROW, strict=True))


@pytest.fixture
def served(world, load):
    world.add("pump", load("v1", version="1.0.0", bias=1.0))
    world.start()
    return world


def infer_body(**changes):
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW}
    return {"inputs": [{k: v for k, v in (tensor | changes).items() if v is not None}]}


def exchanges():
    return [
        pytest.param(exchange, id=f"{path.stem}:{exchange['name']}")
        for path in sorted(GOLDEN.glob("*.json"))
        for exchange in json.loads(path.read_text().replace("EDGEPACK_VERSION", __version__))
    ]


def close(given, expected):
    """Equal, floats to seven digits (they are float32 of another machine), texts by pattern."""
    if isinstance(expected, dict):
        return given.keys() == expected.keys() and all(close(given[k], expected[k]) for k in given)
    if isinstance(expected, list):
        return len(given) == len(expected) and all(map(close, given, expected))
    if isinstance(expected, float):
        return given == pytest.approx(expected, rel=1e-5)
    return given == expected


@pytest.mark.parametrize("exchange", exchanges())
def test_golden_exchanges(shared, exchange):
    answer = shared.ask(exchange["method"], exchange["path"], exchange.get("body"))
    assert answer.status == exchange["status"], answer.raw
    assert answer.headers["content-type"] == "application/json"
    assert close(answer.json, exchange["answer"]), answer.json


def test_the_version_is_named_everywhere(shared):
    v2 = shared.ask("POST", "/v2/models/pump/versions/1.0.0/infer", infer_body())
    v1 = shared.ask("POST", "/v1/models/pump:predict", {"instances": [ROW]})
    assert v2.json["model_version"] == v1.json["model_version"] == "1.0.0"
    assert v1.headers["x-edgepack-version"] == v2.headers["x-edgepack-version"] == "1.0.0"


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/nothing", 404, "nothing at /nothing"),
        ("GET", "/v2/models/pump/generate", 404, "nothing at"),
        ("GET", "/v2/models/pump/infer", 405, "takes POST"),
        ("POST", "/v2/models/pump", 405, "takes GET"),
        ("DELETE", "/health", 405, "takes GET"),
        ("GET", "/v1/models/pump:predict", 405, "takes POST"),
        ("GET", "/v2/models/other", 404, "no model 'other'; this device has: pump"),
        ("GET", "/v2/models/pump/versions/9.9.9", 404, "no version '9.9.9'; 1.0.0 is serving"),
        ("GET", "/v2/models/pump/versions/9.9.9/ready", 404, "no version"),
    ],
)
def test_paths_and_methods(shared, method, path, status, words):
    answer = shared.ask(method, path)
    assert answer.status == status
    assert words in answer.json["error"]
    if status == 405:
        assert answer.headers["allow"].split(", ")[0] in words


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/", "/v2/models/pump"])
def test_head_is_get_without_the_body(shared, path):
    head, get = shared.ask("HEAD", path), shared.ask("GET", path)
    assert (head.status, head.raw) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize(
    ("body", "words", "kind"),
    [
        (b"", "not an inference request", "bad_request"),
        (b"{", "not an inference request", "bad_request"),
        (b"[]", "Expected `object`", "bad_request"),
        (b"\xff\xfe", "not an inference request", "bad_request"),
        (b'{"inputs":' + b"[" * 9999, "not an inference request", "bad_request"),
        ({}, "missing required field `inputs`", "bad_request"),
        ({"inputs": []}, "input 'x' is missing", "bad_request"),
        (infer_body(name="y"), "'y' is not one of the model's", "bad_request"),
        ({"inputs": infer_body()["inputs"] * 2}, "'x' is there twice", "bad_request"),
        (infer_body(datatype="FP64"), "expected datatype FP32, given 'FP64'", "bad_request"),
        (infer_body(data=None), "has no 'data'", "bad_request"),
        (infer_body(data=["a", 1, 2, 3]), "expected float32 values", "bad_request"),
        (infer_body(data=[True, 1, 2, 3]), "expected float32 values", "bad_request"),
        (
            infer_body(data=None, parameters={"binary_data_size": 16}),
            "expected 16 additional bytes",
            "bad_request",
        ),
        (infer_body() | {"outputs": [{"name": "z"}]}, "output 'z' is not one", "bad_request"),
        (infer_body(shape=[1, 5]), "expected shape [batch, 4] of float32, given [1, 5]", "shape"),
        (infer_body(data=[1, 2]), "holds 4 values, the data are [2]", "shape"),
        (infer_body(shape=[0, 5], data=[]), "given [0, 5]", "shape"),
        (infer_body(data=[None, 1, 2, 3]), "1 of 4 values are null", "nonfinite_input"),
    ],
)
def test_bad_input_is_400_counted_by_kind_and_says_what_was_expected(shared, body, words, kind):
    slot = shared.slots["pump"]
    shared.call(slot.roll)
    before = slot.counters()
    answer = shared.ask("POST", "/v2/models/pump/infer", body)
    assert answer.status == 400
    assert words in answer.json["error"]
    (window,) = shared.call(slot.roll)
    assert window.errors_by_kind == {kind: 1}
    assert slot.counters() == before
    assert shared.ask("POST", "/v2/models/pump/infer", infer_body()).status == 200


@pytest.mark.parametrize(
    ("instances", "words"),
    [
        ([[1, 2, 3]], "expected shape [batch, 4]"),
        ([[1, 2, 3, 4], [1]], "different lengths"),
        ([], "expected shape"),
        ([1, 2], "expected shape"),
        ({}, "Expected"),
        ("x", "expected"),
        ([{"temperature": 1}], "instance 0: age, flow, pressure missing"),
        ([NAMED, NAMED | {"x": 1}], "instance 1: x unknown"),
        ([NAMED | {"age": "old"}], "expected float32 values"),
        ([NAMED | {"age": None}], "null, NaN or infinite"),
        ([NAMED, ROW], "list or an object"),
    ],
)
def test_bad_instances(shared, instances, words):
    answer = shared.ask("POST", "/v1/models/pump:predict", {"instances": instances})
    assert answer.status == 400
    assert words in answer.json["error"]


def test_instances_by_name_and_by_place_are_the_same(shared):
    shuffled = dict(sorted(NAMED.items()))
    by_name = shared.ask("POST", "/v1/models/pump:predict", {"instances": [shuffled, NAMED]})
    by_place = shared.ask("POST", "/v1/models/pump:predict", {"instances": [ROW, ROW]})
    assert by_name.json == by_place.json
    assert by_name.json["predictions"][0]["label"] in ("ok", "worn", "broken")
    assert list(by_name.json["predictions"][0]["probabilities"]) == ["ok", "worn", "broken"]


def test_a_body_over_the_limit_is_refused_before_it_is_read(shared):
    with socket.create_connection(("127.0.0.1", shared.server.port), timeout=30) as connection:
        connection.sendall(
            b"POST /v2/models/pump/infer HTTP/1.1\r\nhost: d\r\n"
            + f"content-length: {LIMITS.request_body_bytes + 1}\r\n\r\n".encode()
        )
        raw = b"".join(iter(lambda: connection.recv(4096), b""))
    assert raw.startswith(b"HTTP/1.1 413")
    assert b'{"error":"the body has' in raw


def test_a_body_without_a_length(shared):
    with socket.create_connection(("127.0.0.1", shared.server.port), timeout=30) as connection:
        connection.sendall(b"POST /v1/models/pump:predict HTTP/1.1\r\nhost: d\r\n\r\n")
        raw = b"".join(iter(lambda: connection.recv(4096), b""))
    assert raw.startswith(b"HTTP/1.1 411")


def test_a_large_batch_is_one_call(shared):
    answer = shared.ask("POST", "/v1/models/pump:predict", {"instances": [ROW] * 20000})
    assert answer.status == 200
    assert len(answer.json["predictions"]) == 20000


def test_a_chunked_body(shared):
    body = json.dumps({"instances": [ROW]}).encode()
    with socket.create_connection(("127.0.0.1", shared.server.port), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/models/pump:predict HTTP/1.1\r\nhost: d\r\nconnection: close\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
            + b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body)
            + b"0\r\n\r\n"
        )
        raw = b"".join(iter(lambda: connection.recv(4096), b""))
    assert raw.startswith(b"HTTP/1.1 200")


def test_a_slot_without_a_model_asks_to_come_back(world):
    world.add("pump")
    world.start()
    for method, path in (
        ("POST", "/v2/models/pump/infer"),
        ("POST", "/v1/models/pump:predict"),
        ("GET", "/v2/models/pump"),
        ("GET", "/v2/models/pump/ready"),
    ):
        answer = world.ask(method, path, infer_body() if method == "POST" else None)
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert "no bundle" in answer.json["error"]
    assert world.ask("GET", "/v2/health/live").status == 200
    assert world.ask("GET", "/v2/health/ready").status == 503
    assert world.ask("GET", "/ready").json == {"ready": False}
    assert world.ask("GET", "/health").json["status"] == "degraded"
    assert world.ask("POST", "/v2/repository/index").json == [
        {"name": "pump", "state": "UNAVAILABLE", "reason": "no bundle can serve"}
    ]
    assert world.ask("POST", "/v2/repository/index", {"ready": True}).json == []
    assert 'edgepack_unavailable_total{slot="pump"} 2' in world.ask("GET", "/metrics").raw.decode()


def test_a_device_without_slots(world):
    world.start()
    assert world.ask("GET", "/ready").status == 503
    assert world.ask("GET", "/health").json["status"] == "no models"
    answer = world.ask("POST", "/v1/models/pump:predict", {"instances": [ROW]})
    assert (answer.status, answer.json["error"]) == (
        404,
        "there is no model 'pump'; this device has: none",
    )


def test_a_full_queue_asks_to_come_back(world, load):
    world.add("pump", load("v1"), most_waiting=0)
    world.start()
    big = {"instances": [ROW] * 20000}
    answer = world.ask("POST", "/v1/models/pump:predict", big)
    assert answer.status == 429
    assert answer.headers["retry-after"] == "1"
    (window,) = world.call(world.slots["pump"].roll)
    assert window.errors_by_kind == {"overload": 1}
    assert world.ask("POST", "/v1/models/pump:predict", {"instances": [ROW]}).status == 200


def test_a_model_that_fails_is_500_and_counted(world, load, monkeypatch):
    model = load("v1")
    world.add("pump", model)
    world.start()

    def broken(feeds):
        raise ModelRunError("the model failed: no luck")

    monkeypatch.setattr(model, "run", broken)
    answer = world.ask("POST", "/v2/models/pump/infer", infer_body())
    assert (answer.status, answer.json) == (500, {"error": "the model failed: no luck"})
    counters = world.slots["pump"].counters()
    assert (counters.requests, counters.errors) == (1, 1)
    (window,) = world.call(world.slots["pump"].roll)
    assert window.errors_by_kind == {"backend": 1}


@pytest.mark.parametrize(("policy", "status"), [("refuse", 500), ("count", 200)])
def test_answers_that_are_not_finite(world, load, monkeypatch, policy, status):
    model = load("v1", on_nonfinite=policy)
    world.add("pump", model)
    world.start()
    run = model.run

    def spoilt(feeds):
        outputs = run(feeds)
        return outputs | {"probabilities": outputs["probabilities"] * np.float32(np.nan)}

    monkeypatch.setattr(model, "run", spoilt)
    answer = world.ask("POST", "/v2/models/pump/infer", infer_body())
    assert answer.status == status
    counters = world.slots["pump"].counters()
    assert (counters.requests, counters.errors, counters.nonfinite) == (1, 0, 1)
    if status == 200:
        assert answer.json["outputs"][1]["data"] == [None, None, None]
    else:
        assert "NaN" in answer.json["error"]


def test_nulls_are_served_where_the_bundle_counts_them(world, load):
    world.add("pump", load("v1", on_nonfinite="count"))
    world.start()
    answer = world.ask("POST", "/v1/models/pump:predict", {"instances": [[None, 1, 2, 3]]})
    assert answer.status == 200
    (window,) = world.call(world.slots["pump"].roll)
    assert window.errors == 0
    assert window.inputs.null == [1, 0, 0, 0]


def test_a_defect_costs_one_answer(world, load, monkeypatch, caplog):
    model = load("v1")
    world.add("pump", model)
    world.start()
    monkeypatch.setattr(model, "run", lambda feeds: 1 / 0)
    answer = world.ask("POST", "/v2/models/pump/infer", infer_body())
    assert answer.status == 500
    assert "internal error" in answer.json["error"]
    assert "ZeroDivisionError" in caplog.text
    assert world.slots["pump"].in_flight == 0
    assert world.ask("GET", "/v2/health/ready").status == 200


def test_health_tells_what_runs(world, load):
    world.add("pump", load("v1", version="1.2.0"))
    world.start(App(world.slots, phase_of={"pump": Phase.PROBATION}.get), host="127.0.0.1")
    slot = world.ask("GET", "/health").json["slots"]["pump"]
    assert (slot["model"], slot["version"], slot["phase"]) == ("pump", "1.2.0", "probation")
    assert slot["digest"].startswith("sha256:")
    assert slot["last_prediction"] is None
    world.ask("POST", "/v2/models/pump/infer", infer_body())
    slot = world.ask("GET", "/health").json["slots"]["pump"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", slot["last_prediction"])
    assert slot["requests"] == 1
    page = world.ask("GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "1.2.0" in page.raw.decode()
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_metrics_add_up(served):
    for _ in range(3):
        served.ask("POST", "/v1/models/pump:predict", {"instances": [ROW, ROW]})
    served.ask("POST", "/v1/models/pump:predict", {"instances": [[1]]})
    text = served.ask("GET", "/metrics").raw.decode()
    line = re.compile(r'[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [0-9.e+-]+')
    for row in text.splitlines():
        assert row.startswith(("# HELP ", "# TYPE ")) or line.fullmatch(row), row
    values = dict(row.rsplit(" ", 1) for row in text.splitlines() if not row.startswith("#"))
    assert values['edgepack_requests_total{slot="pump"}'] == "3"
    assert values['edgepack_rows_total{slot="pump"}'] == "6"
    assert values['edgepack_errors_total{slot="pump",kind="shape"}'] == "1"
    assert values['edgepack_request_seconds_bucket{slot="pump",le="+Inf"}'] == "3"
    assert values['edgepack_request_seconds_count{slot="pump"}'] == "3"
    assert float(values['edgepack_request_seconds_sum{slot="pump"}']) > 0


def test_statistics_add_up(served):
    for _ in range(2):
        served.ask("POST", "/v1/models/pump:predict", {"instances": [ROW, ROW, ROW]})
    (stats,) = served.ask("GET", "/v2/models/pump/stats").json["model_stats"]
    assert (stats["inference_count"], stats["execution_count"]) == (6, 2)
    parts = stats["inference_stats"]
    assert parts["success"]["count"] == 2
    assert parts["success"]["ns"] == sum(
        parts[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output")
    )
    assert served.ask("GET", "/v2/models/stats").json["model_stats"] == [stats]


def test_answers_land_in_the_window(served):
    served.ask("POST", "/v1/models/pump:predict", {"instances": [ROW, ROW]})
    served.ask("POST", "/v2/models/pump/infer", infer_body())
    (window,) = served.call(lambda: served.slots["pump"].roll(probation=True))
    assert (window.n, window.rows, window.sampled, window.errors) == (2, 3, 3, 0)
    assert window.slot == "pump"
    assert window.bundle == served.slots["pump"].active.digest
    assert window.probation
    assert [sum(counts) for counts in window.inputs.counts] == [3, 3, 3, 3]
    assert sum(window.outputs.classes) == 3
    (empty,) = served.call(served.slots["pump"].roll)
    assert empty.n == 0


def test_json_is_bounded_more_tightly_than_bytes(shared):
    # read, it takes some thirty times its size
    spaces = b" " * (LIMITS.request_json_bytes + 1)
    for body, headers in ((spaces, {}), (gzip.compress(spaces, 1), {"content_encoding": "gzip"})):
        for path in ("/v2/models/pump/infer", "/v1/models/pump:predict"):
            answer = shared.ask("POST", path, body, **headers)
            assert answer.status == 413
            assert "send tensors as binary data" in answer.json["error"]
    size = str(len(spaces))
    answer = shared.ask(
        "POST", "/v2/models/pump/infer", spaces, inference_header_content_length=size
    )
    assert answer.status == 413
    answer = shared.ask(
        "POST", "/v2/models/pump/infer", spaces, inference_header_content_length="2"
    )
    assert answer.status == 400

"""The short way of a prediction gives what uvicorn's way gives, in order and within its bounds."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading

import pytest
from raw_line import DEADLINE, Line
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from edgepack_contract.limits import LIMITS
from edgepack_runtime.config import ServeConfig
from edgepack_runtime.serving import fast
from edgepack_runtime.serving import server as server_module
from edgepack_runtime.serving.access import Guard

ROW = [0.5, -1.0, 2.0, 0.0]
V1, V2 = b"/v1/models/pump:predict", b"/v2/models/pump/infer"
GOOD = json.dumps({"instances": [ROW]}).encode()
MANY = json.dumps({"instances": [ROW] * 100}).encode()
HUGE = json.dumps({"instances": [ROW] * 5000}).encode()


def infer(**changes) -> bytes:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW} | changes
    return json.dumps({"inputs": [tensor], "id": "one"}).encode()


def post(path: bytes, body: bytes = GOOD, *headers: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"POST %b HTTP/%b" % (path, version), b"host: d", b"content-length: %d" % len(body)]
    return b"\r\n".join([*lines, *headers, b"", body])


@pytest.fixture
def handed_over(monkeypatch):
    """The targets of the requests that went uvicorn's way."""
    seen: list[bytes] = []
    whole = HttpToolsProtocol.on_headers_complete

    def noted(self):
        seen.append(self.url)
        whole(self)

    monkeypatch.setattr(HttpToolsProtocol, "on_headers_complete", noted)
    return seen


REQUESTS = {
    "rows": post(V1),
    "objects": post(V1, b'{"instances": [{"temperature": 1}]}'),
    "tensors": post(V2, infer()),
    "a version": post(b"/v2/models/pump/versions/1.0.0/infer", infer()),
    "another version": post(b"/v2/models/pump/versions/9/infer", infer()),
    "no such model": post(b"/v1/models/other:predict"),
    "no such path": post(b"/v1/models/pump:guess"),
    "a query": post(V1 + b"?a=b"),
    "escaped": post(b"/v1/models/p%75mp:predict"),
    "no JSON": post(V1, b"{"),
    "a text": post(V1, b'{"instances": [["a", 1, 2, 3]]}'),
    "too wide": post(V1, b'{"instances": [[1, 2, 3, 4, 5]]}'),
    "ragged": post(V1, b'{"instances": [[1, 2, 3, 4], [1]]}'),
    "not finite": post(V1, b'{"instances": [[1e39, 1, 2, 3]]}'),
    "no rows": post(V1, b'{"instances": []}'),
    "no body": post(V1, b""),
    "answered in the pool": post(V1, HUGE),
    "packed": post(V1, gzip.compress(GOOD, mtime=0), b"content-encoding: gzip"),
    "packed strangely": post(V1, GOOD, b"content-encoding: br"),
    "to be packed": post(V1, MANY, b"accept-encoding: gzip"),
    "bytes": post(V2, b"\0" * 16, b"inference-header-content-length: 0"),
    "bytes of no length": post(V2, infer(), b"inference-header-content-length: x"),
    "expecting": post(V1, GOOD, b"expect: 100-continue"),
    "the last": post(V1, GOOD, b"connection: close"),
    "of 1.0": post(V1, version=b"1.0"),
    "of 1.0, kept": post(V1, GOOD, b"connection: keep-alive", version=b"1.0"),
    "too much JSON": post(V1, b" " * (LIMITS.request_json_bytes + 1)),
    "too long": b"POST %b HTTP/1.1\r\nhost: d\r\ncontent-length: 99999999999\r\n\r\n" % V1,
    "no length": b"POST %b HTTP/1.1\r\nhost: d\r\n\r\n" % V1,
    "chunks": b"POST %b HTTP/1.1\r\nhost: d\r\ntransfer-encoding: chunked\r\n\r\n" % V1
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD),
    "another method": b"GET %b HTTP/1.1\r\nhost: d\r\n\r\n" % V1,
}


@pytest.fixture(scope="module")
def told(load):
    """For each way: what each of the requests is answered, and what the slot counted of it."""
    with pytest.MonkeyPatch.context() as patch:
        found = {}
        for way in ("fast", "uvicorn"):
            if way == "uvicorn":
                patch.setattr(fast.Front, "route", lambda _self, _target: None)
            found[way] = dict(_exchanges(load))
    return found


def _exchanges(load):
    from tests.runtime.serving.conftest import World

    world = World()
    try:
        slot = world.add("pump", load("v1", version="1.0.0", bias=1.0))
        world.start()
        for name, raw in REQUESTS.items():
            line = Line(world.server.port)
            line.send(raw)
            status, headers, body = line.answer()
            headers.pop(b"date")
            alive = headers.get(b"connection") != b"close"
            if alive:
                line.send(post(V1))
                alive = line.answer()[0].startswith(b"HTTP/1.1 200")
            line.close()
            totals = world.call(lambda: slot.totals)
            counted = (totals.answered, totals.rows, dict(totals.errors), totals.unavailable)
            yield name, (status, headers, body, alive, counted)
    finally:
        world.close()


@pytest.mark.parametrize("name", REQUESTS)
def test_both_ways_answer_and_count_alike(told, name):
    assert told["fast"][name] == told["uvicorn"][name]


def test_a_small_prediction_takes_the_short_way_and_nothing_else_does(
    world, pump, line, handed_over
):
    one = line()
    for path, body in ((V1, GOOD), (V2, infer()), (b"/predict", b"{}"), (V1, b"no")):
        one.send(post(path, body))
        one.answer()
    assert handed_over == []
    one.send(b"GET /health HTTP/1.1\r\nhost: d\r\n\r\n")
    assert one.answer()[0].startswith(b"HTTP/1.1 200")
    assert handed_over == [b"/health"]


def test_a_body_in_pieces_is_put_together(world, pump, line, handed_over):
    one = line()
    for byte in post(V1):
        one.send(bytes([byte]))
    assert one.answer()[0].startswith(b"HTTP/1.1 200")
    assert handed_over == []


def test_answers_come_in_the_order_of_the_questions(world, pump, line, handed_over):
    one = line()
    health = b"GET /v2/health/live HTTP/1.1\r\nhost: d\r\n\r\n"
    one.send(post(V1) + health + post(V1, HUGE) + post(V1) + post(V2, infer()) + health + post(V1))
    answers = [one.answer() for _ in range(7)]
    assert {status for status, *_ in answers} == {b"HTTP/1.1 200 OK\r\n"}
    kinds = [next(iter(json.loads(body))) for *_, body in answers]
    assert kinds == [
        "predictions", "live", "predictions", "predictions", "model_name", "live", "predictions",
    ]  # fmt: skip
    assert len(json.loads(answers[2][2])["predictions"]) == 5000
    # what came behind one that is not quick has waited its turn
    assert len(handed_over) == 6


def test_who_asks_without_end_lets_others_have_their_turn(world, pump, line, handed_over):
    one, count = line(), 3 * fast.MOST_AT_ONCE
    one.send(post(V1) * count)
    assert {one.answer()[0] for _ in range(count)} == {b"HTTP/1.1 200 OK\r\n"}
    assert handed_over
    handed_over.clear()
    one.send(post(V1))
    one.answer()
    assert handed_over == []


def test_pipelines_longer_than_a_head_may_be_are_no_head(world, pump, line):
    one, raw = line(), post(V1, GOOD, b"x: " + b"y" * 8000)
    reader = threading.Thread(target=lambda: [one.answer() for _ in range(60)])
    reader.start()
    one.send(raw * 60)
    reader.join(DEADLINE)
    assert world.call(lambda: pump.totals.answered) == 60


def _open(world) -> list:
    return [one for server in world.server._servers for one in server.server_state.connections]


def test_a_body_that_does_not_come_is_408(world, pump, line, monkeypatch):
    monkeypatch.setattr(fast, "BODY_SECONDS", 0.05)
    one = line()
    one.send(post(V1)[:-1])
    status, headers, body = one.answer()
    assert status.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 0.05 s" in body
    assert headers[b"connection"] == b"close"
    assert one.rest() == b""
    assert pump.totals.errors["deadline"] == 1
    assert world.call(lambda: pump.in_flight) == 0


def test_who_hangs_up_within_a_body_is_counted(world, pump, line):
    one = line()
    one.send(post(V1)[:-1])
    one.socket.shutdown(socket.SHUT_WR)
    assert one.rest() == b""
    assert pump.totals.errors["bad_request"] == 1
    assert world.call(lambda: pump.in_flight) == 0


def test_an_idle_connection_is_closed(world, load, line, monkeypatch):
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.05)
    world.add("pump", load("v1"))
    world.start()
    one = line()
    one.send(post(V1))
    assert one.answer()[0].startswith(b"HTTP/1.1 200")
    assert one.rest() == b""


def test_a_request_that_has_begun_when_the_server_ends_is_answered(world, pump, line):
    one, raw = line(), post(V1)
    one.send(raw)
    one.answer()
    one.send(raw[:-5])
    while not any(connection._route for connection in world.call(lambda: _open(world))):
        pass
    stopping = asyncio.run_coroutine_threadsafe(world.server.stop(), world.loop)
    one.socket.settimeout(DEADLINE)
    while not any(_is_last(server) for server in world.server._servers):
        pass
    one.send(raw[-5:])
    assert one.answer()[0].startswith(b"HTTP/1.1 200")
    assert one.rest() == b""
    stopping.result(DEADLINE)


def _is_last(server) -> bool:
    return (b"connection", b"close") in server.server_state.default_headers


def test_the_token_holds_on_the_short_way(world, load, line, tmp_path, handed_over):
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o600)
    world.add("pump", load("v1"))
    world.start(host="127.0.0.1", guard=Guard(ServeConfig(token_file=str(token))))
    one = line()
    one.send(post(V1, GOOD, b"authorization: Bearer secret"))
    assert one.answer()[0].startswith(b"HTTP/1.1 200")
    assert handed_over == []
    one.send(post(V1))
    assert one.answer()[0].startswith(b"HTTP/1.1 401")
    assert handed_over == [V1]


def test_too_many_connections_are_refused_on_both_ways(world, load, line, monkeypatch):
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 2)
    world.add("pump", load("v1"))
    world.start()
    one, two = line(), line()
    two.send(post(V1))
    assert two.answer()[0].startswith(b"HTTP/1.1 503")
    two.close()
    one.send(post(V1))
    assert one.answer()[0].startswith(b"HTTP/1.1")


def test_a_defect_of_ours_costs_one_answer(world, pump, line, monkeypatch):
    one = line()
    with monkeypatch.context() as patch:
        patch.setattr(pump.active.__class__, "run", lambda *_: 1 // 0)
        one.send(post(V1))
        assert one.answer()[0].startswith(b"HTTP/1.1 500")
    one.send(post(V1))
    assert one.answer()[0].startswith(b"HTTP/1.1 200")
    assert world.call(lambda: pump.in_flight) == 0


def test_uvicorn_is_as_expected():
    needed = {
        HttpToolsProtocol.__init__: {"connections", "tasks", "cycle", "flow", "headers", "parser",
                                     "server_state", "timeout_keep_alive_task",
                                     "timeout_keep_alive", "limit_concurrency",
                                     "expect_100_continue", "app"},
        HttpToolsProtocol.on_headers_complete: {"parser", "cycle", "_start_asgi_task", "app"},
        HttpToolsProtocol.on_message_complete: {"cycle", "more_body", "message_event"},
        HttpToolsProtocol.shutdown: {"cycle", "response_complete", "transport", "close"},
        RequestResponseCycle.__init__: {"response_complete"},
    }  # fmt: skip
    for function, names in needed.items():
        assert names <= {*function.__code__.co_names, *function.__code__.co_varnames}, function
    assert httptools_impl.STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"
